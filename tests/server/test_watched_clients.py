"""Every call of tinker's clients that waits for a server fails when the server is lost."""

from __future__ import annotations

import asyncio
import inspect
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import tinker
from tinker.lib.public_interfaces.rest_client import RestClient

from tests.server.conftest import datum_of
from tinkerloop.bridges import UrlServiceClient
from tinkerloop.errors import ServerLostError
from tinkerloop.loop.futures import background, resolve
from tinkerloop.server.running import ServerOptions, background_server

PATH = "tinker://run/weights/end"
ARGUMENTS: dict[str, Any] = {
    "data": [datum_of(0)],
    "loss_fn": "cross_entropy",
    "adam_params": tinker.AdamParams(learning_rate=1e-3),
    "destination_project_id": "project",
    "prompt": tinker.ModelInput.from_ints([1, 2]),
    "num_samples": 1,
    "sampling_params": tinker.SamplingParams(max_tokens=2),
    "base_model": "tiny",
    "ttl_seconds": 3600,
    "path": PATH,
    "model_path": PATH,
    "tinker_path": PATH,
}
"""The arguments of the methods by name. All others are texts."""
BASES = (tinker.TrainingClient, tinker.SamplingClient, tinker.ServiceClient, RestClient)
NOT_ASKED = {
    "create",  # a static method of the sampling client, which needs the connections of another client
    "close",  # it has a test of its own, because no other call works after it
    "create_custom_loss",  # computed by the hosted service only
    "get_billing_usage",
    "get_audit_log",
    "get_current_checkpoint_storage_usage",  # of the administrators of the hosted service
    "search_sessions",
    "whoami",  # of the hosted service
    "get_info_async",
    "get_base_model_async",  # known since the client was created, in newer versions
}


def waits(method: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(inspect.unwrap(method)) or "Future" in str(method.__annotations__.get("return"))


def arguments_of(method: Callable[..., Any]) -> dict[str, Any]:
    parameters = list(inspect.signature(method).parameters.values())[1:]
    names = [p.name for p in parameters if p.default is p.empty]
    names += [p.name for p in parameters if p.name in ("base_model", "destination_project_id") and p.name not in names]
    given = {name: ARGUMENTS.get(name, "text") for name in names}
    if method.__name__.startswith("optim_step"):
        given = {parameters[0].name: ARGUMENTS["adam_params"]}
    if method.__name__.startswith("forward_backward_custom"):
        given["loss_fn"] = lambda data, logprobs: (sum(x.sum() for x in logprobs), {})
    if "external" in method.__name__:
        given = {name: value.replace("/weights/", "/external_weights/") for name, value in given.items()}
    return given


CALLS = [
    (cls.__name__, name)
    for cls in BASES
    for name, method in vars(cls).items()
    if not name.startswith("_") and inspect.isfunction(method) and waits(method)
    if name.removesuffix("_async") not in NOT_ASKED and name not in NOT_ASKED
] + [("ServiceClient", "get_server_capabilities")]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> Iterator[dict[tuple[str, str], Any]]:
    """Call all methods at once after the server is gone. The value is the future of each call's outcome."""
    options = ServerOptions({"tiny": "tiny"}, root=tmp_path_factory.mktemp("root"), device="cpu")
    with background_server(options) as url:
        service = UrlServiceClient(url, patience=1.0)
        training = service.create_lora_training_client("tiny", rank=4)
        assert service.sums_losses(training)
        path = training.save_weights_for_sampler("a").result().path
        sampling = resolve(training.create_sampling_client(path))
        clients = {"ServiceClient": service, "TrainingClient": training, "SamplingClient": sampling}
        clients["RestClient"] = service.create_rest_client()

    def call(owner: str, name: str) -> Any:
        method = getattr(clients[owner], name)
        base = next(cls for cls in BASES if cls.__name__ == owner)
        value = method(**arguments_of(getattr(base, name)))
        if inspect.iscoroutine(value):
            value = asyncio.run(value)
        return value.result() if hasattr(value, "result") else value

    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as environment:
        warnings.simplefilter("ignore", FutureWarning)
        environment.setenv("TINKER_PROJECT_ID", "project")  # without it, copy_weights asks nobody
        calls = {key: background(call, *key) for key in CALLS}
        yield calls
        with pytest.raises(ServerLostError):
            service.close("errored").result(60)


@pytest.mark.parametrize("owner, name", CALLS)
def test_it_fails_when_the_server_is_lost(outcomes, owner, name):
    with pytest.raises(ServerLostError):
        outcomes[owner, name].result(60)

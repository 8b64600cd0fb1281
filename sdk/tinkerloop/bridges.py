"""A service client for a server at a URL. It bridges what the server lacks, and rejects what it would train wrongly.

What it bridges, and why. On a server that lacks nothing, each is a plain call of tinker's client.

    loss    some servers return no `loss:sum`: it is summed from `elementwise_loss`, or is -sum(w * logprob)
    open    some answer 422 to load_weights without model_id: a model is created first, then the weights are loaded
    name    some answer 409 to a second save of one name, which the client repeats for minutes: names get a suffix
    end     some have no call that ends a session: it ends there after a time without heartbeats

Samples of a server that gives them no `sample_sequence_ids` cannot be read by tinker >= 0.26; the error says so.

What it rejects: a server without `loss:sum` divides each datum's loss by the sum of its weights. There, negative
weights and custom losses (which are sent as weights of both signs) would train something else.
"""

from __future__ import annotations

import asyncio
import math
import os
import secrets
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import numpy as np
import tinker
from tinker.lib.public_interfaces.api_future import AwaitableConcurrentFuture

from tinkerloop.client_versions import open_rest_client
from tinkerloop.errors import PlanError, TinkerloopError
from tinkerloop.loop.futures import resolve_async
from tinkerloop.loopback import LOCAL_KEY, is_loopback
from tinkerloop.lost_server import PATIENCE, ServerWatch
from tinkerloop.watched_clients import called, followed, watched_calls, watched_rest_client, watched_sampler

T = TypeVar("T")
_FINISH_SECONDS = 30.0


@watched_calls
class UrlServiceClient(tinker.ServiceClient):
    """Service client of the server at `url`. Its training clients bridge what the server lacks.

    Args:
        url: the URL of the server. On this machine it needs no key; elsewhere the key is read from TINKER_API_KEY.
        patience: the seconds without an answer after which requests fail with a `ServerLostError`.
    """

    def __init__(self, url: str, *, patience: float = PATIENCE):
        key = os.environ.get("TINKER_API_KEY") or (LOCAL_KEY if is_loopback(urlsplit(url).hostname or "") else None)
        super().__init__(base_url=url, api_key=key)
        self.watch = ServerWatch(url, patience)
        self._sums_losses: bool | None = None
        self._probing = threading.Lock()

    def sums_losses(self, client: BridgedTrainingClient) -> bool:
        """Return true if the server's loss is a sum over tokens with their weights. The server is asked once."""
        with self._probing:
            if self._sums_losses is None:
                self._sums_losses = _probe(client)
                print(f"server: sums losses: {'yes' if self._sums_losses else _NORMALISES}", file=sys.stderr)
            return self._sums_losses

    def create_rest_client(self) -> tinker.RestClient:
        with self.watch.direct_call():
            return watched_rest_client(self.watch, called(self.watch, open_rest_client, self))

    def create_sampling_client(self, *args: Any, **options: Any) -> Any:
        return watched_sampler(self.watch, self._direct(super().create_sampling_client, *args, **options))

    def create_lora_training_client(self, *args: Any, **options: Any) -> BridgedTrainingClient:  # type: ignore[override]
        return self._bridged(self._direct(super().create_lora_training_client, *args, **options))

    def create_training_client_from_state(self, path: str, *args: Any, **options: Any) -> BridgedTrainingClient:  # type: ignore[override]
        direct = super().create_training_client_from_state
        return self._opened(lambda: direct(path, *args, **options), path, "load_state", options)

    def create_training_client_from_state_with_optimizer(  # type: ignore[override]
        self, path: str, *args: Any, **options: Any
    ) -> BridgedTrainingClient:
        direct = super().create_training_client_from_state_with_optimizer
        return self._opened(lambda: direct(path, *args, **options), path, "load_state_with_optimizer", options)

    async def create_lora_training_client_async(self, *args: Any, **options: Any) -> BridgedTrainingClient:
        return await asyncio.to_thread(self.create_lora_training_client, *args, **options)

    async def create_training_client_from_state_async(self, *args: Any, **options: Any) -> BridgedTrainingClient:
        return await asyncio.to_thread(self.create_training_client_from_state, *args, **options)

    async def create_training_client_from_state_with_optimizer_async(
        self, *args: Any, **options: Any
    ) -> BridgedTrainingClient:
        return await asyncio.to_thread(self.create_training_client_from_state_with_optimizer, *args, **options)

    def _direct(self, method: Callable[..., T], *args: Any, **options: Any) -> T:
        with self.watch.direct_call():
            return called(self.watch, method, *args, **options)

    def _opened(
        self, direct: Callable[[], Any], path: str, load: str, options: Mapping[str, Any]
    ) -> BridgedTrainingClient:
        """Open a checkpoint with `direct`; if the server cannot, create a model and call its method `load`."""
        try:
            return self._bridged(self._direct(direct))
        except tinker.UnprocessableEntityError:
            pass
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # tinker deprecates the only way that such a server has
            info = self.create_rest_client().get_weights_info_by_tinker_path(path).result()
            model = {"rank": info.lora_rank, **{name: getattr(info, name, None) for name in _TRAINED}}
            model["user_metadata"] = options.get("user_metadata")
            known = {name: value for name, value in model.items() if value is not None}
            client = self.create_lora_training_client(info.base_model, **known)
            getattr(client, load)(path).result()
        return client

    def _bridged(self, created: Any) -> BridgedTrainingClient:
        """Return a bridged client for a client of tinker, or for the future of one, which newer versions return."""
        client = followed(self.watch, created).result() if isinstance(created, tinker.APIFuture) else created
        client.__class__ = BridgedTrainingClient  # tinker creates its client itself, and takes no subclass for it
        assert isinstance(client, BridgedTrainingClient)
        client.service = self
        return client

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not hasattr(tinker.ServiceClient, "close"):  # it exists since tinker 0.28
            return
        interrupted = kind is not None and not issubclass(kind, Exception)
        closed = super().close("interrupted" if interrupted else "errored" if kind else "success")
        if self.watch.lost:
            return  # the heartbeats stop when the server is back, or when the client gives up ending the session
        with suppress(Exception):  # a server without a call that ends sessions is no reason for a run to fail
            closed.result(_FINISH_SECONDS)


_NORMALISES = (
    "no: it divides the loss of each datum by the sum of its weights, so weights count only within a datum; negative "
    "weights and custom losses are rejected; saved names get a suffix"
)
_TRAINED = ("train_mlp", "train_attn", "train_unembed")


@watched_calls
class BridgedTrainingClient(tinker.TrainingClient):
    """Training client of `UrlServiceClient`. Its requests fail when the server is lost.

    It is also the future of itself, because `create_*` returns a client in older versions of tinker and a future of a
    client in newer ones.
    """

    service: UrlServiceClient

    @property
    def watch(self) -> ServerWatch:
        return self.service.watch

    def result(self, timeout: float | None = None) -> Self:
        return self

    async def result_async(self, timeout: float | None = None) -> Self:
        return self

    def __await__(self) -> Generator[Any, Any, Self]:
        return self.result_async().__await__()

    def forward(self, data: list[tinker.Datum], loss_fn: Any, loss_fn_config: Any = None) -> Any:
        self._check(data)
        return self._followed(super().forward(data, loss_fn, loss_fn_config), _with_loss_of(data, loss_fn))

    def forward_backward(self, data: list[tinker.Datum], loss_fn: Any, loss_fn_config: Any = None) -> Any:
        self._check(data)
        return self._followed(super().forward_backward(data, loss_fn, loss_fn_config), _with_loss_of(data, loss_fn))

    def forward_backward_custom(self, data: list[tinker.Datum], loss_fn: Any, **options: Any) -> Any:
        if not self.service.sums_losses(self):
            raise PlanError(
                "this server cannot train a custom loss: it divides the loss of each datum by the sum of its weights, "
                "and a custom loss is sent as weights of both signs; use a server that sums losses, such as "
                "`tinkerloop serve`, or a built-in loss"
            )
        return self._followed(super().forward_backward_custom(data, loss_fn, **options))

    def save_state(self, name: str, *args: Any, **options: Any) -> Any:
        return self._followed(super().save_state(self._saved_name(name), *args, **options))

    def save_weights_for_sampler(self, name: str, *args: Any, **options: Any) -> Any:
        return self._followed(super().save_weights_for_sampler(self._saved_name(name), *args, **options))

    def _saved_name(self, name: str) -> str:
        return name if self.service.sums_losses(self) else f"{name}-{secrets.token_hex(3)}"

    def _check(self, data: Sequence[tinker.Datum]) -> None:
        """Reject negative weights if the server divides by their sum, before anything is sent."""
        if self.service.sums_losses(self):
            return
        for index, datum in enumerate(data):
            weights = datum.loss_fn_inputs.get("weights")
            if weights is not None and (weights.to_numpy() < 0).any():
                raise PlanError(
                    f"datum {index} has negative weights, with which this server would train something else: it "
                    "divides the loss of each datum by the sum of its weights; use a server that sums losses, such as "
                    "`tinkerloop serve`"
                )

    async def save_weights_and_get_sampling_client_async(self, *args: Any, **options: Any) -> Any:
        # That of older versions of tinker blocks its event loop, on which nothing else could then fail it.
        return await resolve_async(self.save_weights_and_get_sampling_client(*args, **options))

    def _followed(self, future: Any, finish: Callable[[Any], T] = lambda value: value) -> AwaitableConcurrentFuture[T]:
        return AwaitableConcurrentFuture(followed(self.watch, future, finish))


def _probe(client: BridgedTrainingClient) -> bool:
    """Return true if twice the weight gives twice the `loss:sum`, in two forward passes of one token."""
    losses = []
    for weight in (1.0, 2.0):
        inputs: Any = {"target_tokens": [1], "weights": [weight]}
        datum = tinker.Datum(model_input=tinker.ModelInput.from_ints([0]), loss_fn_inputs=inputs)
        output = client._followed(tinker.TrainingClient.forward(client, [datum], "cross_entropy")).result()
        losses.append(output.metrics.get("loss:sum", math.nan))
    return math.isclose(losses[1], 2 * losses[0], rel_tol=1e-3)


def _with_loss_of(
    data: Sequence[tinker.Datum], loss_fn: str
) -> Callable[[tinker.ForwardBackwardOutput], tinker.ForwardBackwardOutput]:
    """Return a function that adds `loss:sum` to an output if it is missing."""

    def with_loss(output: tinker.ForwardBackwardOutput) -> tinker.ForwardBackwardOutput:
        if "loss:sum" in output.metrics:
            return output
        parts = [_loss(datum, fields, loss_fn) for datum, fields in zip(data, output.loss_fn_outputs, strict=True)]
        return replace(output, metrics={**output.metrics, "loss:sum": math.fsum(parts)})

    return with_loss


def _loss(datum: tinker.Datum, fields: Mapping[str, tinker.TensorData], loss_fn: str) -> float:
    if "elementwise_loss" in fields:
        return float(np.sum(fields["elementwise_loss"].to_numpy(), dtype=np.float64))
    if loss_fn != "cross_entropy" or "logprobs" not in fields:
        raise TinkerloopError(
            f"the server returned no 'loss:sum' and no 'elementwise_loss' for the loss {loss_fn!r}, only "
            f"{sorted(fields)} for each datum, so the loss is not known; use cross_entropy or another server"
        )
    weights, logprobs = datum.loss_fn_inputs["weights"].to_numpy(), fields["logprobs"].to_numpy()
    return -float(np.sum(weights * logprobs, dtype=np.float64, where=weights != 0))

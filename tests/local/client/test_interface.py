"""The embedded clients have the methods, parameters and defaults of the installed tinker's clients."""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import pickle
import re
import sys
from importlib import import_module
from pathlib import Path

import pytest
import tinker
from packaging.version import Version

from tinkerloop.local import RestClient, SamplingClient, ServiceClient, TrainingClient, unsupported

_THEIR_REST = (
    getattr(tinker, "RestClient", None) or import_module("tinker.lib.public_interfaces.rest_client").RestClient
)
CLASSES = {
    "ServiceClient": (tinker.ServiceClient, ServiceClient),
    "TrainingClient": (tinker.TrainingClient, TrainingClient),
    "SamplingClient": (tinker.SamplingClient, SamplingClient),
    "RestClient": (_THEIR_REST, RestClient),
}
METHODS = [
    (name, method)
    for name, (theirs, _) in CLASSES.items()
    for method in sorted(vars(theirs))
    if not method.startswith("_") and (callable(getattr(theirs, method)) or method == "holder")
]
NEWEST = Version(tinker.__version__) >= Version("0.38")
"""The engine has the interface of tinker 0.38. Programs written for an older tinker must still work with it."""
newest = pytest.mark.skipif(not NEWEST, reason="needs tinker 0.38")
GONE = {
    "search_sessions_async",
    *(f"get_checkpoint_archive_url{of}{suffix}" for of in ("", "_from_tinker_path") for suffix in ("", "_async")),
}
"""Methods that only older versions of tinker have. The engine raises an error that names them, too."""


@pytest.mark.parametrize("owner, method", METHODS)
def test_every_public_method_of_tinker_is_there_with_its_parameters_or_refuses_by_name(owner: str, method: str):
    theirs, ours = CLASSES[owner]
    mine = getattr(ours, method)
    if f"{owner}.{method}" in unsupported.METHODS:
        with pytest.raises(NotImplementedError, match=f"{owner}.{method}"):
            mine()
        return

    def parameters(function) -> list[tuple]:
        found = inspect.signature(function).parameters.values()
        return [(p.name, p.kind, p.default) for p in found]

    known, offered = parameters(getattr(theirs, method)), parameters(mine)
    if NEWEST:
        assert offered == known
    else:  # since then no parameter has moved, one has a new name, and two defaults have changed, without an effect
        if known[1:2] and known[1][0] == "adam_params":  # tinker < 0.29; the old name still works as a keyword
            known[1] = ("optim_params", *known[1][1:])
        same = [p for p in offered if p[0] in {name for name, *_ in known}]
        assert [p[:2] for p in same] == [p[:2] for p in known]
        assert {p[0] for p in same if p not in known} <= {"loss_type_input", "optim_params"}
        assert all(default is not inspect.Parameter.empty for *_, default in offered[len(known) :])


@newest
def test_nothing_is_refused_that_tinker_does_not_have():
    for place in unsupported.METHODS:
        owner, method = place.split(".")
        assert hasattr(CLASSES[owner][0], method) != (method in GONE)


def test_the_documented_table_of_what_is_not_supported_is_complete():
    """Only one module creates NotImplementedErrors, and the README's table lists all features that they can name."""
    folder = Path(unsupported.__file__).parent
    assert unsupported.table() in (folder / "README.md").read_text()
    assert [f.name for f in folder.rglob("*.py") if "NotImplementedError(" in f.read_text()] == ["unsupported.py"]


def test_both_call_styles_of_training_requests(client: TrainingClient, datum, adam):
    async def old_style() -> float:
        future = await client.forward_backward_async([datum(0)], "cross_entropy")
        step = await client.optim_step_async(adam())
        await step.result_async()
        result = await future
        assert await future is result  # a future can be awaited twice
        return result.metrics["loss:sum"]

    async def new_style() -> float:
        future = client.forward([datum(0)], "cross_entropy")
        return (await future).metrics["loss:sum"]

    before = asyncio.run(old_style())
    assert asyncio.run(new_style()) < before
    assert client.forward([datum(0)], "cross_entropy").result().metrics["loss:sum"] < before


def test_a_script_of_deprecated_awaits_computes_what_the_plain_one_does(service, datum, adam, tokens):
    prompt, params = tinker.ModelInput.from_ints(tokens(0, 5)), tinker.SamplingParams(max_tokens=4, seed=0)

    def custom(data, logprobs):
        return -sum(lp.sum() for lp in logprobs), {}

    async def awaited() -> list:
        client = await service.create_lora_training_client_async(base_model="tiny", rank=4)
        passed = await client.forward_backward_async([datum(0)], "cross_entropy")
        also = await client.forward_backward_custom_async([datum(1)], custom)
        stepped = await client.optim_step_async(adam(1e-2))
        losses = [(await passed).metrics["loss:sum"], (await also.result_async()).metrics["loss:sum"]]
        await stepped
        path = (await (await client.save_state_async("a"))).path
        sampling = (await (await client.save_weights_for_sampler_async("a"))).path
        client = await service.create_training_client_from_state_with_optimizer_async(path)
        losses.append((await (await client.forward_async([datum(2)], "cross_entropy"))).metrics["loss:sum"])
        sampler = await client.save_weights_and_get_sampling_client_async()
        saved = await service.create_sampling_client_async(model_path=sampling)
        sequence = (await sampler.sample_async(prompt, 1, params)).sequences[0]
        return [*losses, sequence.tokens, await saved.compute_logprobs_async(prompt)]

    def plain() -> list:
        client = service.create_lora_training_client(base_model="tiny", rank=4)
        passed = client.forward_backward([datum(0)], "cross_entropy")
        also = client.forward_backward_custom([datum(1)], custom)
        client.optim_step(adam(1e-2))
        losses = [passed.result().metrics["loss:sum"], also.result().metrics["loss:sum"]]
        path = client.save_state("a").result().path
        sampling = client.save_weights_for_sampler("a").result().path
        client = service.create_training_client_from_state_with_optimizer(path).result()
        losses.append(client.forward([datum(2)], "cross_entropy").result().metrics["loss:sum"])
        sampler = client.save_weights_and_get_sampling_client().result()
        sequence = sampler.sample(prompt, 1, params).result().sequences[0]
        saved = service.create_sampling_client(model_path=sampling)
        return [*losses, sequence.tokens, saved.compute_logprobs(prompt).result()]

    assert asyncio.run(awaited()) == plain()


def test_futures_work_with_the_standard_library_and_as_coroutines(client: TrainingClient, datum):
    futures = [client.forward([datum(i)], "cross_entropy") for i in range(3)]
    done, _ = concurrent.futures.wait([future.future() for future in futures], timeout=60)
    assert len(done) == 3
    assert isinstance(futures[0], tinker.APIFuture)

    async def gathered() -> list:
        return await asyncio.gather(*(asyncio.create_task(future.coroutine()) for future in futures))

    assert len(asyncio.run(gathered())) == 3


def test_a_timeout_is_raised_and_the_request_still_executed(client: TrainingClient, datum):
    future = client.forward_backward([datum(0, 200)] * 8, "cross_entropy")
    with pytest.raises(TimeoutError):
        future.result(timeout=0)

    async def wait() -> None:
        await future.result_async(timeout=0)

    with pytest.raises(TimeoutError):
        asyncio.run(wait())
    assert future.result(timeout=60).metrics["loss:sum"] > 0


def test_clients_answer_as_the_futures_of_newer_tinker_versions(service: ServiceClient, client: TrainingClient):
    async def awaited() -> TrainingClient:
        return await client

    assert client.result() is client
    assert client.future().result() is client
    assert asyncio.run(awaited()) is client
    assert asyncio.run(client.coroutine()) is client
    opened = asyncio.run(service.create_lora_training_client_async("tiny", rank=4))
    assert opened.model_id != client.model_id
    sampler = asyncio.run(service.create_sampling_client_async(base_model="tiny"))
    assert sampler.get_base_model() == "tiny"


def test_get_info_names_model_and_adapter(client: TrainingClient):
    info = client.get_info()
    assert (info.model_id, info.is_lora, info.lora_rank) == (client.model_id, True, 8)
    assert info.model_data.tokenizer_id == "tiny"
    assert info.model_data.arch == "qwen3"
    assert client.get_tokenizer().encode("A") == [65]


def test_capabilities_list_the_loaded_models(service: ServiceClient, client: TrainingClient):
    models = service.get_server_capabilities().supported_models
    assert [(m.model_name, m.max_context_length) for m in models] == [("tiny", 32768)]
    assert all(getattr(m, "trainable", True) for m in models)  # tinker 0.25 has no such field


def test_a_closed_service_refuses_requests(service: ServiceClient, client: TrainingClient, datum):
    with service:
        pending = client.forward([datum(0)], "cross_entropy")
    assert pending.result().metrics
    with pytest.raises(RuntimeError, match="closed"):
        client.forward([datum(0)], "cross_entropy")


def test_every_unsupported_option_is_refused_by_name(service, client, datum, tokens, monkeypatch):
    prompt, params = tinker.ModelInput.from_ints(tokens(0, 3)), tinker.SamplingParams(max_tokens=1)
    sampler = client.save_weights_and_get_sampling_client()
    saved = client.save_state("a").result().path
    rest = service.create_rest_client()
    png = tinker.types.ImageChunk(data=b"", format="png", expected_tokens=1)
    elsewhere = tinker.types.ImageAssetPointerChunk(location="x", format="png", expected_tokens=1)
    training, sampling = "save_weights_and_get_sampling_client", service.create_sampling_client
    calls = {
        "loss_fn='stable_reinforce'": [lambda: client.forward([datum(0)], "stable_reinforce").result()],
        "record_stability_info=True": [
            lambda: sampling(base_model="tiny", record_stability_info=True),
            lambda: client.create_sampling_client(saved, record_stability_info=True),
            lambda: getattr(client, training)(record_stability_info=True),
        ],
        "DimuonParams, DimuonOptimizerConfig": [
            lambda: client.optim_step(tinker.DimuonParams(learning_rate=1e-3)),
            lambda: service.create_lora_training_client("tiny", optimizer=tinker.DimuonOptimizerConfig()),
            lambda: service.create_training_client_from_state(saved, optimizer=tinker.DimuonOptimizerConfig()),
        ]
        if hasattr(tinker, "DimuonParams")  # tinker >= 0.29
        else [],
        "kind='inflight'": [lambda: getattr(client, training)(kind="inflight")],
        "prompt_alt_tokens_k > 0": [lambda: sampler.sample(prompt, 1, params, prompt_alt_tokens_k=1)],
        "image chunks for a text model": [
            lambda: sampler.compute_logprobs(tinker.ModelInput(chunks=[png])).result(),
        ],
        "image pointer and audio chunks": [
            lambda: sampler.compute_logprobs(tinker.ModelInput(chunks=[elsewhere])).result(),
        ],
        "weights_access_token": [
            lambda: service.create_training_client_from_state(saved, weights_access_token="t"),
            lambda: service.create_training_client_from_state_with_optimizer(saved, weights_access_token="t"),
            lambda: client.load_state(saved, weights_access_token="t"),
            lambda: client.load_state_with_optimizer(saved, weights_access_token="t"),
            lambda: rest.copy_weights(saved, weights_access_token="t"),
        ],
        "ServiceClient(base_url=...), (api_key=...)": [
            lambda: ServiceClient(base_url="http://x"),
            lambda: ServiceClient(api_key="k"),
        ],
        "get_sampler_handle() of an unsaved snapshot": [lambda: sampler.get_sampler_handle()],
        "create_custom_loss with tinker < 0.36": [lambda: service.create_custom_loss(lambda lp: lp, {"lp": 1})],
        "topk_sample_logprobs with tinker < 0.29": [lambda: sampler.sample(prompt, 1, params, topk_sample_logprobs=1)],
        "target_prompt_logprobs with tinker < 0.30": [
            lambda: sampler.sample(prompt, 1, params, target_prompt_logprobs=prompt)
        ],
        "user_metadata of a checkpoint with tinker < 0.26": [
            lambda: client.save_state("b", user_metadata={"k": "v"}),
            lambda: client.save_weights_for_sampler("b", user_metadata={"k": "v"}),
        ],
    }
    monkeypatch.setattr(unsupported, "has_field", lambda cls, name: False)  # as in an old version of tinker
    monkeypatch.setitem(sys.modules, "tinker.lib.public_interfaces.custom_loss", None)
    monkeypatch.delattr("tinker.lib.public_interfaces.custom_loss", raising=False)
    by_trial = {
        "architectures that the engine would run wrongly",
        "LoRA on some kinds of layers",
        "an output layer that is not linear",
    }
    assert calls.keys() | by_trial == unsupported.OPTIONS.keys()
    for option, refused in calls.items():
        for call in refused:
            with pytest.raises(NotImplementedError, match=re.escape(option)):
                call()


def test_a_sampler_handle_opens_the_same_weights_elsewhere(service: ServiceClient, client, datum, adam, tokens):
    client.forward_backward([datum(0)], "cross_entropy")
    client.optim_step(adam(1e-2))
    sampler = service.create_sampling_client(client.save_weights_for_sampler("a").result().path)
    prompt = tinker.ModelInput.from_ints(tokens(3, 9))
    expected = sampler.compute_logprobs(prompt).result()
    for again in (
        SamplingClient.from_sampler_handle(sampler.get_sampler_handle()),
        pickle.loads(pickle.dumps(sampler)),
    ):
        assert again.compute_logprobs(prompt).result() == expected
    with pytest.raises(NotImplementedError, match="save_weights_for_sampler"):
        client.save_weights_and_get_sampling_client().get_sampler_handle()

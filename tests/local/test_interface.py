"""The embedded clients are those of the installed tinker: same methods, parameters and defaults."""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import pickle

import pytest
import tinker

from tinkerloop.local import RestClient, SamplingClient, ServiceClient, TrainingClient, unsupported

CLASSES = {
    "ServiceClient": (tinker.ServiceClient, ServiceClient),
    "TrainingClient": (tinker.TrainingClient, TrainingClient),
    "SamplingClient": (tinker.SamplingClient, SamplingClient),
    "RestClient": (tinker.RestClient, RestClient),
}
METHODS = [
    (name, method)
    for name, (theirs, _) in CLASSES.items()
    for method in sorted(vars(theirs))
    if not method.startswith("_") and (callable(getattr(theirs, method)) or method == "holder")
]


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

    assert parameters(mine) == parameters(getattr(theirs, method))


def test_nothing_is_refused_that_tinker_does_not_have():
    for place in unsupported.METHODS:
        owner, method = place.split(".")
        assert hasattr(CLASSES[owner][0], method)


def test_both_call_styles_of_training_requests(client: TrainingClient, datum, adam):
    async def old_style() -> float:
        future = await client.forward_backward_async([datum(0)], "cross_entropy")
        step = await client.optim_step_async(adam())
        await step.result_async()
        result = await future
        assert await future is result  # may be awaited again
        return result.metrics["loss:sum"]

    async def new_style() -> float:
        future = client.forward([datum(0)], "cross_entropy")
        return (await future).metrics["loss:sum"]

    before = asyncio.run(old_style())
    assert asyncio.run(new_style()) < before
    assert client.forward([datum(0)], "cross_entropy").result().metrics["loss:sum"] < before


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
    assert asyncio.run(awaited()) is client
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
    assert [(m.model_name, m.max_context_length, m.trainable) for m in models] == [("tiny", 32768, True)]


def test_a_closed_service_refuses_requests(service: ServiceClient, client: TrainingClient, datum):
    with service:
        pending = client.forward([datum(0)], "cross_entropy")
    assert pending.result().metrics
    with pytest.raises(RuntimeError, match="closed"):
        client.forward([datum(0)], "cross_entropy")


@pytest.mark.parametrize("option", [{"base_url": "http://x"}, {"api_key": "k"}])
def test_a_server_address_is_refused(option):
    with pytest.raises(NotImplementedError, match="connect"):
        ServiceClient(**option)


def test_unsupported_options_are_refused_by_name(service: ServiceClient, client: TrainingClient, datum, tokens):
    prompt, params = tinker.ModelInput.from_ints(tokens(0, 3)), tinker.SamplingParams(max_tokens=1)
    sampler = client.save_weights_and_get_sampling_client()
    for name, call in {
        "inflight": lambda: client.save_weights_and_get_sampling_client(kind="inflight"),
        "Dimuon": lambda: client.optim_step(tinker.DimuonParams(learning_rate=1e-3)),
        "DimuonOptimizerConfig": lambda: service.create_lora_training_client(
            "tiny", optimizer=tinker.DimuonOptimizerConfig()
        ),
        "prompt_alt_tokens_k": lambda: sampler.sample(prompt, 1, params, prompt_alt_tokens_k=1),
        "record_stability_info": lambda: service.create_sampling_client(base_model="tiny", record_stability_info=True),
        "stable_reinforce": lambda: client.forward([datum(0)], "stable_reinforce").result(),
    }.items():
        with pytest.raises(NotImplementedError, match=name):
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

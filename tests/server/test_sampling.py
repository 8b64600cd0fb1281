"""The unmodified tinker client samples over HTTP."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tinker
import torch
from tinker.proto import tinker_public_pb2 as messages

from tests.server.test_sessions import answer, new_model, running
from tinkerloop.cli.chat import Chat, talk
from tinkerloop.cli.main import main
from tinkerloop.local import ServiceClient
from tinkerloop.local.client import sampling_client
from tinkerloop.local.runtime.engine import Sampler
from tinkerloop.local.runtime.sampling_requests import SampleCall, answer_calls
from tinkerloop.loop.futures import resolve
from tinkerloop.lost_server import is_lost
from tinkerloop.renderers import get_renderer
from tinkerloop.server.service import TinkerService
from tinkerloop.tokenizers import get_tokenizer

PROMPT = tinker.ModelInput.from_ints([72, 101, 108, 108, 111])


@pytest.fixture
def sampler(service: tinker.ServiceClient) -> tinker.SamplingClient:
    return resolve(service.create_sampling_client(base_model="tiny"))


@pytest.fixture
def sampler_in_process(tmp_path):
    with ServiceClient(root=tmp_path, device="cpu") as service:
        yield service.create_sampling_client(base_model="tiny")


def test_samples_with_a_seed_are_those_of_the_engine(sampler, sampler_in_process):
    params = tinker.SamplingParams(max_tokens=8, seed=5, temperature=0.8, top_k=50, top_p=0.9)
    ours, theirs = (s.sample(PROMPT, 3, params).result().sequences for s in (sampler, sampler_in_process))
    assert [s.tokens for s in ours] == [s.tokens for s in theirs]
    assert [s.logprobs for s in ours] == [s.logprobs for s in theirs]
    assert len({s.sequence_id for s in ours}) == 3


@pytest.mark.parametrize("stop", [[], [10], "e", ["x", "e"]])
def test_stop_tokens_and_stop_strings_end_a_sample(sampler, sampler_in_process, stop):
    params = tinker.SamplingParams(max_tokens=20, seed=1, stop=stop)
    ours, theirs = (s.sample(PROMPT, 4, params).result().sequences for s in (sampler, sampler_in_process))
    assert [(s.tokens, s.stop_reason) for s in ours] == [(s.tokens, s.stop_reason) for s in theirs]


def test_logprobs_of_the_prompt_and_the_most_likely_tokens_arrive(sampler, sampler_in_process):
    params = tinker.SamplingParams(max_tokens=2, seed=1)
    targets = tinker.TensorData.from_torch_sparse(torch.tensor([[7] + [-1] * 9] * 2 + [[-1] * 10] * 2), pad_value=-1)
    options = {"include_prompt_logprobs": True, "topk_prompt_logprobs": 3, "topk_sample_logprobs": 2}
    ours, theirs = (
        s.sample(PROMPT, 1, params, target_prompt_logprobs=targets, **options).result()
        for s in (sampler, sampler_in_process)
    )
    assert ours.prompt_logprobs == theirs.prompt_logprobs
    assert ours.prompt_logprobs[0] is None
    assert ours.topk_prompt_logprobs == theirs.topk_prompt_logprobs
    assert ours.sequences[0].topk_logprobs == theirs.sequences[0].topk_logprobs
    expected = np.zeros((4, 10), np.float32)  # only the listed cells have a value
    expected[:2, 0] = theirs.target_prompt_logprobs.to_numpy()[:2, 0]
    np.testing.assert_array_equal(ours.target_prompt_logprobs.to_numpy(), expected)


def test_chat_samples_from_a_server(url, sampler_in_process, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    command = ["chat", "tiny", "--service", url, "--tokenizer", "tiny", "--renderer", "qwen3", "--max-tokens", "4"]
    assert main([*command, "--temperature", "0"]) == 0
    over_http = capsys.readouterr().out
    renderer = get_renderer("qwen3", get_tokenizer("tiny"))
    params = tinker.SamplingParams(max_tokens=4, temperature=0, stop=renderer.get_stop_sequences())
    in_process = io.StringIO()
    talk(Chat(sampler_in_process, renderer, params), ["hello\n"], in_process)
    assert over_http == in_process.getvalue()


def test_compute_logprobs_is_that_of_the_engine(sampler, sampler_in_process):
    assert sampler.compute_logprobs(PROMPT).result() == sampler_in_process.compute_logprobs(PROMPT).result()


def test_a_snapshot_keeps_its_weights_while_training_goes_on(client, datum):
    before = resolve(client.save_weights_and_get_sampling_client())
    first = before.compute_logprobs(PROMPT).result()
    for step in range(2):
        client.forward_backward([datum(step)], "cross_entropy")
        client.optim_step(tinker.AdamParams(learning_rate=0.1)).result()
    after = resolve(client.save_weights_and_get_sampling_client())
    assert before.compute_logprobs(PROMPT).result() == first
    assert after.compute_logprobs(PROMPT).result() != first
    assert after.get_base_model() == "tiny"


def test_a_saved_checkpoint_can_be_sampled_from(service, client, datum):
    client.forward_backward([datum(1)], "cross_entropy")
    client.optim_step(tinker.AdamParams(learning_rate=0.1))
    path = client.save_weights_for_sampler("trained").result().path
    sampler = resolve(service.create_sampling_client(model_path=path))
    snapshot = resolve(client.save_weights_and_get_sampling_client())
    assert sampler.compute_logprobs(PROMPT).result() == snapshot.compute_logprobs(PROMPT).result()


@pytest.mark.parametrize("saved", [False, True])
def test_calls_of_several_users_with_the_same_weights_are_computed_together(saved, tmp_path, monkeypatch):
    sizes: list[int] = []

    def counted(sampler: Sampler, calls: Sequence[SampleCall]) -> list[Any]:
        sizes.append(len(calls))
        return answer_calls(sampler, calls)

    monkeypatch.setattr(sampling_client, "answer_calls", counted)

    async def sampled(service: TinkerService, samplers: dict[int, str], number: int) -> list[tuple[bytes, bytes]]:
        """Queue a call for each sampler, then let the engine execute them. Return tokens and log-probabilities."""
        released, names = threading.Event(), []
        service.engine.queue.submit(released.wait)
        for seed, sampler in samplers.items():
            params = {"max_tokens": 8 + seed, "seed": seed}
            body = {"sampling_session_id": sampler, "prompt": PROMPT.model_dump(), "sampling_params": params}
            names.append(service.sample({**body, "seq_id": number})[0])
        released.set()
        bodies = [found.body for name in names if (found := await service.fetch(name, 60)) is not None]
        sequences = [messages.SampleResponse.FromString(body).sequences[0] for body in bodies]
        return [(sequence.tokens, sequence.logprobs) for sequence in sequences]

    async def go() -> None:
        async with running(tmp_path) as service:
            weights = {"base_model": "tiny"}
            if saved:
                model = await new_model(service, service.create_session({}))
                name = service.save_weights_for_sampler({"model_id": model, "seq_id": 1, "path": "shared"})
                weights = {"model_path": json.loads(await answer(service, name))["path"]}
            samplers: dict[int, str] = {}
            for seed in range(5):
                body = {"session_id": service.create_session({}), "sampling_session_seq_id": 0, **weights}
                samplers[seed] = await service.create_sampler(body) or ""
            together = await sampled(service, samplers, 0)
            assert sizes == [5]
            assert together == [(await sampled(service, {seed: name}, 1))[0] for seed, name in samplers.items()]

    asyncio.run(go())


def test_a_session_has_at_most_so_many_samplers_and_the_least_recently_used_one_goes(tmp_path):
    from tinkerloop.server.running import ServerOptions, background_server
    from tinkerloop.server.sessions import ServerLimits

    options = ServerOptions({"tiny": "tiny"}, root=tmp_path, device="cpu", limits=ServerLimits(samplers=2))
    with background_server(options) as url, tinker.ServiceClient(base_url=url, api_key="tml-key") as service:
        samplers = [resolve(service.create_sampling_client(base_model="tiny")) for _ in range(2)]
        samplers[0].compute_logprobs(PROMPT).result()
        resolve(service.create_sampling_client(base_model="tiny"))
        samplers[0].compute_logprobs(PROMPT).result()
        with pytest.raises(tinker.RequestFailedError, match="was freed: the server keeps the") as freed:
            samplers[1].compute_logprobs(PROMPT).result()
    assert not is_lost(freed.value)  # a retry would begin the run again, and free samplers again

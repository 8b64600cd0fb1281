"""Futures of clients, as newer versions of tinker return them, in place of clients: used without a FutureWarning."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Iterator

import pytest
import tinker

import tinkerloop
from tinkerloop.callbacks import Checkpoint, Evaluate, nll, sampled
from tinkerloop.loop import Checkpoints, Loop, mark_opened
from tinkerloop.renderers import get_renderer
from tinkerloop.rollouts import Rollouts, one_turn, reference_kl, run_episode

PROMPT, PARAMS = tinker.ModelInput.from_ints([1, 2]), tinker.SamplingParams(max_tokens=2)


@pytest.fixture(autouse=True)
def no_future_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        yield


def test_a_loop_trains_evaluates_saves_and_resumes(service, datum, tmp_path):
    def score(sampler):
        return {"replies": float(len(sampler.sample(PROMPT, 1, PARAMS).result().sequences))}

    def trained(client, steps):
        loop = Loop(
            client,
            [[datum(1)]] * 4,
            steps=steps,
            callbacks=[
                Evaluate("test", nll([datum(2)]), every=1),
                Evaluate("sampled", sampled(score), every=1),
                Checkpoint(every=1, sampler=True),
            ],
            checkpoints=checkpoints,
            record=checkpoints.latest(),
        )
        return loop.run().step

    checkpoints = Checkpoints(tmp_path)
    assert trained(service.create_lora_training_client("tiny", rank=4), 2) == 2
    record = checkpoints.latest()
    assert record is not None
    client = service.create_training_client_from_state_with_optimizer(record.path)
    assert trained(mark_opened(client, record), 4) == 4


async def environment(task, seed):
    async def score(reply):
        return float(sum(reply.ids) % 7)

    return one_turn([{"role": "user", "content": task}], score)


def renderer():
    return get_renderer("qwen3_instruct", tinkerloop.get_tokenizer("tiny"))


def test_an_episode_is_sampled(service):
    async def sampled_episode():
        client, reference = (service.create_sampling_client(base_model="tiny") for _ in range(2))
        one = await environment("a task", 0)
        return await run_episode(one, client, renderer(), sampling_params=PARAMS, seed=0, reference=reference)

    (segment,) = asyncio.run(sampled_episode()).segments
    assert segment.reference_logprobs == pytest.approx(segment.logprobs)


def test_rollouts_sample_and_train(service, tmp_path):
    client = service.create_lora_training_client("tiny", rank=4)
    rollouts = Rollouts(
        client,
        ["a task"],
        environment,
        renderer(),
        groups=1,
        group_size=2,
        sampling_params=PARAMS,
        log=tmp_path / "rollouts.jsonl",
        reference=service.create_sampling_client(base_model="tiny"),
        advantages=reference_kl(0.1),
        constant_groups="keep",
    )
    assert Loop(client, rollouts, steps=1, loss_fn="importance_sampling", ahead=0).run().step == 1
    rollouts.close()

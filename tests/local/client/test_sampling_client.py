"""Sampling: seeds, stops, reported log-probabilities, and snapshots that later training does not change."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import tinker

from tests.local.sampling import sample
from tinkerloop.client_versions import has_field
from tinkerloop.local import ServiceClient, TrainingClient
from tinkerloop.local.nn.layers.head import CHUNK_ELEMENTS


def test_equal_seeds_repeat_and_the_samples_of_one_call_differ(sampler, tokens):
    first, again, other = (sample(sampler, tokens(0, 5), 3, max_tokens=12, seed=s, stop=[]) for s in (1, 1, 2))
    assert [s.tokens for s in first] == [s.tokens for s in again]
    assert len({tuple(s.tokens) for s in [*first, *other]}) == 6


def test_lengths_stops_and_reasons(sampler, tokens):
    prompt = tokens(0, 5)
    free = sample(sampler, prompt, max_tokens=20, temperature=0, stop=[])[0]
    assert (len(free.tokens), free.stop_reason) == (20, "length")
    by_id = sample(sampler, prompt, max_tokens=20, temperature=0, stop=[free.tokens[3]])[0]
    end = free.tokens.index(free.tokens[3]) + 1
    assert (by_id.tokens, by_id.stop_reason) == (free.tokens[:end], "stop")
    assert len(by_id.logprobs) == len(by_id.tokens)


def test_a_stop_text_ends_with_the_token_that_completes_it_and_an_empty_list_never_stops(sampler, tokens):
    prompt = tokens(0, 5)
    free = sample(sampler, prompt, max_tokens=40, temperature=0, stop=[])[0]
    decode = sampler.get_tokenizer().decode
    text = decode(free.tokens)
    stop = next(text[i : i + 2] for i in range(3, len(text) - 2) if text[i : i + 2].isascii())
    for given in (stop, ["never there", stop]):
        stopped = sample(sampler, prompt, max_tokens=40, temperature=0, stop=given)[0]
        assert stopped.stop_reason == "stop"
        assert free.tokens[: len(stopped.tokens)] == stopped.tokens
        assert stop in decode(stopped.tokens)
        assert stop not in decode(stopped.tokens[:-1])
    end = sampler.get_tokenizer().eos_token_id
    biased = sample(sampler, [*prompt, end], max_tokens=2, temperature=0, stop=[])[0]
    assert (len(biased.tokens), biased.stop_reason) == (2, "length")


def test_sampled_logprobs_are_those_of_temperature_1_whatever_was_drawn_from(sampler, tokens):
    prompt = tokens(0, 7)
    for params in ({"temperature": 0}, {"temperature": 0.3, "top_k": 5}, {"temperature": 2.0, "top_p": 0.5}):
        drawn = sample(sampler, prompt, max_tokens=8, seed=3, stop=[], **params)[0]
        scored = sampler.compute_logprobs(tinker.ModelInput.from_ints(prompt + drawn.tokens)).result()
        np.testing.assert_allclose(drawn.logprobs, scored[len(prompt) :], atol=1e-4)


def test_top_k_beyond_the_vocabulary_takes_all(sampler, tokens):
    every = {"max_tokens": 8, "seed": 1, "stop": []}
    assert (
        sample(sampler, tokens(0, 5), top_k=2**70, **every)[0].tokens
        == sample(sampler, tokens(0, 5), **every)[0].tokens
    )


@pytest.mark.parametrize("temperature", [1e-20, 1e-45, 1e-60])
def test_temperatures_near_0_are_greedy(sampler, tokens, temperature):
    drawn, greedy = (sample(sampler, tokens(0, 5), max_tokens=8, stop=[], temperature=t) for t in (temperature, 0))
    assert drawn[0].tokens == greedy[0].tokens


def test_top_k_1_is_greedy(sampler, tokens):
    greedy, narrow = (
        sample(sampler, tokens(0, 5), max_tokens=9, stop=[], **p)[0] for p in ({"temperature": 0}, {"top_k": 1})
    )
    assert greedy.tokens == narrow.tokens


def test_concurrent_calls_give_what_single_calls_give(sampler, tokens):
    prompts = [tokens(i, 3 + 5 * i) for i in range(6)]
    alone = [sample(sampler, p, max_tokens=10, temperature=0, stop=[])[0].tokens for p in prompts]
    params = tinker.SamplingParams(max_tokens=10, temperature=0, stop=[])

    async def together():
        calls = [sampler.sample_async(tinker.ModelInput.from_ints(p), 1, params) for p in prompts]
        return [response.sequences[0].tokens for response in await asyncio.gather(*calls)]

    assert asyncio.run(together()) == alone


@pytest.mark.skipif(
    not has_field(tinker.SampleResponse, "target_prompt_logprobs"), reason="tinker < 0.30 has no field for the result"
)
def test_prompt_scores_of_every_kind_agree(sampler, tokens):
    ids = tokens(0, 6)
    prompt = tinker.ModelInput.from_ints(ids)
    scored = sampler.compute_logprobs(prompt).result()
    targets = np.array([[t, -1] for t in ids[1:]])
    response = sampler.sample(
        prompt,
        1,
        tinker.SamplingParams(max_tokens=2, seed=0),
        include_prompt_logprobs=True,
        topk_prompt_logprobs=3,
        topk_sample_logprobs=2,
        target_prompt_logprobs=tinker.TensorData.from_numpy(targets),
    ).result()
    assert scored[0] is None
    assert len(scored) == 6
    assert response.prompt_logprobs == scored
    found = response.target_prompt_logprobs.to_numpy()
    np.testing.assert_allclose(found[:, 0], scored[1:], rtol=1e-6)
    assert (found[:, 1] == 0).all()
    assert [len(row) for row in response.topk_prompt_logprobs[1:]] == [3] * 5
    assert [len(row) for row in response.sequences[0].topk_logprobs] == [2] * len(response.sequences[0].tokens)
    assert sampler.compute_logprobs(prompt, prompt_logprobs_last_n=2).result() == scored[-2:]


def test_a_snapshot_does_not_follow_later_training(client: TrainingClient, datum, adam, tokens):
    prompt = tinker.ModelInput.from_ints(tokens(0, 9))
    snapshot = client.save_weights_and_get_sampling_client()
    before = snapshot.compute_logprobs(prompt).result()
    client.forward_backward([datum(0)], "cross_entropy")
    client.optim_step(adam(1e-2)).result()
    assert snapshot.compute_logprobs(prompt).result() == before
    assert client.save_weights_and_get_sampling_client().compute_logprobs(prompt).result() != before


@pytest.mark.parametrize("kind", ["every weight", "not folded", "large vocabulary"])
def test_a_snapshot_taken_after_a_forward_does_not_follow_either(kind, tmp_path, datum, adam, tokens, monkeypatch):
    if kind == "not folded":
        monkeypatch.setattr("tinkerloop.local.nn.model.FOLD_LIMIT", 0)
    if kind == "large vocabulary":
        monkeypatch.setitem(CHUNK_ELEMENTS, "cpu", 4096)
    service = ServiceClient(root=tmp_path, device="cpu")
    client = service.create_lora_training_client("tiny", rank=0 if kind == "every weight" else 8)
    prompt = tinker.ModelInput.from_ints(tokens(0, 6))
    client.forward_backward([datum(0)], "cross_entropy")
    client.optim_step(adam(1e-2))
    client.forward_backward([datum(0)], "cross_entropy")
    client.forward([datum(0)], "cross_entropy")
    sampler = client.save_weights_and_get_sampling_client()
    client.optim_step(adam(1e-1))
    found = sampler.compute_logprobs(prompt).result()
    trained = client.save_weights_and_get_sampling_client().compute_logprobs(prompt).result()
    assert found == sampler.compute_logprobs(prompt).result() != trained


def test_a_request_is_answered_even_when_its_clients_are_gone(tmp_path, tokens):
    prompt = tinker.ModelInput.from_ints(tokens(0, 5))
    future = (
        ServiceClient(root=tmp_path, device="cpu").create_sampling_client(base_model="tiny").compute_logprobs(prompt)
    )
    assert len(future.result(timeout=60)) == 5

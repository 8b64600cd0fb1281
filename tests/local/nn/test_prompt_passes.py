"""Prompts in sampling: several in one pass, long ones in several passes, and starts known from earlier prompts."""

from __future__ import annotations

import numpy as np
import pytest
import tinker
import torch
from torch.nn.functional import scaled_dot_product_attention

from tests.local.conftest import tokens_of
from tests.local.tiny_models import write_model
from tinkerloop.local import SamplingClient, ServiceClient
from tinkerloop.local.nn import prompt_passes
from tinkerloop.local.nn.layers.attention_prompts import BLOCK, prompt_attention
from tinkerloop.local.nn.layers.lora import LoRALinear
from tinkerloop.local.nn.model import Model
from tinkerloop.local.nn.prefix_store import PrefixStore
from tinkerloop.local.nn.replica import Replica
from tinkerloop.local.nn.row_blocks import prompt_sizes

Bits = list[tuple[list[int], list[float]]]


def model_of(sampler: SamplingClient) -> Model:
    return sampler._sampler.model


def sample(sampler: SamplingClient, *prompts: list[int]) -> list[Bits]:
    """Sample from all prompts at once."""
    params = tinker.SamplingParams(max_tokens=3, seed=5, stop=[])
    answers = [sampler.sample(tinker.ModelInput.from_ints(prompt), 2, params) for prompt in prompts]
    return [[(list(s.tokens), list(s.logprobs or ())) for s in answer.result().sequences] for answer in answers]


@pytest.fixture
def passes(monkeypatch) -> list[list[int]]:
    """For each pass over prompts, the lengths of its sequences."""
    seen: list[list[int]] = []
    hidden = Replica.hidden

    def watched(self, batch, cache=None, cache_mask=None):
        if cache_mask is not None and cache_mask.dtype == torch.int32:
            seen.append(batch.lengths)
        return hidden(self, batch, cache, cache_mask)

    monkeypatch.setattr(Replica, "hidden", watched)
    return seen


@pytest.fixture
def most(sampler) -> int:
    """The largest number of tokens of a pass."""
    sample(sampler, [1, 2, 3])
    totals = prompt_sizes(model_of(sampler))
    if not totals:
        pytest.skip("on this processor the bits of a prompt depend on the other prompts of its pass")
    model_of(sampler).prefixes.clear()
    return totals[-1]


def test_a_model_with_few_learned_positions_is_sampled_up_to_the_last(tmp_path):
    name = str(write_model("gpt2", tmp_path / "model", n_positions=20, max_position_embeddings=20))
    sampler = ServiceClient(root=tmp_path, device="cpu").create_sampling_client(base_model=name)
    prompts = [tokens_of(i, length) for i, length in enumerate((1, 17, 17, 9))]
    assert sample(sampler, *prompts) == [sample(sampler, prompt)[0] for prompt in prompts]


def test_every_place_of_a_pass_is_tried(sampler, most, monkeypatch):
    model, product = model_of(sampler), LoRALinear.product
    model.prompt_sizes.clear()

    def rounded(self: LoRALinear, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        y, x_a = product(self, x)
        if len(y) == most:
            y[most // 2] *= 1.000001
        return y, x_a

    monkeypatch.setattr(LoRALinear, "product", rounded)
    assert max(prompt_sizes(model)) < most


def test_short_prompts_share_passes(sampler, most, passes):
    sample(sampler, *(tokens_of(i, 20) for i in range(6)))
    assert len(passes) == -(-120 // most)


def test_a_long_prompt_is_divided_at_multiples_of_a_block(sampler, most, passes):
    sample(sampler, tokens_of(0, most), tokens_of(1, 5))
    assert passes[0][:2] == [5, most - BLOCK]
    assert passes[1][0] == BLOCK


@pytest.mark.parametrize("window", [None, 1, 20, 100])
@pytest.mark.parametrize("start", [0, BLOCK, 2 * BLOCK])
def test_attention_of_a_part_of_a_prompt_is_that_of_the_whole(start, window):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, start + 70, 16, generator=generator) for heads in (4, 2, 2))
    position = torch.arange(start + 70)
    visible = position <= position[:, None]
    if window is not None:
        visible &= position > position[:, None] - window
    expected = scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=0.3, enable_gqa=True)[:, :, start:]
    found = prompt_attention(q[:, :, start:], k, v, [70], [start + 70], 0.3, window)
    torch.testing.assert_close(found, expected.transpose(1, 2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [6, 10, 16])
def test_attention_has_the_same_bits_at_any_place_of_a_pass(size):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, BLOCK + 1, size, generator=generator) for heads in (3, 3, 3))
    alone = prompt_attention(q, k, v, [BLOCK + 1], [BLOCK + 1], 0.3, None)
    for before in (1, 2, 3, 5):
        row = [torch.cat([x[:, :, :before], x], 2) for x in (q, k, v)]
        lengths = [before, BLOCK + 1]
        assert torch.equal(prompt_attention(*row, lengths, lengths, 0.3, None)[:, before:], alone)


def test_the_next_turn_of_an_episode_computes_only_what_is_new(sampler, most, passes):
    first = tokens_of(1, 3 * BLOCK + 10)
    sample(sampler, first)
    passes.clear()
    sample(sampler, first + tokens_of(2, 20))
    assert [lengths[0] for lengths in passes] == [10 + 20]


def test_a_prompt_that_is_repeated_computes_its_last_tokens_again(sampler, most, passes):
    prompt = tokens_of(1, 2 * BLOCK)
    once = sample(sampler, prompt)
    passes.clear()
    assert sample(sampler, prompt) == once
    assert [lengths[0] for lengths in passes] == [BLOCK]


@pytest.mark.parametrize("architecture", ["tiny", "mistral", "gemma2", "gpt2"])
def test_a_known_start_changes_no_bit(architecture, tmp_path):
    name = "tiny" if architecture == "tiny" else str(write_model(architecture, tmp_path / "model"))
    service = ServiceClient(root=tmp_path, device="cpu")
    sampler = service.create_sampling_client(base_model=name)
    shared = tokens_of(3, 2 * BLOCK + 30)
    prompts = [shared + tokens_of(i, length) for i, length in enumerate((1, 40, 90, 3))] + [shared[:100], shared]
    alone = []
    for prompt in prompts:
        model_of(sampler).prefixes.clear()
        alone += sample(sampler, prompt)
    assert [sample(sampler, prompt)[0] for prompt in prompts] == alone
    assert sample(sampler, *reversed(prompts)) == alone[::-1]
    assert model_of(sampler).prefixes.size or not prompt_sizes(model_of(sampler))


def test_starts_of_other_weights_are_forgotten(client):
    prompt = tokens_of(1, 2 * BLOCK + 1)
    before = sample(client.save_weights_and_get_sampling_client(), prompt)
    client.apply(lambda state: [tensor.normal_(0, 0.3) for tensor in state.weights.named.values()])
    sampler = client.save_weights_and_get_sampling_client()
    after = sample(sampler, prompt)
    assert after != before
    model_of(sampler).prefixes.clear()
    assert sample(sampler, prompt) == after


def block_of(size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.zeros(1, BLOCK, size), torch.zeros(1, BLOCK, size))]


def test_the_store_drops_the_ends_of_the_prompts_that_were_used_least_recently(tokens):
    bytes_of_a_block = 2 * BLOCK * 4
    store = PrefixStore(limit=4 * bytes_of_a_block)
    first, second, third = (torch.tensor(tokens(i, 2 * BLOCK + 1)).numpy() for i in range(3))
    store.add(first, lambda start: block_of(1))
    store.add(second, lambda start: block_of(1))
    assert len(store.find(first)) == 2
    store.add(third[: BLOCK + 1], lambda start: block_of(1))
    assert [len(store.find(prompt)) for prompt in (first, second, third)] == [2, 1, 1]
    assert store.size == 4 * bytes_of_a_block


def test_the_store_never_holds_more_than_its_limit_and_keeps_the_start_of_a_prompt(tokens):
    bytes_of_a_block = 2 * BLOCK * 4
    store, sizes = PrefixStore(limit=4 * bytes_of_a_block), []
    prompt = np.array(tokens(0, 8 * BLOCK + 1))

    def block(start: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        sizes.append(store.size)
        return block_of(1)

    for turn in (2, 4, 6, 8):
        store.add(prompt[: turn * BLOCK + 1], block)
        assert len(store.find(prompt)) == min(turn, 4)
    assert max(sizes) <= store.limit


def test_where_no_number_of_tokens_has_equal_bits_each_prompt_is_computed_alone(sampler, passes, monkeypatch):
    monkeypatch.setattr(prompt_passes, "prompt_sizes", lambda model: ())
    sample(sampler, tokens_of(0, 5), tokens_of(1, 7))
    assert sorted(passes[-2:]) == [[5], [7]]

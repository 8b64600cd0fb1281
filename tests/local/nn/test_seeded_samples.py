"""Samples with a seed: the bits do not depend on what else is sampled, in which order, or in which batch."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import tinker
import torch

from tests.local.tiny_models import write_model
from tinkerloop.local import SamplingClient, ServiceClient
from tinkerloop.local.nn import generation
from tinkerloop.local.nn.layers import attention
from tinkerloop.local.nn.layers.attention_decoding import decoding_attention, decoding_mask
from tinkerloop.local.nn.layers.lora import LoRALinear
from tinkerloop.local.nn.model_loading import load_model
from tinkerloop.local.nn.row_blocks import block_sizes
from tinkerloop.local.runtime.request_future import RequestFuture

CALLS = 9
ARCHITECTURES = ["tiny", "tiny-vl", "qwen3", "mistral", "gemma2", "gpt2", "qwen3_moe", "qwen3_5_text"]


@pytest.fixture(params=ARCHITECTURES)
def architecture(request, tmp_path) -> str:
    name: str = request.param
    return name if name.startswith("tiny") else str(write_model(name, tmp_path / name))


def trained_sampler(service: ServiceClient, base_model: str) -> SamplingClient:
    client = service.create_lora_training_client(base_model, rank=4, train_unembed=False)
    client.apply(lambda state: [tensor.normal_(0, 0.1) for tensor in state.weights.named.values()])
    return client.save_weights_and_get_sampling_client()


def submit(sampler: SamplingClient, call: int, seeded: bool = True) -> RequestFuture[tinker.SampleResponse]:
    """Submit one of `CALLS` calls, which have different prompts, lengths, numbers of samples and temperatures."""
    rng = random.Random(f"call/{call}")
    prompt = tinker.ModelInput.from_ints(rng.choices(range(200), k=rng.choice([1, 5, 17, 40, 125])))
    params = tinker.SamplingParams(
        max_tokens=rng.randint(1, 12),
        seed=call if seeded else None,
        temperature=(1.0, 0.0, 0.7)[call % 3],
        top_p=(1.0, 0.9)[call % 2],
        stop=[],
    )
    return sampler.sample(prompt, 1 + call % 3, params)


def bits(answer: RequestFuture[tinker.SampleResponse]) -> list[tuple[list[int], list[float]]]:
    return [(list(sequence.tokens), list(sequence.logprobs or ())) for sequence in answer.result().sequences]


def test_samples_with_a_seed_have_the_same_bits_alone_and_beside_others(architecture, tmp_path):
    sampler = trained_sampler(ServiceClient(root=tmp_path, device="cpu"), architecture)
    alone = [bits(submit(sampler, call)) for call in range(CALLS)]
    together = [submit(sampler, call) for call in range(CALLS)]
    assert [bits(answer) for answer in together] == alone
    order = random.Random("order").sample(range(CALLS), CALLS)
    answers = {}
    for call in order:
        submit(sampler, call, seeded=False)
        answers[call] = submit(sampler, call)
        if call % 4 == 0:
            answers[call].result()  # the next calls are executed after this one, not with it
    assert [bits(answers[call]) for call in range(CALLS)] == alone


@pytest.mark.parametrize("part", [slice(0, 1), slice(-1, None)], ids=["smallest", "largest"])
def test_samples_with_a_seed_have_the_same_bits_in_blocks_of_any_size(sampler, monkeypatch, part):
    alone = [bits(submit(sampler, call)) for call in range(CALLS)]
    sizes = block_sizes(sampler._sampler.model)
    monkeypatch.setattr(generation, "block_sizes", lambda model: sizes[part])  # the smallest uses places again
    assert [bits(answer) for answer in [submit(sampler, call) for call in range(CALLS)]] == alone


def test_the_last_request_is_computed_when_all_others_ended_at_once(sampler, monkeypatch, tokens):
    sizes = block_sizes(sampler._sampler.model)
    monkeypatch.setattr(generation, "block_sizes", lambda model: sizes[:3])
    prompt, params = tinker.ModelInput.from_ints(tokens(0, 5)), tinker.SamplingParams(max_tokens=2, seed=1, stop=[])
    samples = bits(sampler.sample(prompt, sizes[2] + 1, params))
    assert [len(drawn) for drawn, _ in samples] == [2] * (sizes[2] + 1)


def test_samples_with_a_seed_have_the_same_bits_where_no_block_has_equal_rows(sampler, monkeypatch):
    monkeypatch.setattr(generation, "block_sizes", lambda model: ())
    alone = [bits(submit(sampler, call)) for call in range(CALLS)]
    assert [bits(answer) for answer in [submit(sampler, call) for call in range(CALLS)]] == alone


@pytest.mark.parametrize("architecture", ["tiny", "gpt2"], indirect=True)
def test_samples_with_a_seed_have_the_same_bits_with_packed_weights_on_two_threads(architecture, tmp_path, monkeypatch):
    monkeypatch.setattr("tinkerloop.local.nn.model.PACK_FROM", 0)
    torch.set_num_threads(2)  # before the engine starts its thread, which keeps the number that it finds
    try:
        sampler = trained_sampler(ServiceClient(root=tmp_path, device="cpu"), architecture)
        alone = [bits(submit(sampler, call)) for call in range(CALLS)]
        assert [bits(answer) for answer in [submit(sampler, call) for call in range(CALLS)]] == alone
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize(("heads", "queries"), [(8, 1), (3, 3), (1, 7), (2, 4)])
def test_attention_in_decoding_has_the_same_bits_on_every_thread(heads, queries):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(size, generator=generator) for size in ((1, heads * queries, 6, 64), *[(6, heads, 128, 64)] * 2)
    )
    torch.set_num_threads(2)
    try:
        together = decoding_attention(q, k, v, decoding_mask([100] * 6), 0.1, None)
        for i in range(6):
            alone = decoding_attention(q[:, :, i : i + 1], k[i : i + 1], v[i : i + 1], decoding_mask([100]), 0.1, None)
            assert torch.equal(alone[0, 0], together[0, i])
    finally:
        torch.set_num_threads(1)


def round_products(monkeypatch: pytest.MonkeyPatch, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Apply `change` to the result of every product, as if the processor rounded in this way."""
    product = LoRALinear.product

    def changed(self: LoRALinear, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        y, x_a = product(self, x)
        return change(y), x_a

    monkeypatch.setattr(LoRALinear, "product", changed)


def test_numbers_of_rows_that_round_differently_are_not_used(monkeypatch):
    model = load_model("tiny", torch.device("cpu"), torch.float32)
    sizes = block_sizes(model)
    model.block_sizes.clear()
    round_products(monkeypatch, lambda y: y * 1.000001 if len(y) == 8 else y)
    assert block_sizes(model) == tuple(size for size in sizes if size != 8)


def test_no_block_is_used_where_the_place_of_a_row_changes_its_bits(monkeypatch):
    model = load_model("tiny", torch.device("cpu"), torch.float32)
    round_products(monkeypatch, lambda y: torch.cat([y[:-1], y[-1:] * 1.000001]))
    assert block_sizes(model) == ()


def test_numbers_of_rows_that_round_differently_with_many_keys_are_not_used(monkeypatch):
    model = load_model("tiny", torch.device("cpu"), torch.float32)
    sizes = block_sizes(model)
    model.block_sizes.clear()

    def attention_of(query: torch.Tensor, key: torch.Tensor, *args) -> torch.Tensor:
        result = decoding_attention(query, key, *args)
        return result * 1.000001 if len(key) == 8 and args[1].min() > 50 else result

    monkeypatch.setattr(attention, "decoding_attention", attention_of)
    assert block_sizes(model) == tuple(size for size in sizes if size != 8)


def test_one_row_is_no_block_in_16_bits_where_rounding_hides_its_own_kernel():
    assert 1 not in block_sizes(load_model("tiny", torch.device("cpu"), torch.bfloat16))


def test_weights_are_not_packed_where_the_number_of_threads_has_no_block(monkeypatch):
    monkeypatch.setattr("tinkerloop.local.nn.model.PACK_FROM", 0)
    model = load_model("tiny", torch.device("cpu"), torch.float32)
    if not block_sizes(model):
        pytest.skip("on this processor no block has equal rows")
    assert model.weights_packed
    model.block_sizes[torch.get_num_threads(), None] = ()
    assert block_sizes(model) == ()
    assert not model.weights_packed


def test_the_trial_of_packed_weights_runs_one_layer_of_each_kind_and_leaves_the_model_whole(monkeypatch):
    monkeypatch.setattr("tinkerloop.local.nn.model.PACK_FROM", 0)
    model = load_model("tiny", torch.device("cpu"), torch.float32)
    first, second = model.trunk.layers
    ran: list[torch.nn.Module] = []
    for layer in (first, second):
        layer.register_forward_hook(lambda layer, *_: ran.append(layer))
    block_sizes(model)
    assert first in ran
    assert second not in ran
    assert list(model.trunk.layers) == [first, second]

"""Gradient checkpointing gives the same results with less memory; the choice follows an estimate and is logged."""

from __future__ import annotations

import logging

import pytest
import torch

from tests.local.tiny_models import write_model
from tinkerloop.local import ServiceClient
from tinkerloop.local.nn.layers import gradient_checkpointing
from tinkerloop.local.nn.layers.attention import MAX_BLOCKED
from tinkerloop.local.nn.layers.gradient_checkpointing import available_memory, saved_bytes
from tinkerloop.local.nn.parameters import TrainState


def gradient(state: TrainState) -> torch.Tensor:
    return state.gradient.clone()


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("architecture", ["qwen3", "gemma2", "gpt_oss", "deepseek_v3"])
def test_on_and_off_give_the_same_gradient_to_the_bit(tmp_path, datum, adam, architecture: str, rank: int):
    folder = str(write_model(architecture, tmp_path / "base"))
    found = []
    for forced in (False, True):
        service = ServiceClient(root=tmp_path, device="cpu", gradient_checkpointing=forced)
        client = service.create_lora_training_client(folder, rank=rank)
        for step in range(2):
            output = client.forward_backward([datum(step, 30), datum(step + 9, 7)], "cross_entropy")
            passed = client.apply(gradient)
            client.optim_step(adam(1e-2))
        found.append((output.result().metrics, passed.result()))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


def test_it_keeps_less(client, datum):
    client.forward_backward([datum(0)], "cross_entropy").result()
    choice = client._run.model.gradient_checkpointing

    def kept(recompute: bool) -> int:
        choice.recompute = recompute
        return saved_bytes(lambda: choice._run(100))

    assert kept(True) < 0.3 * kept(False)


def test_it_is_chosen_by_the_memory_available_and_logged(service, datum, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "tinkerloop.local.nn.layers.gradient_checkpointing")
    monkeypatch.setattr(gradient_checkpointing, "available_memory", lambda device: 10_000_000)
    client = service.create_lora_training_client("tiny", rank=8)
    for length in (50, 40, 1500, 1500, 50):
        client.forward_backward([datum(0, length)], "cross_entropy").result()
    ours = [record for record in caplog.records if record.name == gradient_checkpointing.__name__]
    said = [(record.levelname, record.getMessage()) for record in ours]
    assert [level for level, _ in said] == ["INFO", "WARNING"]
    assert "checkpointing off: the activations of 50 tokens" in said[0][1]
    assert "checkpointing on: the activations of 1500 tokens" in said[1][1]
    assert "0.01 GB of memory are available" in said[1][1]


def growth(client, datum, short: int, long: int) -> tuple[float, int]:
    """Return how much more memory a sequence of length `long` needs than one of `short`: as estimated, and in truth.

    Bytes that are kept once cancel in the difference.
    """
    client.forward_backward([datum(0)], "cross_entropy").result()
    choice = client._run.model.gradient_checkpointing
    (cost,) = choice._costs.values()
    return cost(long) - cost(short), saved_bytes(lambda: choice._run(long)) - saved_bytes(lambda: choice._run(short))


def test_the_estimate_is_what_a_pass_keeps(client, datum):
    estimated, kept = growth(client, datum, MAX_BLOCKED + 100, MAX_BLOCKED + 500)
    assert estimated == pytest.approx(kept, rel=0.05)


def test_the_estimate_is_not_less_than_what_attention_in_blocks_keeps(client, datum):
    estimated, kept = growth(client, datum, 300, 800)
    assert 0.95 * kept < estimated < 1.5 * kept


def test_the_memory_available_is_a_part_of_the_machines():
    import psutil

    assert 0 < available_memory(torch.device("cpu")) < psutil.virtual_memory().total

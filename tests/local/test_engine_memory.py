"""The estimate of a run's memory is near the measured peak, and its numbers are those of the engine."""

from __future__ import annotations

import doctest
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.local.tiny_models import CONFIGS, write_model
from tinkerloop import engine_memory
from tinkerloop.engine_memory import run_memory
from tinkerloop.errors import PlanError
from tinkerloop.local import ServiceClient
from tinkerloop.local.nn import model
from tinkerloop.local.nn.inputs import Input, PackedBatch
from tinkerloop.local.nn.layers import head
from tinkerloop.local.nn.layers.gradient_checkpointing import saved_bytes
from tinkerloop.local.runtime import engine, replica_threads

SIZES = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "head_dim": 32, "vocab_size": 600}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 256}

MEASURED = """
import sys
import numpy, tinker
from tinkerloop.datum import make_datum
from tinkerloop.local import ServiceClient

def resident(key):
    lines = open("/proc/self/status")
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

def train(folder, length, rank):
    client = ServiceClient(root=sys.argv[1], device="cpu").create_lora_training_client(folder, rank=rank)
    for _ in range(2):
        datum = make_datum(numpy.arange(length + 1) % 250 + 1, numpy.ones(length + 1))
        client.forward_backward([datum], "cross_entropy").result()
        client.optim_step(tinker.AdamParams(learning_rate=1e-4)).result()

train("tiny", 40, 2)  # so that what is loaded once does not count
before = resident("VmRSS")
train(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
print(resident("VmHWM") - before)
"""


def test_the_examples_of_the_module():
    assert doctest.testmod(engine_memory).failed == 0


def test_the_repeated_numbers_are_those_of_the_engine():
    assert engine_memory.TOKEN_BUDGET == engine.TOKEN_BUDGET
    assert (engine_memory.LOGITS_AT_A_TIME, engine_memory.TILE) == (head.CHUNK_ELEMENTS, head.TILE)
    assert (engine_memory.MIN_ROWS, engine_memory.FOLD_LIMIT) == (head.MIN_CHUNK, model.FOLD_LIMIT)
    assert engine.TOKEN_BUDGET["cpu"] // replica_threads.REPLICA_BUDGET == engine_memory.MOST_REPLICAS


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "qwen3_moe"])
def test_the_activations_are_what_autograd_keeps(tmp_path, architecture, rank):
    folder = str(write_model(architecture, tmp_path, **SIZES | EXPERTS, max_position_embeddings=1024))
    client = ServiceClient(root=tmp_path, device="cpu").create_lora_training_client(folder, rank=rank)
    client.apply(lambda state: client._run.model.bind(client._run.spec, state.weights, state.scratch(1))).result()
    run = client._run.model.hidden
    kept = [
        saved_bytes(lambda n=n: run(PackedBatch.of([Input(np.ones(n, np.int64))], torch.device("cpu"))))
        for n in (200, 700)
    ]
    estimated = [run_memory(folder, [n], rank, threads=1).activations for n in (200, 700)]
    assert estimated[1] - estimated[0] == pytest.approx(kept[1] - kept[0], rel=0.08)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.soak), 16])
def test_the_estimate_is_within_a_fifth_of_the_measured_peak(tmp_path, rank):
    sizes = SIZES | {"hidden_size": 320, "intermediate_size": 1280, "num_hidden_layers": 8, "vocab_size": 20000}
    folder = str(write_model("qwen3", tmp_path, **sizes, max_position_embeddings=1024))
    command = [sys.executable, "-c", MEASURED, folder, "400", str(rank)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run_memory(folder, [400], rank, threads=1).total == pytest.approx(int(done.stdout), rel=0.2)


def test_longer_datums_and_more_threads_take_more_memory():
    config = SIZES | {"model_type": "llama", "num_attention_heads": 4}
    assert run_memory(config, [100] * 40).tokens == 2048
    assert run_memory(config, [100] * 40, device="cuda:1").tokens == 4000
    assert run_memory(config, [5000] * 2 + [10], threads=1).tokens == 5000
    assert run_memory(config, [5000] * 2 + [10], threads=8).tokens == 10_010


def test_a_model_with_other_layers_is_not_guessed():
    with pytest.raises(NotImplementedError, match="layers of 'gemma2'"):
        run_memory(CONFIGS["gemma2"] | SIZES | {"model_type": "gemma2"}, [100])


@pytest.mark.parametrize(("dtype", "rank"), [("int8", 32), ("int8", 0), ("", 32), ("", 0)])
def test_an_unknown_dtype_is_an_error(dtype, rank):
    with pytest.raises(PlanError, match=f"dtype='{dtype}'"):
        run_memory(SIZES | {"model_type": "llama"}, [100], rank, dtype=dtype)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"threads": 0}, "threads must be a whole number of at least 1, got 0"),
        ({"threads": -2}, "threads must be"),
        ({"rank": -3}, "rank must be a whole number of at least 0, got -3"),
        ({"rank": 2.5}, "rank must be"),
        ({"lengths": [-5, 0]}, "each of the lengths must be a whole number of at least 1, got -5"),
        ({"lengths": [float("nan")]}, "each of the lengths must be"),
    ],
    ids=str,
)
def test_a_number_out_of_range_is_an_error(given, message):
    with pytest.raises(PlanError, match=message):
        run_memory(SIZES | {"model_type": "llama"}, **({"lengths": [100]} | given))


def test_a_size_that_the_configuration_lacks_is_an_error():
    with pytest.raises(PlanError, match="has no 'num_attention_heads'"):
        run_memory(SIZES | {"model_type": "llama"}, [100])

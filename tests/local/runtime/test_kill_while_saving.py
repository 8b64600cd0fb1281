"""`kill -9` while saving: earlier checkpoints stay complete, and no half-written checkpoint is listed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from tinkerloop.local import RestClient, ServiceClient

# For every line on standard input, this program forks a child that saves endlessly. Imports happen before the forks.
SAVE_WITHOUT_END = """
import os, sys, torch
torch.set_num_threads(1)
from tinkerloop.local import ServiceClient
def save_without_end():
    client = ServiceClient(root=sys.argv[1], device="cpu").create_lora_training_client("tiny", rank=32)
    step = 0
    while True:
        step += 1
        client.apply(lambda s: (s.weights.flat.fill_(step), s.exp_avg.fill_(step), setattr(s, "step", step)))
        client.save_state("last", overwrite=True).result()
        print("saved", client.model_id, step, flush=True)
        client.save_state(f"at-{step}").result()
while sys.stdin.readline():
    child = os.fork()
    if not child:
        save_without_end()
    print("child", child, flush=True)
    os.waitpid(child, 0)
    print("dead", flush=True)
"""


@pytest.mark.parametrize("kills", [2, pytest.param(30, marks=pytest.mark.soak)])
def test_a_finished_save_survives_a_kill_at_any_moment_of_the_next(kills, tmp_path):
    rng = random.Random("kill")
    service = ServiceClient(root=tmp_path, device="cpu")
    command = [sys.executable, "-c", SAVE_WITHOUT_END, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(kills):
            process.stdin.write("go\n")
            process.stdin.flush()
            child = int(process.stdout.readline().split()[1])
            said = [process.stdout.readline()]
            time.sleep(rng.uniform(0, 0.05))
            os.kill(child, signal.SIGKILL)
            while not (line := process.stdout.readline()).startswith("dead"):
                said.append(line)
            _, run, finished = said[-1].split()
            found = [c.checkpoint_id for c in RestClient(tmp_path).list_checkpoints(run).result().checkpoints]
            assert "weights/last" in found
            assert {f"weights/at-{step}" for step in range(1, int(finished))} <= set(found)
            for name in {"weights/last", *found[-2:]}:  # every listed checkpoint loads and belongs to one step
                client = service.create_training_client_from_state_with_optimizer(f"tinker://{run}/{name}")
                step, weights, first = client.apply(lambda s: (s.step, s.weights.flat, s.exp_avg)).result()
                expected = range(int(finished), int(finished) + 2) if name == "weights/last" else [int(name[11:])]
                assert step in expected
                for flat in (weights, first):
                    assert set(torch.unique(flat).tolist()) <= {0.0, step}  # 0 in the gaps between tensors
        process.stdin.close()

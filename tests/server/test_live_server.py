"""A server that runs already, of any kind: with its URL and a base model in the environment.

    TINKERLOOP_SERVER_URL=http://127.0.0.1:8000 TINKERLOOP_SERVER_MODEL=recipes/base \\
        python -m pytest tests/server/test_live_server.py -s

SkyRL on a CPU compiles for each new length of a batch, so the datums have one length, and the tests take minutes.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import tinker

from tests.server.conftest import datum_of
from tinkerloop import connect
from tinkerloop.callbacks import Checkpoint, Evaluate, GradientAccumulation, LRSchedule, nll
from tinkerloop.connection import session
from tinkerloop.errors import PlanError
from tinkerloop.loop import Callback, Checkpoints, Loop, open_training_client
from tinkerloop.loop.schedules import linear

URL, MODEL = os.environ.get("TINKERLOOP_SERVER_URL"), os.environ.get("TINKERLOOP_SERVER_MODEL", "")
pytestmark = pytest.mark.skipif(URL is None, reason="needs TINKERLOOP_SERVER_URL and TINKERLOOP_SERVER_MODEL")
DATUMS = [datum_of(seed % 6, 12) for seed in range(24)]


class Killed(BaseException):
    """Not an Exception, so that nothing can handle it, as nothing handles SIGKILL."""


class KillAt(Callback):
    reusable = True

    def __init__(self, step: int | None):
        self.step = step

    def on_step(self, result):
        if result.step == self.step:
            raise Killed


def train(folder: Path, kill_at: int | None = None) -> tuple[list[float], float]:
    """Train 6 steps of two micro-batches. Return the losses of this process, and the last held-out loss."""
    checkpoints = Checkpoints(folder)
    record = checkpoints.latest()
    losses = []
    with session(connect(URL)) as service:
        client = open_training_client(service, record, base_model=MODEL, rank=8, seed=1)
        loop = Loop(
            client,
            [DATUMS[2 * number : 2 * number + 2] for number in range(12)],
            steps=6,
            callbacks=[
                LRSchedule(linear(1e-2, 0.0, 8)),
                GradientAccumulation(2, micro_batch=2),
                Evaluate("test", nll(DATUMS[:2]), every=2),
                Checkpoint(every=2),
                KillAt(kill_at),
            ],
            checkpoints=checkpoints,
            record=record,
        )
        for result in loop.steps():
            losses.append(result.loss)
        assert loop.summary is not None
        return losses, loop.summary.metrics["test/nll"]


def test_a_run_that_is_killed_and_resumed_ends_as_one_that_was_not(tmp_path):
    losses, end = train(tmp_path / "whole")
    assert losses[-1] < losses[0]
    with pytest.raises(Killed):
        train(tmp_path / "killed", kill_at=4)
    resumed, end_of_resumed = train(tmp_path / "killed")
    print(f"\nlosses {losses}\nresumed {resumed}\nheld out {end} {end_of_resumed}")
    np.testing.assert_allclose(resumed, losses[-len(resumed) :], rtol=1e-5)
    assert end_of_resumed == pytest.approx(end, rel=1e-5)


def test_the_first_loss_is_that_of_the_embedded_engine(tmp_path):
    with session(connect("local", root=tmp_path)) as here, session(connect(URL)) as there:
        losses = []
        for service in (here, there):
            client = open_training_client(service, None, base_model=MODEL, rank=8, seed=1)
            losses.append(client.forward(DATUMS[:2], "cross_entropy").result().metrics["loss:sum"])
    print(f"\nhere {losses[0]}, there {losses[1]}")
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_a_custom_loss_trains_as_in_the_embedded_engine_or_is_rejected(tmp_path):
    def loss(data, logprobs):
        return sum(values.sum() for values in logprobs), {}

    norms = []
    with session(connect("local", root=tmp_path)) as here, session(connect(URL)) as there:
        for service in (here, there):
            client = open_training_client(service, None, base_model=MODEL, rank=8, seed=1)
            try:
                client.forward_backward_custom(DATUMS[:2], loss)
            except PlanError as error:
                print(f"\nrejected: {error}")
                continue
            norms.append(client.optim_step(tinker.AdamParams()).result().metrics["unclipped_grad_l2:mean"])
    np.testing.assert_allclose(norms, norms[0], rtol=1e-3)

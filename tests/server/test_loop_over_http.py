"""The promises of the loop, kept through the unmodified client over HTTP: exact resume, split invariance, boundaries.

A run is killed by an error at a chosen request, by SIGKILL of its process, or by SIGKILL of the server.
"""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from tests.processes import Process
from tests.server.conftest import datum_of, forked_server
from tinkerloop import connect
from tinkerloop.bridges import BridgedTrainingClient
from tinkerloop.callbacks import Checkpoint, EarlyStop, Evaluate, GradientAccumulation, LRSchedule, nll
from tinkerloop.connection import session
from tinkerloop.loop import Checkpoints, Jsonl, Loop, open_training_client
from tinkerloop.loop.schedules import cosine

DATUMS = [datum_of(seed, 6 + seed % 3) for seed in range(24)]
BATCHES = [DATUMS[2 * number : 2 * number + 2] for number in range(12)]
REQUESTS = ("forward", "forward_backward", "optim_step", "save_state")


class Killed(BaseException):
    """Not an Exception, so that nothing can handle it, as nothing handles SIGKILL."""


def train(folder: Path, url: str, accumulate: int, ahead: int = 1, steps: int = 6) -> None:
    """One process of the run: from the newest record to the end."""
    checkpoints = Checkpoints(folder)
    record = checkpoints.latest()
    with session(connect(url)) as service:
        client = open_training_client(service, record, base_model="tiny", rank=4, seed=1)
        Loop(
            client,
            BATCHES,
            steps=steps // accumulate,
            callbacks=[
                LRSchedule(cosine(1e-2, 0.0, 8)),
                GradientAccumulation(accumulate, micro_batch=2),
                Evaluate("test", nll(DATUMS[:3]), every=2),
                Checkpoint(every=2, keep_last=2),
                EarlyStop("test/nll", patience=3, min_delta=0.5),
            ],
            sinks=[Jsonl(folder / "metrics.jsonl")],
            checkpoints=checkpoints,
            record=record,
            ahead=ahead,
        ).run()


def outcome(folder: Path, root: Path) -> tuple[object, ...]:
    """Return all that must not depend on interruptions: records, metrics, and the saved weights and optimizer."""
    own = {"path": "", "run": "", "folder": ""}
    records = Checkpoints(folder).records()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    saved = root / records[-1].path.removeprefix("tinker://").replace(":", "_")
    tensors = {file.name: file.read_bytes() for file in saved.glob("*.safetensors")}
    assert {"adapter_model.safetensors", "optimizer.safetensors"} <= tensors.keys()
    return [asdict(record) | own for record in records], rows, tensors


@contextmanager
def killed_at(number: int | None) -> Iterator[Iterator[int]]:
    """Raise `Killed` instead of sending request `number`. The value counts the requests."""
    count = itertools.count()
    with pytest.MonkeyPatch.context() as patch:
        for name in REQUESTS:
            method = getattr(BridgedTrainingClient, name)

            def send(self, *args, method=method, **options):
                if next(count) == number:
                    raise Killed
                return method(self, *args, **options)

            patch.setattr(BridgedTrainingClient, name, send)
        yield count


@pytest.mark.parametrize("accumulate, ahead", [(1, 0), (1, 2), (2, 1)])
def test_killed_at_any_request_a_run_ends_bit_identical(accumulate, ahead, url, root, tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    whole = tmp_path / "whole"
    with killed_at(None) as count:
        train(whole, url, accumulate, ahead)
    expected, requests = outcome(whole, root), next(count)
    assert requests > 12
    for number in random.Random(f"{accumulate}/{ahead}").sample(range(requests), 5):
        folder = tmp_path / str(number)
        with pytest.raises(Killed), killed_at(number):
            train(folder, url, accumulate, ahead)
        train(folder, url, accumulate, ahead)
        assert outcome(folder, root) == expected, f"killed at request {number}"


def losses(url: str, micro_batch: int) -> list[float]:
    with session(connect(url)) as service:
        client = service.create_lora_training_client("tiny", rank=4, seed=1)
        batches = [DATUMS[4 * number : 4 * number + 4] for number in range(4)]
        callbacks = [LRSchedule(cosine(1e-2, 0.0, 4)), GradientAccumulation(1, micro_batch=micro_batch)]
        return [result.loss for result in Loop(client, batches, callbacks=callbacks).steps()]


def test_splitting_a_step_does_not_change_it(url):
    whole = losses(url, micro_batch=4)
    np.testing.assert_allclose(losses(url, micro_batch=1), whole, rtol=1e-5)
    np.testing.assert_allclose(losses(url, micro_batch=3), whole, rtol=1e-5)


def test_an_evaluation_has_the_weights_of_its_boundary(url):
    with session(connect(url)) as service:
        client = service.create_lora_training_client("tiny", rank=4, seed=1)
        evaluations: list[float] = []
        loop = Loop(
            client,
            [BATCHES[0]] * 5,
            callbacks=[LRSchedule(cosine(1e-2, 0.0, 8)), Evaluate("test", nll(BATCHES[0]), every=1)],
            sinks=[lambda step, row: evaluations.extend(v for name, v in row.items() if name == "test/nll")],
            ahead=3,
        )
        trained = [result.loss for result in loop.steps()]
    # The loss of step s is computed with the weights of boundary s, on the same datums.
    np.testing.assert_allclose(evaluations[:5], trained, rtol=1e-6)


# -- SIGKILL of the script, and of the server -----------------------------------------------------------------------


def start(folder: Path, url: str) -> Process:
    """Start a script that trains, and that goes on by itself after its server was lost."""
    code = f"""
from tests.server.test_loop_over_http import Path, train
from tinkerloop.lost_server import resume_when_lost
resume_when_lost(lambda: train(Path({str(folder)!r}), {url!r}, 1), retry=3)
"""
    return Process(code, output=folder.with_name(f"{folder.name}.log"))


def wait_for_row(folder: Path, number: int, process: Process) -> None:
    """Wait until the run has logged row `number`, or has ended."""
    file = folder / "metrics.jsonl"
    while not process.has_ended and not (file.exists() and file.read_bytes().count(b"\n") >= number):
        time.sleep(0.002)


@pytest.fixture(scope="module")
def expected(tmp_path_factory, url, root) -> tuple[object, ...]:
    folder = tmp_path_factory.mktemp("expected")
    train(folder, url, 1)
    return outcome(folder, root)


def kill_the_script(folder: Path, trial: int, url: str, root: Path) -> Path:
    """Kill a script, and start it again. Return the root folder of the server."""
    process = start(folder, url)
    wait_for_row(folder, random.Random(f"script/{trial}").randrange(9), process)
    process.kill()
    start(folder, url).finish()
    return root


def kill_the_server(folder: Path, trial: int, *_: object) -> Path:
    """Kill the server while a script uses it, and start it again at its port. Return the root folder of the server."""
    root = folder.with_name("root")
    with forked_server(root) as (server, url):
        process = start(folder, url)
        wait_for_row(folder, random.Random(f"server/{trial}").randrange(1, 9), process)
        server.kill()
    with forked_server(root, int(url.rpartition(":")[2])) as (_, again):
        assert again == url
        process.finish()
    return root


KILLS = pytest.mark.parametrize("kill", [kill_the_script, kill_the_server], ids=["script", "server"])


@KILLS
@pytest.mark.slow
def test_killed_with_no_warning_a_run_ends_bit_identical(kill, expected, tmp_path, url, root):
    assert outcome(tmp_path / "run", kill(tmp_path / "run", 0, url, root)) == expected


@KILLS
@pytest.mark.soak
@pytest.mark.parametrize("trial", range(1, 11))
def test_killed_at_twenty_random_moments_each_run_ends_bit_identical(kill, trial, expected, tmp_path, url, root):
    assert outcome(tmp_path / "run", kill(tmp_path / "run", trial, url, root)) == expected

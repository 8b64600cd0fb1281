"""Half an hour of everything at once: the memory of the server stays flat, and no user loses anything.

TINKERLOOP_SOAK_MINUTES=10 make test ARGS="-m soak tests/server/test_mixed_load.py"
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import tinker

from tests.server.conftest import KEY
from tests.server.hostile import BODY_BYTES, Hostile
from tests.server.test_hostile import losses
from tests.server.test_loop_over_http import outcome, start, train, wait_for_row
from tests.server.test_serve_command import serving
from tinkerloop.loop.futures import resolve

MINUTES = float(os.environ.get("TINKERLOOP_SOAK_MINUTES", "30"))
LONGEST_ROUND = 300.0
"""The seconds after which a round of a user counts as hanging: it takes at most about 30 on a busy machine."""


def sampled(url: str) -> list[list[int]]:
    """Sample with seeds, and return the tokens."""
    with tinker.ServiceClient(base_url=url, api_key=KEY) as service:
        sampler = resolve(service.create_sampling_client(base_model="tiny"))
        prompt = tinker.ModelInput.from_ints([1, 2, 3])
        params = [tinker.SamplingParams(max_tokens=20, seed=seed) for seed in range(8)]
        calls = [sampler.sample(prompt, 2, one) for one in params]
        return [sequence.tokens for call in calls for sequence in call.result().sequences]


@pytest.mark.soak
def test_under_mixed_load_the_memory_is_flat_and_nothing_is_lost(tmp_path):
    root, end = tmp_path / "root", time.monotonic() + 60 * MINUTES
    problems: list[str] = []
    rounds: dict[str, int] = {}
    begun: dict[str, float] = {}

    def user(name: str, once: Callable[[int], None]) -> threading.Thread:
        """Start a user, which calls `once` with the number of the round until the time is over."""

        def repeat() -> None:
            while time.monotonic() < end and not problems:
                begun[name] = time.monotonic()
                try:
                    once(rounds.setdefault(name, 0))
                except BaseException as error:
                    problems.append(f"{name}, round {rounds[name]}: {type(error).__name__}: {error}")
                rounds[name] += 1

        thread = threading.Thread(target=repeat, name=name, daemon=True)
        thread.start()
        return thread

    def hanging(thread: threading.Thread) -> bool:
        """Report a user whose round takes too long, with the line it waits in."""
        if not thread.is_alive() or time.monotonic() - begun[thread.name] < LONGEST_ROUND:
            return False
        stack = "".join(traceback.format_stack(sys._current_frames()[thread.ident]))
        problems.append(f"{thread.name}, round {rounds[thread.name]}: hangs in\n{stack}")
        return True

    options = ["--root", str(root), "--quiet", "--model", "tiny-vl", "--max-body-mib", str(BODY_BYTES // 2**20)]
    options += ["--silent-seconds", "60"]  # so that the models of killed programs do not add up to the server's limit
    with serving(*options, OMP_NUM_THREADS="1") as (server, url):
        expected_losses, expected_samples = losses(url, 10), sampled(url)
        train(tmp_path / "expected", url, 1)
        expected = outcome(tmp_path / "expected", root)

        def killed(name: str, number: int) -> None:
            """Train in a process that is killed at a random row, and in a second one to the end."""
            folder: Path = tmp_path / f"{name} {number}"
            process = start(folder, url)
            wait_for_row(folder, random.Random(f"{name}/{number}").randrange(9), process)
            process.kill()
            start(folder, url).finish()
            assert outcome(folder, root) == expected

        def train_again(number: int) -> None:
            assert losses(url, 10) == expected_losses

        def sample_again(number: int) -> None:
            assert sampled(url) == expected_samples

        hostile = Hostile(url, seed=0, fetch=False)

        def attack(number: int) -> None:
            hostile.send(number)
            assert not hostile.failures, hostile.failures[0]
            time.sleep(0.05)

        users = [
            user("killed", lambda number: killed("killed", number)),
            user("also killed", lambda number: killed("also killed", number)),
            user("training", train_again),
            user("sampling", sample_again),
            user("hostile", attack),
        ]
        memory: list[float] = []
        while any(thread.is_alive() for thread in users) and not any(map(hanging, users)):
            memory.append(psutil.Process(server.pid).memory_info().rss / 2**20)
            time.sleep(5)
        assert server.poll() is None
    third = len(memory) // 3
    before, after = statistics.median(memory[third : 2 * third]), statistics.median(memory[2 * third :])
    print(f"\nrounds {rounds}; memory in MiB: {before:.0f}, then {after:.0f}, largest {max(memory):.0f}")
    assert not problems, problems[0]
    assert all(rounds.values())
    assert after < 1.1 * before

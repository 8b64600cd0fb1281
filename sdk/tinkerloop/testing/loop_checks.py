"""`check_loop`: a run that is killed anywhere and resumed ends as one that was not.

    def make_run(service, folder):                      # one process of your program: resumes if there is a record
        checkpoints = Checkpoints(folder)
        record = checkpoints.latest()
        client = open_training_client(service, record, base_model="unigram")
        Loop(client, batches, steps=12, checkpoints=checkpoints, record=record, ...).run()

    check_loop(make_run)

Everything runs in this process, on the in-memory service `OrderedService`: a kill is an error that is raised at an
operation of the service, and at every later one. Handlers of a program such as `finally` run, unlike after `kill -9`.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

from tinkerloop.errors import CheckFailedError
from tinkerloop.loop.checkpoints import Checkpoints
from tinkerloop.loop.events import Summary
from tinkerloop.testing.ordered_service import Operation, OrderedService

MakeRun = Callable[[OrderedService, Path], object]


class KilledRun(BaseException):
    """Error for a killed run. It is not an Exception, so that no handler of errors can go on after the kill."""


def check_loop(
    make_run: MakeRun,
    *,
    service: Callable[[], OrderedService] = OrderedService,
    kills: Callable[[int], Iterable[int]] = range,
    ignored_metrics: tuple[str, ...] = ("time/",),
) -> dict[str, Any]:
    """Kill a run at every operation, resume it, and compare the outcome with that of a run without a kill.

    A program that samples must give each request a seed, and the same one after a resume: a request without a seed
    draws other tokens in the resumed run.

    Compared are the weights and the optimizer of all training clients, the rows of `metrics.jsonl`, the records of
    `checkpoints.jsonl`, the groups of `rollouts.jsonl`, and the returned value if it is a `Summary`.

    Args:
        make_run: function that does what one process of your program does: it opens clients on the service, creates
            the loop with the newest record in the folder, and runs it to its end. It must create everything anew:
            callbacks, batches and clients.
        service: function that creates the service, e.g. `lambda: OrderedService(vocab_size=1000)`. With
            `reproducible=False`, no program that trains on its samples passes.
        kills: function from the number of operations of a run to the operations at which the run is killed. By
            default, all of them.
        ignored_metrics: prefixes of metrics that are not compared, because they are measured times.

    Returns:
        The outcome of the run without a kill.

    Raises:
        CheckFailedError: the run has no operation, or a resumed run ends in another way.
    """
    with tempfile.TemporaryDirectory(prefix="check_loop-") as root, mock.patch("os.fsync", no_sync):
        folder = _new_folder(root, "whole")
        whole, operations = run_until(make_run, service(), folder)
        expected = outcome(folder, whole, ignored_metrics)
        if not operations:
            raise CheckFailedError("the run has used no operation of the service: make_run must open its clients on it")
        for kill_at in kills(operations):
            folder, used = _new_folder(root, f"killed-{kill_at}"), service()
            killed, _ = run_until(make_run, used, folder, kill_at)
            if killed is not None:
                raise CheckFailedError(
                    f"the run has ended although it was killed at operation {kill_at} of {operations}: it catches "
                    "BaseException, or its operations differ from run to run"
                )
            last = used.operations[-1] if used.operations else "the start"
            resumed, _ = run_until(make_run, used, folder)
            if difference := first_difference(outcome(folder, resumed, ignored_metrics), expected):
                raise CheckFailedError(
                    f"a run that was killed at operation {kill_at} of {operations} (after {last}) and resumed differs "
                    f"from one that was not: {difference}"
                )
    return expected


class EndedRun:
    """A run that has come to its end: what `make_run` returned, and the training clients of its last process."""

    def __init__(self, returned: object, clients: list[Any]):
        self.returned, self.clients = returned, clients


def run_until(
    make_run: MakeRun, service: OrderedService, folder: Path, kill_at: int | None = None
) -> tuple[EndedRun | None, int]:
    """Run one process to its end, or until operation number `kill_at`.

    Returns:
        The ended run, or None if it was killed; and the number of operations.
    """
    count, dead, earlier = itertools.count(), [], len(service.clients)

    def fault(operation: Operation) -> None:
        if next(count) == kill_at or dead:  # nothing of a process goes on after it was killed, in no thread
            dead.append(True)
            raise KilledRun(operation)

    service.fault = fault
    try:
        returned = make_run(service, folder)
    except KilledRun:
        return None, next(count)
    return EndedRun(returned, service.clients[earlier:]), next(count)


def outcome(folder: Path, run: EndedRun | None, ignored_metrics: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return all that must not depend on interruptions: every bit of it but where the run and its states are saved."""
    assert run is not None
    states = [client.state for client in run.clients]
    return {
        "weights": [[array.tobytes() for array in (s.logits, s.first, s.second)] for s in states],
        "updates": [state.updates for state in states],
        **compared_summary(run.returned, ignored_metrics),
        **recorded_files(folder, ignored_metrics),
    }


def compared_summary(returned: object, ignored_metrics: tuple[str, ...]) -> dict[str, Any]:
    """Return what a run returned as a part of its outcome: nothing, unless it is a `Summary`."""
    if not isinstance(returned, Summary):
        return {}
    return {"summary": (returned.step, returned.reason, _compared(dict(returned.metrics), ignored_metrics))}


def recorded_files(folder: Path, ignored_metrics: tuple[str, ...]) -> dict[str, Any]:
    """Return the rows, records and rollouts in the files of a run, by the name of the file."""
    result: dict[str, Any] = {}
    for file in sorted(folder.rglob("*.jsonl")):
        name = str(file.relative_to(folder))
        if file.name == "metrics.jsonl":
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            result[name] = [_compared(row, ignored_metrics) for row in rows]
        elif file.name == "checkpoints.jsonl":
            own = {"path": "", "run": "", "folder": ""}
            records = [asdict(record) | own for record in Checkpoints(file.parent).records()]
            result[name] = [r | {"metrics": _compared(r["metrics"], ignored_metrics)} for r in records]
        elif file.name == "rollouts.jsonl":
            result[name] = file.read_bytes().splitlines()
    return result


def first_difference(given: Any, expected: Any, place: str = "") -> str | None:
    """Return where two outcomes differ first, with both values; None if they are equal."""
    if type(given) is type(expected) is dict:
        for key in {**expected, **given}:
            inside = f"{place}[{key!r}]" if place else str(key)
            if key not in given or key not in expected:
                return f"{inside} is {'missing' if key not in given else 'new'}"
            if difference := first_difference(given[key], expected[key], inside):
                return difference
        return None
    if type(given) is type(expected) and isinstance(given, list | tuple):
        for i, (one, other) in enumerate(zip(given, expected, strict=False)):
            if difference := first_difference(one, other, f"{place}[{i}]"):
                return difference
        return None if len(given) == len(expected) else f"{place} has {len(given)} parts, expected {len(expected)}"
    if given == expected or (given != given and expected != expected):  # NaN differs from itself
        return None
    if isinstance(given, bytes) and place.startswith("weights"):
        return f"{place} differ"
    return f"{place} is {given!r}, expected {expected!r}"


def _compared(metrics: Any, ignored: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if not name.startswith(ignored or ("\0",))}


def _new_folder(root: str, name: str) -> Path:
    folder = Path(root) / name
    folder.mkdir()
    return folder


def no_sync(descriptor: int) -> None:
    """Do nothing, because a killed process loses no written page."""

"""Read what a run folder tells about a run: a folder of tinkerloop, or the metrics of the Tinker Cookbook.

Reading changes nothing in the folder, so it can be done while the run trains. The curves are read when they are first
used: a table of many runs needs only the newest values, which are at the end of `metrics.jsonl`.
"""

from __future__ import annotations

import json
import math
import os
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tinkerloop.errors import CheckpointError
from tinkerloop.loop.events import COMPLETE
from tinkerloop.loop.jsonl import NON_FINITE, read_lines

_FILES = ("metrics.jsonl", "checkpoints.jsonl", "starts.jsonl", "config.json", "summary.json")


@dataclass(frozen=True)
class Series:
    """The values of one metric over steps; steps do not decrease.

    Attributes:
        steps: the step of each value.
        values: the values; they may be NaN or infinite.
    """

    steps: Sequence[int]
    values: Sequence[float]


@dataclass(frozen=True)
class RunData:
    """The contents of a run folder. What is not there is empty. Series, timings and samples are read at first use.

    Attributes:
        folder: the run folder.
        config: the configuration of the newest start.
        environment: time, command, code revision, host and package versions of the newest start.
        starts: the lines of `starts.jsonl`: one per start, oldest first.
        summary: how the newest training ended; None while it runs, and after a kill.
        records: the lines of `checkpoints.jsonl`, oldest first.
        facts: what the program said of its data and model, in `facts.json`.
    """

    folder: Path
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    starts: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any] | None
    records: Sequence[Mapping[str, Any]]
    facts: Mapping[str, Any]

    @cached_property
    def series(self) -> Mapping[str, Series]:
        """The values of each metric, by its name."""
        return _series(self.folder / _METRICS) | _times(self.timings)

    @cached_property
    def timings(self) -> Sequence[Mapping[str, Any]]:
        """The lines of `timings.jsonl`: how long each step took, in the order in which they were trained."""
        return list(read_lines(self.folder / "timings.jsonl"))

    @cached_property
    def samples(self) -> Sequence[Mapping[str, Any]]:
        """The lines of `samples.jsonl`: replies that an evaluation has sampled."""
        rows = read_lines(self.folder / "samples.jsonl", restore_numbers=False)  # a message may be the text "NaN"
        return [row | {"score": float(row["score"])} if row.get("score") in NON_FINITE else row for row in rows]

    @cached_property
    def newest(self) -> Mapping[str, tuple[int, float]]:
        """The newest value of each metric in `metrics.jsonl`, with its step."""
        newest = newest_values(self.folder / _METRICS)
        if newest is None:
            return {name: (one.steps[-1], one.values[-1]) for name, one in _series(self.folder / _METRICS).items()}
        return newest

    @cached_property
    def step(self) -> int:
        """The number of steps whose results are known."""
        steps = [step + 1 for name, (step, _) in self.newest.items() if name in _STEP_METRICS]
        return max([*steps, *(int(record.get("step", record.get("batch", 0))) for record in self.records)], default=0)

    @cached_property
    def state(self) -> str:
        """How the run ended: the reason in its summary; "running"; "interrupted" after a kill; "unknown"."""
        if self.summary is not None:
            return str(self.summary.get("reason", "unknown"))
        if not self.starts:
            return "unknown"
        return "running" if _is_running(self.folder) else "interrupted"

    @property
    def is_complete(self) -> bool:
        """True if the run has reached its number of steps or the end of its data."""
        return self.state in COMPLETE

    @cached_property
    def last(self) -> Mapping[str, float]:
        """The newest value of every metric in `metrics.jsonl`."""
        return {name: value for name, (_, value) in self.newest.items()}

    @cached_property
    def seconds_in_steps(self) -> float | None:
        """The seconds that all steps took together, those of earlier starts included; None without `Timing(file=)`."""
        file = self.folder / "timings.jsonl"
        seconds = _TOTAL.findall(file.read_bytes()) if file.is_file() else []  # parsing takes ten times as long
        return math.fsum(map(float, seconds)) if seconds else None

    @cached_property
    def seconds(self) -> float | None:
        """The seconds of all steps, or else those between the start and the end of each start that came to an end."""
        if self.seconds_in_steps is not None:
            return self.seconds_in_steps
        return None if self.summary is None else self.summary.get("seconds")

    @cached_property
    def resumed_at(self) -> Sequence[int]:
        """The step at which each start but the first went on."""
        return [int(start["step"]) for start in self.starts[1:] if "step" in start]


_METRICS = "metrics.jsonl"
_TAILS = (2**12, 2**16)
"""The numbers of bytes at the end of `metrics.jsonl` in which the newest values are looked for."""
_TOTAL = re.compile(rb'"total":\s*([-+.eE0-9]+)')
_STEP_METRICS = ("loss", "train_mean_nll", "learning_rate")


def is_run(folder: Path) -> bool:
    """Return true if `folder` has a file that a run writes."""
    return (folder / "metrics.jsonl").is_file() or (folder / "starts.jsonl").is_file()


def read_run(folder: str | Path) -> RunData:
    """Read a run folder.

    Raises:
        CheckpointError: there is no run in the folder, or a file in it is damaged.
    """
    folder = Path(folder)
    if not is_run(folder):
        raise CheckpointError(
            f"{folder} is not a run folder: expected one with {_FILES[0]} or {_FILES[2]}; for a folder with several "
            "runs in it, use `tinkerloop runs`"
        )
    return RunData(
        folder=folder,
        config=_json(folder / "config.json") or {},
        environment=_json(folder / "environment.json") or {},
        starts=list(read_lines(folder / "starts.jsonl", restore_numbers=False)),  # compared, and a NaN equals none
        summary=_json(folder / "summary.json"),
        records=list(read_lines(folder / "checkpoints.jsonl")),
        facts=_json(folder / "facts.json") or {},
    )


def newest_values(file: Path) -> dict[str, tuple[int, float]] | None:
    """Return the newest value of each metric, with its step, from the end of the file; None if that is not enough.

    It is enough if no other name is in the file. That is checked without reading the numbers: every quotation mark of
    the file must belong to a name that the end of the file has.
    """
    data = file.read_bytes() if file.is_file() else b""
    data = data[: data.rfind(b"\n") + 1]  # the rest is an append that was interrupted
    for tail in _TAILS:
        start = data.rfind(b"\n", 0, max(len(data) - tail, 0)) + 1
        if (values := _values_from(data, start)) is not None:
            return values
    return None


def _values_from(data: bytes, start: int) -> dict[str, tuple[int, float]] | None:
    """Return the newest values in the rows from `start` on; None if other rows have further names, or texts."""
    try:
        rows = [json.loads(line) for line in data[start:].splitlines()]
        values = {name: (row["step"], value) for row in rows for name, value in row.items() if name != "step"}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None  # a row without a step, or a damaged one, which reading all rows names
    if not all(isinstance(value, int | float) for _, value in values.values()):
        return None
    names = [json.dumps(name, ensure_ascii=False).encode() for name in ("step", *values)]
    if start and 2 * sum(data.count(name + b":", 0, start) for name in names) != data.count(b'"', 0, start):
        return None
    return values


def _series(file: Path) -> dict[str, Series]:
    columns: dict[str, tuple[list[int], list[float]]] = {}
    for number, row in enumerate(read_lines(file)):
        step = int(row.pop("step", number))  # a row without a step has the number of its line
        for name, value in row.items():
            if isinstance(value, int | float):
                column = columns.get(name)
                if column is None:
                    column = columns[name] = ([], [])
                column[0].append(step)
                column[1].append(value)
    return {name: Series(*column) for name, column in columns.items()}


def _times(timings: Sequence[Mapping[str, Any]]) -> dict[str, Series]:
    """Return the curves `time/<part>`. Of a step that was trained again after a kill, the newest time is taken."""
    newest = {int(row["step"]): row for row in timings}
    steps = sorted(newest)
    parts = [name for name in (timings[0] if timings else {}) if name != "step"]
    return {f"time/{part}": Series(steps, [float(newest[step].get(part, 0.0)) for step in steps]) for part in parts}


def _json(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} is not a JSON object; repair it, or move it away")
    return value


def _is_running(folder: Path) -> bool:
    """Return true if the process that `lock.holder` names runs on this machine, or cannot be seen from it."""
    holder = folder / "lock.holder"
    match = (
        re.fullmatch(r"process (\d+) on (.*)", holder.read_text(errors="replace").strip()) if holder.is_file() else None
    )
    if match is None:
        return False
    if match[2] != socket.gethostname():
        return True
    try:
        os.kill(int(match[1]), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True

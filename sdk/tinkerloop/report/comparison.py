"""Runs beside each other: one row per run, and a page with their curves over each other."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinkerloop.errors import CheckpointError
from tinkerloop.loop.run_folder import flat_options
from tinkerloop.report.curves import reduced_curve
from tinkerloop.report.run_page import document
from tinkerloop.report.run_reading import RunData, is_run

_METRICS = 6  # columns of metrics, those that most runs have
_POINTS = 400  # points of each curve, because many runs share one page


def find_runs(folder: Path) -> list[Path]:
    """Return the run folders in `folder`, itself included, sorted by path. Links to folders are not followed.

    Raises:
        CheckpointError: there is no run in the folder.
    """
    found = [Path(path) for path, _, _ in os.walk(folder) if is_run(Path(path))]
    if not found:
        raise CheckpointError(f"there is no run in {folder}: expected folders with metrics.jsonl")
    return sorted(found)


def run_rows(runs: Sequence[RunData], folder: Path) -> list[dict[str, Any]]:
    """Return one row per run: name, state, step, tokens, seconds, newest metrics, and the options that differ."""
    options = [flat_options(run.config) for run in runs]
    names = list(dict.fromkeys(name for one in options for name in one))
    differing = [name for name in names if len({repr(one.get(name)) for one in options}) > 1]
    counts: dict[str, int] = {}
    for run in runs:
        for name in run.last:
            if name == "loss" or ("/" in name and not name.startswith(("time/", "tokens/"))):
                counts[name] = counts.get(name, 0) + 1
    metrics = sorted(counts, key=lambda name: (-counts[name], name != "loss", name))[:_METRICS]
    return [
        {
            "name": run_name(run, folder),
            "state": run.state,
            "step": run.step,
            "tokens": run.last.get("tokens/total"),
            "seconds": run.seconds,
            **{name: run.last.get(name) for name in metrics},
            **{name: one.get(name) for name in differing},
        }
        for run, one in zip(runs, options, strict=True)
    ]


def run_name(run: RunData, folder: Path) -> str:
    """Return the path of a run relative to `folder`; for the folder itself its name."""
    name = os.path.relpath(run.folder, folder)
    return run.folder.resolve().name if name == "." else name


def comparison_page(runs: Sequence[RunData], folder: Path) -> str:
    """Return a page with one chart per metric, in which each run has a curve, as HTML."""
    names = list(dict.fromkeys(name for run in runs for name in run.series if name != "loss:sum"))
    charts = [
        {
            "title": name,
            "curves": [
                reduced_curve(run_name(run, folder), run.series[name], _POINTS) for run in runs if name in run.series
            ],
        }
        for name in names
    ]
    return document(f"{len(runs)} runs in {folder.resolve().name}", "", {"charts": charts, "resumes": []})

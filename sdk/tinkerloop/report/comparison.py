"""Runs beside each other: one row per run, and a page with their curves over each other."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tinkerloop.errors import CheckpointError
from tinkerloop.loop.run_folder import flat_options
from tinkerloop.report.curves import reduced_curve
from tinkerloop.report.run_page import document, html_table
from tinkerloop.report.run_reading import RunData, is_run
from tinkerloop.terminal import one_line

_METRICS = 5  # columns of metrics beside the loss, those that most runs have
_FOLDERS = ("log_path", "run")  # the options of `train.main` and of recipes with the folder, which the name tells
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
    """Return one row per run: its state and totals, its newest metrics, and the options in which runs differ.

    The most important columns are first. An option is shown if at least two runs have it with different values. Its
    column has the last part of its name, `batch_size` for `dataset_builder.batch_size`, if no other option ends so.
    """
    counts = Counter(name for run in runs for name in run.last if _is_shown_metric(name))
    metrics = sorted(counts, key=lambda name: (-counts[name], name))[:_METRICS]
    rows: list[dict[str, Any]] = [
        {
            "name": run_name(run, folder),
            "state": run.state,
            "step": run.step,
            "loss": run.last.get("loss"),
            "tokens": run.last.get("tokens/total"),
            "seconds": run.seconds,
            **{name: run.last.get(name) for name in metrics},
        }
        for run in runs
    ]
    options = [flat_options(run.config) for run in runs]
    names = list(dict.fromkeys(name for one in options for name in one))
    columns = _option_columns(names, taken={name for row in rows for name in row})
    for name in names:
        if name not in _FOLDERS and len({repr(one[name]) for one in options if name in one}) > 1:
            for row, one in zip(rows, options, strict=True):
                row[columns[name]] = one.get(name)
    return rows


def _is_shown_metric(name: str) -> bool:
    return "/" in name and not name.startswith(("time/", "tokens/"))


def _option_columns(names: Iterable[str], taken: set[str]) -> dict[str, str]:
    """Return the name of the column of each option: the shortest that neither another option nor `taken` has."""
    last = {name: name.rpartition(".")[2] for name in names}
    counts = Counter(last.values())
    columns = {}
    for name, part in last.items():
        column = part if counts[part] == 1 and part not in taken else name
        columns[name] = f"config.{name}" if column in taken else column
    return columns


def run_name(run: RunData, folder: Path) -> str:
    """Return the path of a run relative to `folder`; for the folder itself its name."""
    name = os.path.relpath(run.folder, folder)
    return run.folder.resolve().name if name == "." else name


def shown_cell(value: object) -> str:
    """Return the text of a value in a row; empty if there is none."""
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else one_line(value)


def comparison_page(runs: Sequence[RunData], rows: Sequence[dict[str, Any]], folder: Path) -> str:
    """Return a page with the rows of the runs, and one chart per metric in which each run has a curve, as HTML."""
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
    head = list(dict.fromkeys(name for row in rows for name in row))
    table = html_table(head, [[shown_cell(row.get(name)) for name in head] for row in rows])
    return document(f"{len(runs)} runs in {folder.resolve().name}", table, {"charts": charts, "resumes": []})

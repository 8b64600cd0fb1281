"""List the runs in a folder: state, steps, newest metrics, and the options in which they differ.

tinkerloop runs runs/
tinkerloop runs runs/ --sort test/nll --where state=running --where learning_rate=0.001
tinkerloop runs runs/ --html runs.html      # the curves of all runs over each other
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from tinkerloop.errors import PlanError
from tinkerloop.report.comparison import comparison_page, find_runs, run_rows
from tinkerloop.report.run_reading import read_run
from tinkerloop.terminal import one_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs"), help="Folder to search. Default: runs.")
    parser.add_argument("--sort", metavar="COLUMN", help="Sort by this column; runs without a value come last.")
    parser.add_argument("--reverse", action="store_true", help="Sort from the largest value to the smallest.")
    parser.add_argument(
        "--where",
        metavar="COLUMN=VALUE",
        action="append",
        default=[],
        help="Show only runs with this value. Repeatable.",
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="Also write a page with the curves of these runs.")


def run(arguments: argparse.Namespace) -> int:
    runs = [read_run(folder) for folder in find_runs(arguments.folder)]
    rows = run_rows(runs, arguments.folder)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    for condition in arguments.where:
        name, sign, value = condition.partition("=")
        if not sign or name not in columns:
            raise PlanError(
                f"--where expects COLUMN=VALUE with one of the columns {', '.join(columns)}, got {condition!r}"
            )
        kept = [i for i, row in enumerate(rows) if str(row.get(name)) == value]
        runs, rows = [runs[i] for i in kept], [rows[i] for i in kept]
    if arguments.sort:
        if arguments.sort not in columns:
            raise PlanError(f"--sort expects one of the columns {', '.join(columns)}, got {arguments.sort!r}")
        keys = [_sort_key(row.get(arguments.sort)) for row in rows]
        order = sorted(range(len(rows)), key=keys.__getitem__, reverse=arguments.reverse)
        order.sort(key=lambda i: rows[i].get(arguments.sort) is None)
        runs, rows = [runs[i] for i in order], [rows[i] for i in order]
    table = Table(box=SIMPLE)
    for name in columns:
        table.add_column(one_line(name), overflow="fold")
    for row in rows:
        table.add_row(*[_shown(row.get(name)) for name in columns])
    console = Console()
    if not console.is_terminal:  # a pipe has no width, so nothing needs to be wrapped
        console = Console(width=100 * len(columns))
    console.print(table)
    print(f"{len(rows)} runs in {one_line(arguments.folder)}")
    if arguments.html:
        arguments.html.write_text(comparison_page(runs, arguments.folder), encoding="utf-8")
        print(one_line(arguments.html))
    return 0


def _sort_key(value: object) -> tuple[bool, float, str]:
    number = isinstance(value, int | float)
    return (not number, float(value) if number else 0.0, str(value))  # type: ignore[arg-type]


def _shown(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else one_line(value)

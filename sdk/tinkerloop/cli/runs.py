"""List the runs in a folder: state, steps, newest metrics, and the options in which they differ.

    tinkerloop runs runs/
    tinkerloop runs runs/ --sort test/nll --where state=running --where learning_rate=0.001
    tinkerloop runs runs/ --html runs.html      # the table, and the curves of all runs over each other

An option of the configuration is a column if at least two runs have it with different values.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tinkerloop.cli.output_files import check_output
from tinkerloop.cli.text_options import non_empty, non_empty_path
from tinkerloop.errors import PlanError
from tinkerloop.loop.metric_names import did_you_mean
from tinkerloop.report.comparison import comparison_page, find_runs, run_rows, shown_cell
from tinkerloop.report.run_reading import read_run
from tinkerloop.terminal import one_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", type=non_empty_path, nargs="?", default="runs", help="Folder to search. Default: runs."
    )
    parser.add_argument(
        "--sort",
        metavar="COLUMN",
        type=non_empty,
        help="Sort by this column; runs without a value or with NaN come last.",
    )
    parser.add_argument("--reverse", action="store_true", help="With --sort: from the largest value to the smallest.")
    parser.add_argument(
        "--where",
        metavar="COLUMN=VALUE",
        action="append",
        default=[],
        help="Show only runs with this value, in any spelling of a number, or as the table shows it. Repeatable.",
    )
    parser.add_argument("--html", type=non_empty_path, metavar="FILE", help="Also write a page with table and curves.")


def run(arguments: argparse.Namespace) -> int:
    check_output("--html", arguments.html)
    if arguments.reverse and arguments.sort is None:
        raise PlanError("--reverse turns the order of --sort around: pass --sort COLUMN too, or omit --reverse")
    runs = [read_run(folder) for folder in find_runs(arguments.folder)]
    rows = run_rows(runs, arguments.folder)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    for condition in arguments.where:
        name, sign, value = condition.partition("=")
        if not sign:
            raise PlanError(f"--where expects COLUMN=VALUE, such as state=running, got {condition!r}")
        _check_column("--where", name, columns)
        kept = [i for i, row in enumerate(rows) if _is_written(row.get(name), value)]
        runs, rows = [runs[i] for i in kept], [rows[i] for i in kept]
    if arguments.sort:
        _check_column("--sort", arguments.sort, columns)
        keys = [_sort_key(row.get(arguments.sort)) for row in rows]
        order = sorted(range(len(rows)), key=keys.__getitem__, reverse=arguments.reverse)
        order.sort(key=lambda i: _is_missing(rows[i].get(arguments.sort)))
        runs, rows = [runs[i] for i in order], [rows[i] for i in order]
    _print_table(rows, columns)
    print(f"{len(rows)} run{'' if len(rows) == 1 else 's'} in {one_line(arguments.folder)}")
    if arguments.html:
        arguments.html.write_text(comparison_page(runs, rows, arguments.folder), encoding="utf-8")
        print(one_line(arguments.html))
    return 0


def _is_written(value: object, written: str) -> bool:
    """Return true if `written` is the value in any spelling of its number, or the text of its cell."""
    if written in (str(value), shown_cell(value)):
        return True
    if isinstance(value, bool):
        return written.casefold() == str(value).casefold()  # JSON spells it true
    try:
        return isinstance(value, int | float) and value == float(written)
    except ValueError:
        return False


def _is_missing(value: object) -> bool:
    """Return true if there is no value, or NaN, which is neither larger nor smaller than another."""
    return value is None or value != value


def _sort_key(value: object) -> tuple[bool, float, str]:
    number = isinstance(value, int | float) and not _is_missing(value)
    return (not number, float(value) if number else 0.0, str(value))  # type: ignore[arg-type]


def _check_column(option: str, name: str, columns: Sequence[str]) -> None:
    if name not in columns:
        hint = did_you_mean(name, columns) or f"; the columns are {', '.join(columns)}"
        raise PlanError(f"{option} expects a column of the table, got {name!r}{hint}")


def _print_table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    """Print the columns that fit into the terminal, from the left, and say how many do not; a pipe gets all."""
    console, shown = Console(), len(columns)
    if console.is_terminal:
        widest = console.width // 3  # longer cells are folded
        while shown > 1 and _width(_table(rows, columns[:shown], widest)) > console.width:
            shown -= 1
        console.print(_table(rows, columns[:shown], widest))
    else:
        table = _table(rows, columns, None)
        Console(width=_width(table)).print(table)
    if left := len(columns) - shown:
        print(f"columns that do not fit into the terminal: {left}; see them with --html FILE, or in a pipe")


def _table(rows: Sequence[dict[str, Any]], columns: Sequence[str], widest: int | None) -> Table:
    table = Table(box=SIMPLE)
    for name in columns:
        table.add_column(Text(one_line(name)), overflow="fold", max_width=widest)
    for row in rows:
        table.add_row(*[Text(shown_cell(row.get(name))) for name in columns])
    return table


def _width(table: Table) -> int:
    """Return the width of the table if no more than the widest cells are folded."""
    return Console(width=1_000_000).measure(table).maximum

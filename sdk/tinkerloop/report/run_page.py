"""The page of a run: one HTML file that needs nothing else, with curves, samples, checkpoints and what was run.

All text of models, data and configurations is escaped, and control characters in it are shown as symbols. The curves
are drawn by uPlot, which is in the page.
"""

from __future__ import annotations

import html
import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from tinkerloop._version import __version__
from tinkerloop.loop.jsonl import write_atomic
from tinkerloop.loop.run_folder import changed_options, flat_options, which_trained
from tinkerloop.report.curves import charts
from tinkerloop.report.run_reading import RunData, read_run
from tinkerloop.report.shown_rollouts import shown_rollouts, shown_samples
from tinkerloop.terminal import one_line, printable

_NUMBER = re.compile(r"[-+]?[\d.,]+(e[-+]?\d+)?")
_RECORDS = 50  # checkpoints that are listed, the newest ones


def write_report(folder: str | Path, file: str | Path | None = None) -> Path:
    """Write the page of the run in `folder`, and return its path.

    Args:
        folder: the run folder.
        file: the file to write; None: `report.html` in the run folder.

    Raises:
        CheckpointError: `folder` has no run, or a file of the run is damaged.
    """
    path = Path(folder) / "report.html" if file is None else Path(file)
    write_atomic(path, run_page(read_run(folder)).encode())
    return path


def run_page(run: RunData, *, watched: str | None = None) -> str:
    """Return the page of a run as HTML.

    Args:
        run: the contents of the run folder.
        watched: the version of a page that is served while the run goes on: it asks for a newer one by itself.
    """
    data = {"charts": charts(run.series), "resumes": list(run.resumed_at), "watched": watched}
    after = "".join(
        [
            _conversations("Rollouts", shown_rollouts(run.folder / "rollouts.jsonl")),
            _conversations("Sample replies", shown_samples(run.samples)),
            _checkpoints(run),
            _what_was_run(run),
        ]
    )
    return document(run.folder.resolve().name, _totals(run), data, badge=_badge(run), after=after)


def document(title: str, before: str, data: Mapping[str, Any], *, badge: str = "", after: str = "") -> str:
    """Return a page with charts as HTML.

    Args:
        title: the title, as text.
        before: HTML before the charts.
        data: what `report.js` draws: `charts`, and `resumes`, the steps to mark.
        badge: HTML beside the title.
        after: HTML after the charts.
    """
    name = _text(one_line(title))
    hint = "Drag to zoom, double-click to reset."
    if data["resumes"]:
        hint += " A dashed line marks the step at which the run was resumed."
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name}</title><style>{_asset('uPlot.min.css')}{_asset('report.css')}</style></head>\n"
        f"<body><header><h1>{name}</h1>{badge}</header>{before}"
        f'<h2>Curves</h2><p class="hint">{hint}</p><section id="charts"></section>{after}'
        f"<footer>Written by tinkerloop {_text(__version__)}. Curves: uPlot, MIT License.</footer>"
        f'<script type="application/json" id="data">{_json(data)}</script>\n'
        f"<script>{_asset('uPlot.iife.min.js')}</script><script>{_asset('report.js')}</script></body></html>\n"
    )


def _badge(run: RunData) -> str:
    good = run.is_complete or run.state == "running"
    return f'<span class="badge {"good" if good else "warn"}">{_text(run.state)}</span>'


def _totals(run: RunData) -> str:
    last, seconds = run.last, run.seconds
    of_what = "time" if run.seconds_in_steps is None else "time in steps"
    trained = last.get("tokens/trained")
    tokens = last.get("tokens/total", run.records[-1].get("tokens") if run.records else None)
    tiles = {
        "steps": f"{run.step:,}" + (f" of {steps:,}" if (steps := _steps(run)) and steps != run.step else ""),
        "loss": _number(last.get("loss")),
        "tokens": _number(tokens),
        "trained tokens": _number(trained),
        of_what: None if seconds is None else _duration(seconds),
        "tokens per second": None if not (tokens and seconds) else _number(tokens / seconds),
        "resumed": f"{len(run.starts) - 1} times" if len(run.starts) > 1 else None,
    }
    shown = "".join(f"<div><b>{_text(v)}</b><span>{k}</span></div>" for k, v in tiles.items() if v is not None)
    error = run.summary.get("error") if run.summary else None
    how = f'<p class="error">{_text(printable(error))}</p>' if error else ""
    return f'<section class="totals">{shown}</section>{how}{_how_to_go_on(run)}'


def _how_to_go_on(run: RunData) -> str:
    if run.is_complete:
        return "<p>Complete: to train further, raise steps / num_epochs.</p>"
    command = _command(run)
    if command is None or run.state == "running":
        return ""
    return f"<p>Ended: {_text(one_line(run.state))}. To go on: <code>{_text(command)}</code></p>"


def _conversations(title: str, shown: Sequence[Mapping[str, Any]]) -> str:
    if not shown:
        return ""
    blocks = []
    for one in shown:
        reward = "" if one["reward"] is None else f" · {'reward' if one['rewards'] else 'score'} {one['reward']:.4g}"
        turns = ", ".join(f"{value:.4g}" for value in one["rewards"])
        by_turn = f" ({turns})" if len(one["rewards"]) > 1 else ""
        end = f" · ended: {_text(one['end'])}" if one["end"] else ""
        messages = "".join(
            f'<div class="message"><b>{_text(message["role"])}</b><pre>{_text(printable(message["text"]))}</pre></div>'
            for message in one["messages"]
        )
        preview = next((message["text"] for message in one["messages"] if message["role"] == "user"), "")
        head = f"{_text(one['title'])} · {one['kind']}{reward}{by_turn}{end}"
        head += f' <span class="preview">{_text(one_line(preview[:100]))}</span>'
        blocks.append(f"<details><summary>{head}</summary>{messages}</details>")
    return f"<section><h2>{title}</h2>{''.join(blocks)}</section>"


def _checkpoints(run: RunData) -> str:
    if not run.records:
        return ""
    rows = []
    for record in list(run.records)[::-1][:_RECORDS]:
        path = record.get("path") or record.get("state_path") or ""
        metrics = record.get("metrics") or {}
        names = [name for name in metrics if name == "loss" or ("/" in name and not name.startswith("tokens/"))][:6]
        shown = ", ".join(f"{name} {_number(metrics[name])}" for name in names)
        sampler = "yes" if record.get("sampler_path") else ""
        rows.append((record.get("step", record.get("name")), path, sampler, shown))
    left = len(run.records) - len(rows)
    note = f"<p>{left} older ones are not listed.</p>" if left > 0 else ""
    table = html_table(("step", "path", "for sampling", "metrics"), rows)
    return f"<section><h2>Checkpoints that are kept ({len(run.records)})</h2>{table}{note}</section>"


def _what_was_run(run: RunData) -> str:
    facts = html_table(("", ""), run.facts.items()) if run.facts else ""
    config = html_table(("option", "value"), flat_options(run.config).items())
    environment = {k: v for k, v in run.environment.items() if k not in ("packages", "command")}
    environment["command"] = _command(run)
    environment |= run.environment.get("packages") or {}
    return (
        "<section><h2>What was run</h2>"
        + facts
        + f"<details open><summary>Configuration</summary>{config}</details>"
        + f"<details><summary>Environment and versions</summary>{html_table(('', ''), environment.items())}</details>"
        + f"<details><summary>Starts ({len(run.starts)})</summary>{_starts(run)}</details></section>"
    )


def _starts(run: RunData) -> str:
    rows, before = [], None
    trained = which_trained([int(start.get("step", 0)) for start in run.starts], run.step)
    for start, has_trained in zip(run.starts, trained, strict=True):
        config = start.get("config") or {}
        changes = [] if before is None else changed_options(before, config)
        shown = ", ".join(f"{option}: {then} → {now}" for option, then, now in changes)
        rows.append((start.get("started"), start.get("step"), start.get("revision"), shown))
        before = config if has_trained or before is None else before
    return html_table(
        ("started", "at step", "code revision", "options other than at the last start that trained"), rows
    )


def html_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table of texts as HTML. Numbers are not broken into lines."""
    cells = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    top = f"<tr>{''.join(f'<th>{_text(name)}</th>' for name in head)}</tr>" if any(head) else ""
    return f'<div class="table"><table>{top}{cells}</table></div>'


def _cell(value: Any) -> str:
    text = _text(value)
    return f"<td class=number>{text}</td>" if _NUMBER.fullmatch(text) else f"<td>{text}</td>"


def _steps(run: RunData) -> int | None:
    for name in ("steps", "max_steps"):
        if isinstance(value := run.config.get(name), int):
            return value
    return None


def _command(run: RunData) -> str | None:
    command = run.environment.get("command")
    return one_line(shlex.join(map(str, command))) if isinstance(command, list) and command else None


def _number(value: Any) -> str | None:
    if not isinstance(value, int | float):
        return None
    whole = isinstance(value, int) or (value.is_integer() and abs(value) >= 1000)
    return f"{value:,.0f}" if whole else f"{value:.4g}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _text(value: Any) -> str:
    return "" if value is None else html.escape(printable(value))


def _json(value: Any) -> str:
    """Return JSON that is safe inside a script element: no tag can begin in it."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def _asset(name: str) -> str:
    return files("tinkerloop.report").joinpath("assets", name).read_text(encoding="utf-8")

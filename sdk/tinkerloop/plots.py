"""Plots of a run's metrics and of schedules (extra: `tinkerloop-sdk[plots]`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tinkerloop.extras import needs_extra
from tinkerloop.loop.jsonl import read_lines


def plot_metrics(metrics: str | Path, file: str | Path, panels: Sequence[Sequence[str]]) -> None:
    """Plot metrics over steps, with one panel for each group of metrics, and save the figure.

    Args:
        metrics: the path of the run's `metrics.jsonl`.
        file: the path of the image to write. The suffix selects the format, such as `.png` or `.svg`.
        panels: the names of the metrics in each panel, such as `[["loss", "test/nll"], ["test/exact_match"]]`. A metric
            without values is skipped.
    """
    with needs_extra("plots", "a plot"):
        from matplotlib.figure import Figure

    rows = list(read_lines(Path(metrics)))
    figure = Figure(figsize=(5 * len(panels), 3.5), layout="constrained")
    for axes, names in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name in names:
            points = [(row["step"], row[name]) for row in rows if name in row]
            if points:
                axes.plot(*zip(*points, strict=True), marker="." if len(points) < 50 else "", label=name)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    figure.savefig(file)


def plot_schedule(schedule: Callable[[int], float], steps: int, file: str | Path) -> None:
    """Plot `schedule` over steps 0 to steps - 1, and save it to `file` (`.png` or `.svg`, for example)."""
    with needs_extra("plots", "a plot"):
        from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(range(steps), [schedule(step) for step in range(steps)])
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
    figure.savefig(file)

"""Curves of a run's metrics for its page: grouped into charts, and reduced to as many points as a screen shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tinkerloop.report.run_reading import Series

POINTS = 1500
"""The largest number of points of a curve. A wide screen has about 1500 columns for it."""

_CHARTS = (  # (title, test of a metric's name); the first that fits is taken
    ("Loss", lambda name: name == "loss" or name.endswith(("/nll", "_nll", "/loss"))),
    ("Rewards", lambda name: "reward" in name or "solved" in name),
    ("KL and policy", lambda name: "kl" in name.lower() or name.startswith("policy/")),
    ("Rollouts", lambda name: name.startswith("rollouts/")),
    ("Learning rate", lambda name: name == "learning_rate"),
    ("Gradient", lambda name: "grad" in name),
    ("Tokens", lambda name: name == "tokens" or name.startswith("tokens/")),
    ("Seconds", lambda name: name.startswith("time/")),
)
_HIDDEN = ("loss:sum",)  # the same as `loss`, or not comparable between steps


def charts(series: Mapping[str, Series]) -> list[dict[str, Any]]:
    """Group metrics into charts, in a fixed order, with JSON-serializable curves.

    Returns:
        One dict per chart: `title`, and `curves`, each with `name`, `steps`, `values` (None where a value is not
        finite) and `non_finite`, the number of such values.
    """
    grouped: dict[str, list[dict[str, Any]]] = {}
    for name, one in series.items():
        if name not in _HIDDEN:
            grouped.setdefault(_title(name), []).append(reduced_curve(name, one))
    order = [title for title, _ in _CHARTS]
    titles = sorted(grouped, key=lambda title: (order.index(title) if title in order else 2, title))
    return [{"title": title, "curves": grouped[title]} for title in titles]


def _title(name: str) -> str:
    for title, fits in _CHARTS:
        if fits(name):
            return title
    return name.rpartition("/")[0] or "Other metrics"


def reduced_curve(name: str, series: Series, limit: int = POINTS) -> dict[str, Any]:
    """Return a curve of at most about `limit` points, as described at `charts`."""
    points = reduced(series.steps, series.values, limit)
    return {
        "name": name,
        "steps": [step for step, _ in points],
        "values": [float(f"{value:.6g}") if math.isfinite(value) else None for _, value in points],
        "non_finite": sum(not math.isfinite(value) for value in series.values),
    }


def reduced(steps: Sequence[int], values: Sequence[float], limit: int = POINTS) -> list[tuple[int, float]]:
    """Return about `limit` points of a curve that keep its shape: of each interval the smallest and largest value.

    A value that is not finite is always kept, because it would be missed otherwise.
    """
    points = list(zip(steps, values, strict=True))
    if len(points) <= limit:
        return points
    kept = {0, len(points) - 1}
    buckets = limit // 2 - 1
    for bucket in range(buckets):
        span = range(bucket * len(points) // buckets, (bucket + 1) * len(points) // buckets)
        finite = [i for i in span if math.isfinite(values[i])]
        kept.update(finite and (min(finite, key=values.__getitem__), max(finite, key=values.__getitem__)))
        kept.update([i for i in span if not math.isfinite(values[i])][:1])
    return [points[i] for i in sorted(kept)]

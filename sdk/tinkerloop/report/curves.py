"""Curves of a run's metrics for its page: grouped into charts, and reduced to as many points as a screen shows."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tinkerloop.report.run_reading import Series

POINTS = 1500
"""The largest number of points of a curve. A wide screen has about 1500 columns for it."""

_CHARTS = {  # title -> pattern of the names of its metrics, which have one scale; the first that matches is taken
    "Loss": r"loss|(.*[/_])?nll|.*/loss",
    "Rewards": r".*reward.*",
    "KL": r"(.*[/_])?kl([/_].*)?",
    "Log-ratios": r"policy/log_ratio_.*",
    "Shares of the policy's tokens": r"policy/(ess|clip_fraction)",
    "Shares of rollouts": r"rollouts/(solved|trained|constant|dropped|end_.*)",
    "Groups of rollouts": r"rollouts/(groups|further|failures)",
    "Tokens of replies": r"rollouts/reply_tokens_.*",
    "Staleness": r"policy/staleness_.*",
    "Learning rate": r"learning_rate",
    "Gradient": r".*grad.*",
    "Tokens of a step": r"tokens",
    "Tokens": r"tokens/.*",
    "Seconds": r"time/.*|rollouts/.*_seconds.*",
}
_HIDDEN = ("loss:sum",)  # the same as `loss`, or not comparable between steps


def charts(series: Mapping[str, Series]) -> list[dict[str, Any]]:
    """Group metrics into charts, in a fixed order, with JSON-serializable curves.

    The known groups share a chart each. Other metrics share one only if they differ in the name of the evaluation:
    `test/score` and `other/score`.

    Returns:
        One dict per chart: `title`, and `curves`, each with `name`, `steps`, `values` (None where a value is not
        finite) and `non_finite`, the number of such values.
    """
    grouped: dict[str, list[dict[str, Any]]] = {}
    for name, one in series.items():
        if name not in _HIDDEN:
            grouped.setdefault(_title(name), []).append(reduced_curve(name, one))
    order = list(_CHARTS)
    titles = sorted(grouped, key=lambda title: (order.index(title) if title in order else 2, title))
    return [{"title": title, "curves": grouped[title]} for title in titles]


def _title(name: str) -> str:
    for title, pattern in _CHARTS.items():
        if re.fullmatch(pattern, name, re.IGNORECASE | re.DOTALL):
            return title
    return name.rpartition("/")[2]  # a chart of its own, because other metrics may have any scale


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

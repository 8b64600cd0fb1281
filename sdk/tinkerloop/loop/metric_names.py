"""Checks of metrics: before a run, that its evaluations can log what callbacks decide from; in it, each row."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any

from tinkerloop.errors import PlanError
from tinkerloop.loop.callback import Callback


def did_you_mean(name: str, known: object) -> str:
    """Return the part of an error that names the most similar of the `known` names; empty if there is none."""
    close = get_close_matches(name, list(known), n=1)  # type: ignore[call-overload]
    return f"; did you mean {close[0]!r}?" if close else ""


def metric_of(evaluation: str, metric: str) -> str | None:
    """Return the name that `metric`, as it is logged, has in the result of an evaluation; None: it is not of it."""
    return metric.removeprefix(evaluation + "/") if metric.startswith(evaluation + "/") else None


def check_row(step: int, row: Mapping[Any, Any], reserved: Collection[str]) -> None:
    """Check the names and values of a row of metrics.

    A number is an int, a float or a bool, also as a scalar of numpy or torch. NaN and the infinities are numbers, too.

    Raises:
        PlanError: a name is no text or one of the `reserved`, or a value is no number.
    """
    for name, value in row.items():
        if not isinstance(name, str):
            raise PlanError(f"a metric of step {step} is named {name!r}, but a name must be a text: use {str(name)!r}")
        if name in reserved:
            raise PlanError(
                f"a metric of step {step} is named {name!r}, but this name is reserved for the loop: rename it"
            )
        if not isinstance(value, int | float) and not _is_scalar(value):
            raise PlanError(
                f"the metric {name!r} of step {step} must be a number, got {value!r}: leave out what is "
                "missing, and write texts and lists to a file of your own"
            )


def _is_scalar(value: Any) -> bool:
    """Return true for a number of numpy or torch, also in an array of size 1."""
    try:
        return isinstance(value.item(), int | float)
    except Exception:  # it has no `item`, or several elements, for which each package has an error of its own
        return False


def check_metrics(callbacks: Mapping[str, Callback]) -> None:
    """Check the metrics that callbacks decide from.

    A metric is refused if only a detached evaluation can log it. It is also refused if it must be of an evaluation and
    the run has none of this name, unless a callback does not declare its evaluations.

    Raises:
        PlanError: a metric is refused.
    """
    asking = [cb for cb in callbacks.values() if type(cb).on_boundary is not Callback.on_boundary]
    declared = {name: detached for cb in asking for name, detached in (cb.evaluations or {}).items()}
    all_declared = all(cb.evaluations is not None for cb in asking)
    for name, callback in callbacks.items():
        for metric, of_evaluation in callback.decides_from.items():
            detached = [declared[one] for one in declared if metric_of(one, metric) is not None]
            if detached and all(detached):
                raise PlanError(
                    f"callback {name!r} decides from {metric!r}, a metric of a detached evaluation, which arrives at a "
                    "time that is not reproducible: use detached=False"
                )
            if not detached and all_declared and of_evaluation:
                key = metric.rpartition("/")[2]
                raise PlanError(
                    f"callback {name!r} decides from {metric!r}, but nothing logs it: the evaluations of this run are "
                    f"{sorted(declared)}, and their metrics are named '<evaluation>/<metric>'"
                    f"{did_you_mean(metric, [f'{one}/{key}' for one in declared])}"
                )

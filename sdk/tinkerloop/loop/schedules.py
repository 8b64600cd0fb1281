"""Schedules: pure functions from a step number to a value, such as the learning rate.

Each function in this module returns a schedule, a `Callable[[int], float]`. Step 0 is the first optimizer step. The
length of a schedule is an argument and does not depend on the length of the run; after its last step, a schedule keeps
its last value. Schedules can be nested: `warmup(100, cosine(2e-4, 0.0, 900))`. A number that is not finite or out of
its range, and a number in the place of a schedule, are a `PlanError`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tinkerloop.errors import PlanError
from tinkerloop.number_checks import check_finite_number, check_positive_number, check_whole

Schedule = Callable[[int], float]


def check_schedule(name: str, schedule: Any) -> None:
    """Raise PlanError unless `schedule` can be called."""
    if not callable(schedule):
        raise PlanError(
            f"{name} must be a schedule, a function from step to value, got {schedule!r}: for one value at all steps, "
            "pass constant(value), from tinkerloop.loop.schedules"
        )


def constant(value: float) -> Schedule:
    """Return a schedule that has `value` at every step.

    >>> [constant(0.5)(s) for s in (0, 1000)]
    [0.5, 0.5]
    """
    check_finite_number("value", value)
    return lambda step: value


def polynomial(start: float, end: float, steps: int, power: float = 1.0) -> Schedule:
    """Return a schedule that goes from `start` to `end` over `steps` steps, as a polynomial.

    The value is end + (start - end) * (1 - t)^power, with t = min(step / steps, 1).

    >>> [polynomial(1.0, 0.0, 10, power=2)(s) for s in (0, 5, 10, 11)]
    [1.0, 0.25, 0.0, 0.0]
    """
    _check_ends(start, end)
    check_positive_number("steps", steps)
    check_positive_number("power", power)
    return lambda step: end + (start - end) * (1.0 - min(step / steps, 1.0)) ** power


def linear(start: float, end: float, steps: int) -> Schedule:
    """Return a schedule that goes linearly from `start` to `end` over `steps` steps.

    The value is start + (end - start) * min(step / steps, 1).

    >>> [linear(1.0, 0.0, 10)(s) for s in (0, 5, 10, 11)]
    [1.0, 0.5, 0.0, 0.0]
    """
    return polynomial(start, end, steps)


def cosine(start: float, end: float, steps: int) -> Schedule:
    """Return a schedule that goes from `start` to `end` over `steps` steps, along half a period of a cosine.

    The value is end + (start - end) * (1 + cos(pi * t)) / 2, with t = min(step / steps, 1). This is one cycle of
    Loshchilov & Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts" (2017).

    >>> [round(cosine(1.0, 0.0, 10)(s), 6) for s in (0, 5, 10, 11)]
    [1.0, 0.5, 0.0, 0.0]
    """
    _check_ends(start, end)
    check_positive_number("steps", steps)
    return lambda step: end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * min(step / steps, 1.0)))


def exponential(start: float, rate: float, steps: int) -> Schedule:
    """Return an exponential schedule: it begins at `start`, and is multiplied by `rate` in every `steps` steps.

    The value is start * rate^(step / steps), without a last step.

    >>> [exponential(1.0, 0.5, 10)(s) for s in (0, 10, 20)]
    [1.0, 0.5, 0.25]
    """
    check_finite_number("start", start)
    check_positive_number("steps", steps)
    check_positive_number("rate", rate)
    return lambda step: start * rate ** (step / steps)


def inverse_sqrt(peak: float, warmup_steps: int) -> Schedule:
    """Return a schedule that rises linearly to `peak` over `warmup_steps` steps, then falls as 1/sqrt(step + 1).

    The value is peak * min((step + 1) / warmup_steps, sqrt(warmup_steps / (step + 1))). Source: Vaswani et al.,
    "Attention Is All You Need" (2017), section 5.3, with `peak` instead of the factor for the model size.

    >>> [inverse_sqrt(1.0, 4)(s) for s in (0, 3, 15)]
    [0.25, 1.0, 0.5]
    """
    check_finite_number("peak", peak)
    check_positive_number("warmup_steps", warmup_steps)
    return lambda step: peak * min((step + 1) / warmup_steps, math.sqrt(warmup_steps / (step + 1)))


def wsd(peak: float, end: float, *, warmup_steps: int, stable_steps: int, decay_steps: int) -> Schedule:
    """Return a warmup-stable-decay schedule: linear rise to `peak`, then constant, then linear from `peak` to `end`.

    Source: Hu et al., "MiniCPM: Unveiling the Potential of Small Language Models with Scalable Training Strategies"
    (2024).

    >>> [wsd(1.0, 0.0, warmup_steps=2, stable_steps=6, decay_steps=4)(s) for s in (0, 1, 2, 7, 10, 12, 13)]
    [0.5, 1.0, 1.0, 1.0, 0.5, 0.0, 0.0]
    """
    check_whole("stable_steps", stable_steps, 0)
    tail = join([(stable_steps, constant(peak))], linear(peak, end, decay_steps))
    return warmup(warmup_steps, tail)


def piecewise(values: Sequence[tuple[int, float]], last: float) -> Schedule:
    """Return a schedule that has each value for its number of steps, then `last` forever.

    Args:
        values: pairs `(steps, value)`, in order.
        last: the value after the steps of all pairs.

    >>> [piecewise([(2, 1.0), (3, 0.1)], 0.01)(s) for s in (0, 1, 2, 4, 5, 9)]
    [1.0, 1.0, 0.1, 0.1, 0.01, 0.01]
    """
    return join([(steps, constant(value)) for steps, value in values], constant(last))


def warmup(steps: int, then: Schedule) -> Schedule:
    """Return a schedule that rises linearly to `then(0)` over `steps` steps, then follows `then` from its step 0.

    For step < steps the value is then(0) * (step + 1) / steps. So step 0 is already above zero, and step `steps - 1`
    reaches `then(0)`.

    >>> [warmup(4, constant(1.0))(s) for s in (0, 1, 3, 4)]
    [0.25, 0.5, 1.0, 1.0]
    """
    check_whole("the steps of warmup", steps, 0)
    check_schedule("the schedule after a warmup", then)
    if steps == 0:
        return then
    peak = then(0)
    return join([(steps, lambda step: peak * (step + 1) / steps)], then)


def join(parts: Iterable[tuple[int, Schedule]], last: Schedule) -> Schedule:
    """Return a schedule that follows several schedules one after another. Each of them starts at its own step 0.

    Args:
        parts: pairs `(steps, schedule)`: each schedule is followed for its number of steps.
        last: the schedule that is followed after all parts.

    >>> [join([(2, constant(1.0))], linear(0.5, 0.0, 10))(s) for s in (0, 1, 2, 7)]
    [1.0, 1.0, 0.5, 0.25]
    """
    parts = tuple(parts)  # an iterator can be read once
    for steps, part in parts:
        check_whole("the number of steps of each part", steps, 0)
        check_schedule("each part", part)
    check_schedule("the last part", last)

    def schedule(step: int) -> float:
        for steps, part in parts:
            if step < steps:
                return part(step)
            step -= steps
        return last(step)

    return schedule


def scaled(schedule: Schedule, factor: float) -> Schedule:
    """Return a schedule whose value is `factor` times the value of `schedule`.

    >>> scaled(constant(2.0), 0.5)(0)
    1.0
    """
    check_schedule("the scaled schedule", schedule)
    check_finite_number("factor", factor)
    return lambda step: factor * schedule(step)


def _check_ends(start: float, end: float) -> None:
    check_finite_number("start", start)
    check_finite_number("end", end)

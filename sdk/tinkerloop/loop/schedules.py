"""Schedules: pure functions from a step to a value. A schedule has its own horizon; the loop's length never enters it.

Each function here returns a schedule, a `Callable[[int], float]`. Step 0 is the first optimizer step. Past its horizon
a schedule keeps its last value. They nest: `warmup(100, cosine(2e-4, 0.0, 900))`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Schedule = Callable[[int], float]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def constant(value: float) -> Schedule:
    """Return `value` at every step.

    >>> [constant(0.5)(s) for s in (0, 1000)]
    [0.5, 0.5]
    """
    return lambda step: value


def polynomial(start: float, end: float, steps: int, power: float = 1.0) -> Schedule:
    """Move from `start` to `end` over `steps`: end + (start - end) * (1 - t)^power, with t = min(step / steps, 1).

    >>> [polynomial(1.0, 0.0, 10, power=2)(s) for s in (0, 5, 10, 11)]
    [1.0, 0.25, 0.0, 0.0]
    """
    _require(steps > 0, f"steps must be > 0, got {steps}")
    _require(power > 0, f"power must be > 0, got {power}")
    return lambda step: end + (start - end) * (1.0 - min(step / steps, 1.0)) ** power


def linear(start: float, end: float, steps: int) -> Schedule:
    """Move from `start` to `end` in a straight line over `steps`: start + (end - start) * min(step / steps, 1).

    >>> [linear(1.0, 0.0, 10)(s) for s in (0, 5, 10, 11)]
    [1.0, 0.5, 0.0, 0.0]
    """
    return polynomial(start, end, steps)


def cosine(start: float, end: float, steps: int) -> Schedule:
    """Follow half a cosine from `start` to `end`:

    end + (start - end) * (1 + cos(pi * t)) / 2, with t = min(step / steps, 1).

    Loshchilov & Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts" (2017), one cycle.

    >>> [round(cosine(1.0, 0.0, 10)(s), 6) for s in (0, 5, 10, 11)]
    [1.0, 0.5, 0.0, 0.0]
    """
    _require(steps > 0, f"steps must be > 0, got {steps}")
    return lambda step: end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * min(step / steps, 1.0)))


def exponential(start: float, rate: float, steps: int) -> Schedule:
    """Multiply by `rate` every `steps`: start * rate^(step / steps). It has no horizon.

    >>> [exponential(1.0, 0.5, 10)(s) for s in (0, 10, 20)]
    [1.0, 0.5, 0.25]
    """
    _require(steps > 0, f"steps must be > 0, got {steps}")
    _require(rate > 0, f"rate must be > 0, got {rate}")
    return lambda step: start * rate ** (step / steps)


def inverse_sqrt(peak: float, warmup_steps: int) -> Schedule:
    """Rise linearly to `peak` over `warmup_steps`, then fall as 1/sqrt: peak * min((s + 1) / w, sqrt(w / (s + 1))).

    Vaswani et al., "Attention Is All You Need" (2017), section 5.3, with `peak` in place of the model-size factor.

    >>> [inverse_sqrt(1.0, 4)(s) for s in (0, 3, 15)]
    [0.25, 1.0, 0.5]
    """
    _require(warmup_steps > 0, f"warmup_steps must be > 0, got {warmup_steps}")
    return lambda step: peak * min((step + 1) / warmup_steps, math.sqrt(warmup_steps / (step + 1)))


def wsd(peak: float, end: float, *, warmup_steps: int, stable_steps: int, decay_steps: int) -> Schedule:
    """Warm up, stay, decay: linear to `peak`, constant, then linear from `peak` to `end`.

    Hu et al., "MiniCPM: Unveiling the Potential of Small Language Models with Scalable Training Strategies" (2024).

    >>> [wsd(1.0, 0.0, warmup_steps=2, stable_steps=6, decay_steps=4)(s) for s in (0, 1, 2, 7, 10, 12, 13)]
    [0.5, 1.0, 1.0, 1.0, 0.5, 0.0, 0.0]
    """
    _require(stable_steps >= 0, f"stable_steps must be >= 0, got {stable_steps}")
    tail = join([(stable_steps, constant(peak))], linear(peak, end, decay_steps))
    return warmup(warmup_steps, tail)


def piecewise(values: Sequence[tuple[int, float]], last: float) -> Schedule:
    """Hold each `(steps, value)` for that many steps, then `last` for ever.

    >>> [piecewise([(2, 1.0), (3, 0.1)], 0.01)(s) for s in (0, 1, 2, 4, 5, 9)]
    [1.0, 1.0, 0.1, 0.1, 0.01, 0.01]
    """
    return join([(steps, constant(value)) for steps, value in values], constant(last))


def warmup(steps: int, then: Schedule) -> Schedule:
    """Rise linearly to the first value of `then` over `steps`, then `then` from its own step 0.

    then(0) * (step + 1) / steps for step < steps: the first step already moves, and step `steps - 1` reaches the peak.

    >>> [warmup(4, constant(1.0))(s) for s in (0, 1, 3, 4)]
    [0.25, 0.5, 1.0, 1.0]
    """
    _require(steps >= 0, f"warmup steps must be >= 0, got {steps}")
    if steps == 0:
        return then
    peak = then(0)
    return join([(steps, lambda step: peak * (step + 1) / steps)], then)


def join(parts: Sequence[tuple[int, Schedule]], last: Schedule) -> Schedule:
    """Follow each `(steps, schedule)` for that many steps, then `last`. Each schedule starts at its own step 0.

    >>> [join([(2, constant(1.0))], linear(0.5, 0.0, 10))(s) for s in (0, 1, 2, 7)]
    [1.0, 1.0, 0.5, 0.25]
    """
    for steps, _ in parts:
        _require(steps >= 0, f"the steps of each part must be >= 0, got {steps}")

    def schedule(step: int) -> float:
        for steps, part in parts:
            if step < steps:
                return part(step)
            step -= steps
        return last(step)

    return schedule


def scaled(schedule: Schedule, factor: float) -> Schedule:
    """Multiply `schedule` by `factor`.

    >>> scaled(constant(2.0), 0.5)(0)
    1.0
    """
    return lambda step: factor * schedule(step)

"""Checks of numbers that are given as arguments, where a wrong one would have another effect than its author means."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

from tinkerloop.errors import PlanError, TinkerloopError


def is_whole(value: Any) -> bool:
    """Return whether a value is a whole number, of Python or numpy. True and 2.0 are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_whole(name: str, value: Any, least: int, *, error: type[TinkerloopError] = PlanError) -> None:
    """Raise `error` unless `value` is a whole number of at least `least`."""
    if not is_whole(value) or value < least:
        raise error(f"{name} must be a whole number of at least {least}, got {value!r}")


def check_finite_number(
    name: str, value: Any, least: float | None = None, *, error: type[TinkerloopError] = PlanError
) -> None:
    """Raise `error` unless `value` is a finite number, of at least `least` if that is given. True is none."""
    if not _is_finite(value) or (least is not None and value < least):
        raise error(f"{name} must be a finite number{'' if least is None else f' of at least {least}'}, got {value!r}")


def check_positive_number(name: str, value: Any, *, error: type[TinkerloopError] = PlanError) -> None:
    """Raise `error` unless `value` is a finite number above 0. True is none."""
    if not _is_finite(value) or not float(value) > 0:
        raise error(f"{name} must be a finite number above 0, got {value!r}")


def _is_finite(value: Any) -> bool:
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number that is too large for a float
        return False

"""Numbers as options of the commands: functions for argparse's `type=`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable


def at_least(least: int) -> Callable[[str], int]:
    """Return a function that accepts whole numbers of at least `least`."""

    def number(written: str) -> int:
        if not written.isdecimal() or int(written) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, got {written!r}")
        return int(written)

    return number


def non_negative(written: str) -> float:
    """Return a finite number of at least 0."""
    try:
        number = float(written)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {written!r}")
    return number

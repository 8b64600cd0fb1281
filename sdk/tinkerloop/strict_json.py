"""A JSON decoder that rejects what Python's accepts although it is no JSON, or although a part of it would be lost."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any, NoReturn


def _finite(number: str) -> float:
    value = float(number)
    if not value and re.search("[1-9]", number.lower().partition("e")[0]):
        raise ValueError(f"{number} is too small for a float, and would become 0")
    return value if math.isfinite(value) else _refuse_constant(number)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number, which must be finite")


def unique_dict(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return a dictionary of pairs of a key and a value.

    Raises:
        ValueError: a key occurs more than once, so that a value would be lost.
    """
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {repeated!r} occurs more than once in one object")
    return value


DEEPEST = 100
"""The largest number of lists and objects inside each other in the arguments of a call.

Python limits nested calls to 1,000. Functions with two calls for each level reach this at half the depth, and all reach
it earlier if their caller is in deep calls itself. `DEEPEST` is far below, so that every function accepts every value.
"""


def check_depth(value: Any, size: int) -> None:
    """Check that no more than `DEEPEST` lists and objects are inside each other in a value.

    Args:
        size: the number of characters of the value as JSON.

    Raises:
        ValueError: the value is nested more deeply.
    """
    if size <= 2 * DEEPEST:  # each list and each object has two brackets
        return
    level = [value] if isinstance(value, _CONTAINERS) else []
    for _ in range(DEEPEST):
        if not level:
            return
        level = [
            inside
            for container in level
            for inside in (container.values() if isinstance(container, dict) else container)
            if type(inside) not in _LEAVES and isinstance(inside, _CONTAINERS)
        ]
    if level:
        raise _too_deep()


_CONTAINERS = (dict, list, tuple)
_LEAVES = frozenset({str, int, float, bool, type(None)})  # looking a type up is faster than `isinstance`


def _too_deep() -> ValueError:
    return ValueError(f"more than {DEEPEST} lists and objects are inside each other")


class _ShallowDecoder(json.JSONDecoder):
    """Decoder that also checks the depth of values, in `decode`, `raw_decode` and `scan_once`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        scan = vars(self)["scan_once"]

        def scan_once(text: str, start: int) -> tuple[Any, int]:
            try:
                value, end = scan(text, start)
            except RecursionError:
                raise _too_deep() from None
            check_depth(value, end - start)
            return value, end

        self.scan_once = scan_once


_STRICT: dict[str, Any] = {
    "parse_constant": _refuse_constant,
    "parse_float": _finite,
    "object_pairs_hook": unique_dict,
}

STRICT_JSON = _ShallowDecoder(**_STRICT)
"""Decoder that raises ValueError for NaN, infinities, numbers too large or too small for a float, a key that is
repeated in one object (Python's decoder keeps only its last value), and values nested more deeply than `DEEPEST`."""

STRICT_ROWS = json.JSONDecoder(**_STRICT)
"""Like `STRICT_JSON`, for rows of data, in which a column that nothing reads may be nested more deeply. It raises
RecursionError for values that Python cannot decode."""

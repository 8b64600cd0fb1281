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


STRICT_JSON = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=unique_dict)
"""Decoder that raises ValueError for NaN, infinities, numbers too large or too small for a float, and a key that is
repeated in one object (Python's decoder keeps only its last value). For values that are nested too deeply it raises
RecursionError."""

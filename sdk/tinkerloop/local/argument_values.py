"""Values of arguments that tinker's own types do not check: each is converted, or raises if it is of another kind."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tinkerloop.local.request_errors import bad_request
from tinkerloop.number_checks import is_whole

MakeError = Callable[[str], Exception]
"""Function that returns the exception to raise, given the message."""


def true_or_false(name: str, value: Any, error: MakeError = bad_request) -> bool:
    """Return `value`, a bool of Python or numpy, as a bool. Raise `error` for anything else, such as 1 or "no"."""
    if not isinstance(value, bool | np.bool_):
        raise error(f"{name} must be True or False, got {value!r}")
    return bool(value)


def whole_number(
    name: str,
    value: Any,
    error: MakeError = bad_request,
    *,
    expected: str = "a whole number",
    least: float = -math.inf,
    most: float = math.inf,
) -> int:
    """Return `value`, a whole number of Python or numpy, as an int. Raise `error` for anything else, such as True.

    `expected` describes the numbers from `least` to `most` in the error.
    """
    if not is_whole(value) or not least <= int(value) <= most:
        raise error(f"{name} must be {expected}, got {value!r}")
    return int(value)


def check_unicode(name: str, text: str) -> None:
    """Raise BadRequestError if `text` has an unpaired surrogate, which no JSON file or message can carry.

    `os.fsdecode` returns such texts for file names that are not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise bad_request(
            f"{name} must be valid Unicode, got {text!r} with an unpaired surrogate; remove it, e.g. with "
            "text.encode(errors='replace').decode()"
        ) from None

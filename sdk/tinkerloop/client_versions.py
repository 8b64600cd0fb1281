"""Differences between the versions of the `tinker` client that `pyproject.toml` allows."""

from __future__ import annotations

import inspect
from functools import cache


@cache
def has_field(cls: type, name: str) -> bool:
    """Return whether the installed version of a `tinker` type has the field `name`.

    `has_field(tinker.SampledSequence, "sequence_id")` is False before tinker 0.26.
    """
    return name in inspect.signature(cls).parameters

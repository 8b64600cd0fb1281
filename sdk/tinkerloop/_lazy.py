"""`tinker`, loaded on first use.

Importing tinker loads torch wherever torch is installed (about a second and a half). Modules that must stay cheap to
import write `from tinkerloop._lazy import tinker`: it is loaded when one of its names is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any


class _LazyModule:
    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        value = getattr(importlib.import_module(self._name), attribute)
        setattr(self, attribute, value)  # the next access is an ordinary one
        return value


if TYPE_CHECKING:
    import tinker as tinker
else:
    tinker = _LazyModule("tinker")

"""The module `tinker`, imported only when one of its names is first used.

Importing tinker also imports torch, if torch is installed, which takes about 1.5 seconds. Modules that must be fast to
import therefore use `from tinkerloop._lazy import tinker` instead of `import tinker`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any


class _LazyModule:
    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        value = getattr(importlib.import_module(self._name), attribute)
        setattr(self, attribute, value)  # so that the next access does not call __getattr__
        return value


if TYPE_CHECKING:
    import tinker as tinker
else:
    tinker = _LazyModule("tinker")

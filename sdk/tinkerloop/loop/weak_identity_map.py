"""A weak map from objects to values by identity, for what is known about the user's clients and callbacks."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class WeakIdentityMap(Generic[T]):
    """Map from objects to values. Objects are compared by identity, so they need no `__hash__`.

    An entry is removed when its object is deleted. An object that does not support weak references is kept alive.
    """

    def __init__(self) -> None:
        self._values: dict[int, tuple[Callable[[], object], T]] = {}

    def set(self, owner: object, value: T) -> None:
        """Set the value of `owner`."""
        key = id(owner)
        try:
            alive: Callable[[], object] = weakref.ref(owner, lambda _: self._values.pop(key, None))
        except TypeError:
            alive = lambda: owner  # noqa: E731
        self._values[key] = (alive, value)

    def get(self, owner: object) -> T | None:
        """Return the value of `owner`; None if there is none."""
        alive, value = self._values.get(id(owner), (None, None))
        return value if alive is not None and alive() is owner else None

    def forget(self, owner: object) -> None:
        """Remove the value of `owner`, if there is one."""
        self._values.pop(id(owner), None)

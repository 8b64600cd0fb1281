"""`Remembered`, which holds what is known about objects that belong to the user, such as clients and callbacks."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Remembered(Generic[T]):
    """A value for each object, found by the identity of the object.

    The entry of an object ends with the object; only one that cannot be weakly referenced is kept alive.
    """

    def __init__(self) -> None:
        self._values: dict[int, tuple[Callable[[], object], T]] = {}

    def set(self, owner: object, value: T) -> None:
        """Remember `value` for `owner`."""
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

"""`Ready`, the future of a request that `OrderedService` has already executed."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Ready(Generic[T]):
    """A future that is already finished. `asked` is called each time its result is requested."""

    def __init__(self, value: Any = None, *, error: Exception | None = None, asked: Callable[[], None] = lambda: None):
        self._value, self._error, self._asked = value, error, asked

    def result(self, timeout: float | None = None) -> T:
        """Return the value of the operation, or raise its error."""
        self._asked()
        if self._error is not None:
            raise self._error
        return self._value

    def done(self) -> bool:
        """Return true, because the operation is already finished."""
        return True

    async def result_async(self, timeout: float | None = None) -> T:
        """Return the value of the operation, or raise its error."""
        return self.result()

    def __await__(self) -> Generator[Any, Any, T]:
        return self.result_async().__await__()

"""The future that every queued request returns, which is of both of Tinker's future types.

`RequestFuture` is a `concurrent.futures.Future` (so `as_completed`, `wait` and callbacks work) and a `tinker.APIFuture`
(so it can be awaited, any number of times).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from typing import TypeVar

import tinker

T = TypeVar("T")


WORKER_THREADS: set[int] = set()
"""The identifiers of the threads that execute requests."""


class RequestFuture(concurrent.futures.Future[T], tinker.APIFuture[T]):
    """The future of a request's answer; `.result()` and `await` return it or raise the request's error."""

    def result(self, timeout: float | None = None) -> T:
        if not self.done() and threading.get_ident() in WORKER_THREADS:
            raise RuntimeError(
                "code that runs inside a request cannot wait for another request: return first, then wait"
            )
        return super().result(timeout)

    async def result_async(self, timeout: float | None = None) -> T:
        async with asyncio.timeout(timeout):
            return await asyncio.wrap_future(self)

    def future(self) -> concurrent.futures.Future[T]:
        return self

    async def coroutine(self) -> T:
        """Return the answer, as a coroutine for `asyncio.create_task`."""
        return await self


def failed(error: BaseException) -> RequestFuture:
    """Return a finished future that raises `error`."""
    future: RequestFuture = RequestFuture()
    future.set_exception(error)
    return future

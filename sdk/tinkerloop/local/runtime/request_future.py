"""The future that every client method for a request returns.

`RequestFuture` is a `concurrent.futures.Future`, so `as_completed`, `wait` and callbacks work. It is also a
`tinker.APIFuture`, so it can be awaited, any number of times.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from typing import TypeVar

import tinker

from tinkerloop.local.request_errors import user_error

T = TypeVar("T")


WORKER_THREADS: set[int] = set()
"""Identifiers (`threading.get_ident()`) of the threads that execute requests."""


class RequestFuture(concurrent.futures.Future[T], tinker.APIFuture[T]):
    """Future of one request. `.result()` and `await` return the request's result or raise its error."""

    def __init__(self) -> None:
        super().__init__()
        self._process = os.getpid()

    def result(self, timeout: float | None = None) -> T:
        if not self.done():
            check_process(self._process)
        if not self.done() and threading.get_ident() in WORKER_THREADS:
            raise RuntimeError(
                "cannot wait for a request inside a function that another request executes: the wait would never end. "
                "Return the future from the function, and wait for it afterwards"
            )
        return super().result(timeout)

    async def result_async(self, timeout: float | None = None) -> T:
        if not self.done():
            check_process(self._process)
        async with asyncio.timeout(timeout):
            return await asyncio.wrap_future(self)

    def future(self) -> concurrent.futures.Future[T]:
        return self

    async def coroutine(self) -> T:
        """Return the request's result. This is a coroutine, so `asyncio.create_task` accepts it."""
        return await self


def check_process(process: int) -> None:
    """Check that this is the process that started the engine. After `os.fork` the child has no copy of its thread.

    Raises:
        tinker.RequestFailedError: (category user) it is a forked child, in which a wait would never end.
    """
    if os.getpid() != process:
        raise user_error(
            f"this process ({os.getpid()}) was forked from process {process}, in which the embedded engine runs, and "
            "threads do not survive a fork: use the client in the parent process, create a ServiceClient in the child, "
            'or start child processes with the method "spawn"'
        )


def failed(error: BaseException) -> RequestFuture:
    """Return a finished future whose `result()` raises `error`."""
    future: RequestFuture = RequestFuture()
    future.set_exception(error)
    return future

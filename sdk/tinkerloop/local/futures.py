"""What every queued request returns: one object that is both of Tinker's future types.

`Future` is a `concurrent.futures.Future` (so `as_completed`, `wait` and callbacks work) and a `tinker.APIFuture`
(so it can be awaited, any number of times). Errors are Tinker's own classes, built here without a network.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from typing import TypeVar

import httpx
import tinker
from tinker.types import RequestErrorCategory

T = TypeVar("T")


WORKERS: set[int] = set()
"""Identifiers of the threads that execute requests."""


class Verbatim(Exception):
    """Carries an error of the caller's own code, to be raised as it is."""

    def __init__(self, error: BaseException):
        self.error = error


class Future(concurrent.futures.Future[T], tinker.APIFuture[T]):
    """The answer to a request; `.result()` and `await` give it or raise the request's error."""

    def result(self, timeout: float | None = None) -> T:
        if not self.done() and threading.get_ident() in WORKERS:
            raise RuntimeError("code that runs inside a request cannot wait for another request")
        return super().result(timeout)

    async def result_async(self, timeout: float | None = None) -> T:
        async with asyncio.timeout(timeout):
            return await asyncio.wrap_future(self)

    def future(self) -> concurrent.futures.Future[T]:
        return self

    async def coroutine(self) -> T:
        """The answer as a coroutine, for `asyncio.create_task`."""
        return await self


def failed(error: BaseException) -> Future:
    """A future that already holds `error`."""
    future: Future = Future()
    future.set_exception(error)
    return future


def user_error(message: str) -> tinker.RequestFailedError:
    """The request was accepted but cannot be executed as given; nothing changed, and the client stays usable."""
    return tinker.RequestFailedError(message, request_id="local", category=RequestErrorCategory.User)


def server_error(message: str) -> tinker.RequestFailedError:
    """The engine could not do what was rightly asked (disk full, out of memory, a defect)."""
    return tinker.RequestFailedError(message, request_id="local", category=RequestErrorCategory.Server)


def _response(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("POST", "local://tinkerloop"))


def bad_request(message: str) -> tinker.BadRequestError:
    return tinker.BadRequestError(message, response=_response(400), body=None)


def not_found(message: str) -> tinker.NotFoundError:
    return tinker.NotFoundError(message, response=_response(404), body=None)


def conflict(message: str) -> tinker.ConflictError:
    return tinker.ConflictError(message, response=_response(409), body=None)

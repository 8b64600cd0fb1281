"""Futures, and flows: generators that yield what they wait for, so that sync and async code share one loop.

A `Flow` yields `Wait(future)`, and its driver sends it the future's value or throws the future's error into it. All
else that it yields is for the caller. `iterate` drives a flow in ordinary code and `aiterate` in async code, so both
perform exactly the same operations in the same order.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, overload

from tinkerloop._lazy import tinker
from tinkerloop.clients import Future

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Wait:
    """A request, yielded by a flow, to be resumed with the future's value."""

    future: Future[Any]


Flow = Generator[Any, Any, T]


def iterate(flow: Flow[Any]) -> Iterator[Any]:
    """Drive `flow`, blocking at each wait, and yield everything else that it yields."""
    resume: Callable[[Any], Any] = flow.send
    value: Any = None
    with closing(flow):
        while True:
            try:
                item = resume(value)
            except StopIteration:
                return
            resume, value = flow.send, None
            if not isinstance(item, Wait):
                yield item
                continue
            try:
                value = item.future.result()
            except BaseException as error:
                resume, value = flow.throw, error


async def aiterate(flow: Flow[Any]) -> AsyncIterator[Any]:
    """Drive `flow`, awaiting at each wait, and yield everything else that it yields."""
    resume: Callable[[Any], Any] = flow.send
    value: Any = None
    with closing(flow):
        while True:
            try:
                item = resume(value)
            except StopIteration:
                return
            resume, value = flow.send, None
            if not isinstance(item, Wait):
                yield item
                continue
            try:
                value = await awaitable(item.future)
            except BaseException as error:
                resume, value = flow.throw, error


def awaitable(future: Any) -> Awaitable[Any]:
    """Make any future awaitable."""
    if hasattr(future, "__await__"):
        return future
    if isinstance(future, concurrent.futures.Future):
        return asyncio.wrap_future(future)
    return asyncio.to_thread(future.result)  # such a future can only block, so a thread waits for it


class Mapped(Generic[T, U]):
    """The future of `fn(value)`. `fn` runs in the call that asks for the result, and each time."""

    def __init__(self, future: Future[T], fn: Callable[[T], U]):
        self._future, self._fn = future, fn

    def result(self, timeout: float | None = None) -> U:
        return self._fn(self._future.result(timeout))

    def done(self) -> bool:
        return is_done(self._future)

    def __await__(self) -> Generator[Any, Any, U]:
        return self._run().__await__()

    async def _run(self) -> U:
        return self._fn(await awaitable(self._future))


def background(
    work: Callable[..., T | Coroutine[Any, Any, T]] | Coroutine[Any, Any, T], *args: Any
) -> concurrent.futures.Future[T]:
    """Run `work(*args)` on a new thread and return the future of its value.

    The thread is a daemon: the process can end without waiting for it.

    Args:
        work: a function, a coroutine function, or a coroutine (which takes no `args`).
    """
    future: concurrent.futures.Future[T] = concurrent.futures.Future()

    def run() -> None:
        try:
            if inspect.iscoroutine(work):
                value = asyncio.run(work)
            else:
                value = work(*args)  # type: ignore[operator]
                if inspect.iscoroutine(value):
                    value = asyncio.run(value)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(value)  # type: ignore[arg-type]

    future.set_running_or_notify_cancel()
    threading.Thread(target=run, name="tinkerloop-background", daemon=True).start()
    return future


@overload
def resolve(value: Future[T]) -> T: ...
@overload
def resolve(value: T) -> T: ...
def resolve(value: Any) -> Any:
    """Wait for a future's value; return anything else as it is.

    `create_*` returned a client in older versions of tinker and returns a future of one in newer versions: this gives
    the client in both cases.
    """
    return value.result() if hasattr(value, "result") else value


def is_done(future: Any) -> bool:
    """Return true if the future's value can be had without waiting; false for futures that cannot tell."""
    if isinstance(future, tinker.APIFuture):
        future = future.future()  # an APIFuture has no `done`, the concurrent future inside has
    return hasattr(future, "done") and future.done()

"""Futures and flows. A flow is a generator that yields the futures it waits for.

When a `Flow` yields `Wait(future)`, the function that runs it sends the future's value back, or throws the future's
error into it. All other items that the flow yields are passed to the caller. `iterate` runs a flow in synchronous code,
and `aiterate` in async code. So both kinds of code share one loop, and perform the same operations in the same order.
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
from tinkerloop.errors import PlanError

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Wait:
    """Item that a flow yields to wait for `future`. The flow then gets the future's value or its error."""

    future: Future[Any]


Flow = Generator[Any, Any, T]


def iterate(flow: Flow[Any]) -> Iterator[Any]:
    """Run `flow` in synchronous code. Block at each `Wait` that it yields, and yield every other item."""
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
    """Run `flow` in async code. Await the future of each `Wait` that it yields, and yield every other item."""
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
    """Return an awaitable for the value of `future`, which may be any object with a `result` method."""
    if hasattr(future, "__await__"):
        return future
    if isinstance(future, concurrent.futures.Future):
        return asyncio.wrap_future(future)
    return asyncio.to_thread(future.result)  # a future with a blocking `result` only: a thread waits for it


class Mapped(Generic[T, U]):
    """The future of `fn(value)`, where `value` is the value of `future`. `fn` runs again in each call of `result`."""

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
    """Run `work(*args)` on a new thread, and return the future of what it returns.

    The thread is a daemon thread, so the process can end without waiting for it.

    Args:
        work: a function, a coroutine function, or a coroutine. With a coroutine, `args` must be empty.
        args: the arguments of `work`.

    Raises:
        PlanError: `work` is a coroutine, which has its arguments already, and `args` are given.
    """
    if args and inspect.iscoroutine(work):
        work.close()  # Python would warn that it was never awaited
        raise PlanError(
            f"background got the coroutine {work.__qualname__}(...) and the arguments {args}, which it cannot take any "
            f"more: pass the function and its arguments, as background({work.__name__}, ...), or the coroutine alone"
        )
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
    """Wait for `value` if it is a future, and return its result; return any other `value` itself.

    The `create_*` methods of tinker return a client in older versions and a future of a client in newer ones.
    `resolve` returns the client in both cases.
    """
    return value.result() if hasattr(value, "result") else value


async def resolve_async(value: Any) -> Any:
    """Await `value` if it is a future, and return its result; return any other `value` itself."""
    return await awaitable(value) if hasattr(value, "result") else value


def is_done(future: Any) -> bool:
    """Return true if `future` is known to be finished. A future without a `done` method counts as not finished."""
    if isinstance(future, tinker.APIFuture):
        future = future.future()  # an APIFuture has no `done` method, but the concurrent future inside it has
    return hasattr(future, "done") and future.done()

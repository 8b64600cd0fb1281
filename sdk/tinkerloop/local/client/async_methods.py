"""Functions that create the `*_async` variants of the clients' methods.

tinker deprecates these variants, but user programs still call them. As in tinker, a method that returns a future has
one of two kinds of variants: with `queued` the caller awaits twice (`await (await client.optim_step_async(...))`), with
`awaited` once. `in_thread` is for methods that block.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S")


def queued(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """Return a coroutine variant of `method` that returns what `method` returns, usually a future.

    The caller awaits twice: first the coroutine, which queues the request, then the future.
    """

    @functools.wraps(method)
    async def variant(self: S, *args: P.args, **kwargs: P.kwargs) -> T:
        return method(self, *args, **kwargs)

    return variant


def awaited(
    method: Callable[Concatenate[S, P], Awaitable[T]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """Return a coroutine variant of `method` that awaits the future of `method` and returns its result."""

    @functools.wraps(method)
    async def variant(self: S, *args: P.args, **kwargs: P.kwargs) -> T:
        return await method(self, *args, **kwargs)

    return variant


def in_thread(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """Return a coroutine variant of the blocking `method`. It runs in a thread, so the event loop is not blocked."""

    @functools.wraps(method)
    async def variant(self: S, *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.to_thread(method, self, *args, **kwargs)

    return variant

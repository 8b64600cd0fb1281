"""The `*_async` variants of the clients' methods, which tinker deprecates and scripts still use.

A method that returns a future gets one of two variants, as in tinker: `queued` when a script awaits twice
(`await (await client.optim_step_async(...))`), `awaited` when it awaits once. A method that blocks gets `in_thread`.
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
    """Return the method as a coroutine that queues the request and returns its future, which is awaited in turn."""

    @functools.wraps(method)
    async def variant(self: S, *args: P.args, **kwargs: P.kwargs) -> T:
        return method(self, *args, **kwargs)

    return variant


def awaited(
    method: Callable[Concatenate[S, P], Awaitable[T]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """Return the method as a coroutine that waits for the future and returns its result."""

    @functools.wraps(method)
    async def variant(self: S, *args: P.args, **kwargs: P.kwargs) -> T:
        return await method(self, *args, **kwargs)

    return variant


def in_thread(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """Return a blocking method as a coroutine that runs it in a thread, so that the event loop is not blocked."""

    @functools.wraps(method)
    async def variant(self: S, *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.to_thread(method, self, *args, **kwargs)

    return variant

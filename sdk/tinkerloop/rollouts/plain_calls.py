"""Calls of plain functions from coroutines, each in a thread, because the functions may block.

`asyncio.to_thread` does the same. It creates two futures and takes several locks for each call, so that its own
processor time is about twice as long. An episode of 8 turns makes 9 such calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import os
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

_THREADS = 64  # the functions mostly wait, for example for a program that they started

_End = tuple[BaseException | None, Any]
"""How a call ended, as (error, value). A future cannot have a StopIteration as its error, so it has a pair as value."""

_Call = tuple[contextvars.Context, Callable[..., Any], Sequence[Any], asyncio.AbstractEventLoop, asyncio.Future[_End]]


async def call_in_thread(function: Callable[..., Any], *args: Any) -> Any:
    """Return `function(*args)`, which runs in one of at most 64 threads, with the context variables of the caller.

    If the caller is cancelled, the function runs to its end, and its value is dropped. The threads do not keep the
    process alive.
    """
    loop = asyncio.get_running_loop()
    end: asyncio.Future[_End] = loop.create_future()
    _threads_of(os.getpid()).put((contextvars.copy_context(), function, args, loop, end))
    error, value = await end
    if error is not None:
        raise error
    return value


class _Threads:
    """Threads that carry out calls, in the order of `put`. A thread is started if there is none for a call."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[_Call] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._unfinished = self._started = 0

    def put(self, call: _Call) -> None:
        with self._lock:
            self._unfinished += 1
            if is_short := self._started < min(self._unfinished, _THREADS):
                self._started += 1
        if is_short:
            threading.Thread(target=self._work, name="tinkerloop-plain-calls", daemon=True).start()
        self._calls.put(call)

    def _work(self) -> None:
        while True:
            self._carry_out(*self._calls.get())  # no variable keeps a finished call alive

    def _carry_out(
        self,
        context: contextvars.Context,
        function: Callable[..., Any],
        args: Sequence[Any],
        loop: asyncio.AbstractEventLoop,
        end: asyncio.Future[_End],
    ) -> None:
        error, value = None, None
        try:
            value = context.run(function, *args)
        except BaseException as raised:
            error = raised
        with self._lock:
            self._unfinished -= 1
        with contextlib.suppress(RuntimeError):  # the event loop was closed, so nobody waits
            loop.call_soon_threadsafe(_set_end, end, (error, value))


@functools.cache
def _threads_of(process: int) -> _Threads:
    """Return the threads of a process: a process that was forked has none of the threads of its parent."""
    return _Threads()


def _set_end(end: asyncio.Future[_End], value: _End) -> None:
    if not end.done():  # the caller was cancelled
        end.set_result(value)

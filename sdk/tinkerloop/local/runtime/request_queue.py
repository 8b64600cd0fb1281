"""One thread that executes requests in the order they were submitted.

Everything that touches the model runs here, so no lock guards it and a script's order is the engine's order.
Requests that may share one execution (samples from the same weights) carry an equal `group`: when the first of them is
due, all that wait are taken along.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import tinker

from tinkerloop.errors import TinkerloopError
from tinkerloop.local.request_errors import CallerError, server_error, user_error
from tinkerloop.local.runtime.request_future import WORKER_THREADS, RequestFuture


@dataclass
class QueuedRequest:
    """One request: `run()` for a single one, `run_group(payloads)` -> one result or exception each for a group."""

    run: Callable[..., Any]
    group: Hashable = None
    payload: Any = None
    future: RequestFuture = field(default_factory=RequestFuture)


class RequestQueue:
    """A FIFO queue and the thread that empties it. The thread starts with the first request and dies with `stop`."""

    def __init__(self, name: str):
        self._name = name
        self._jobs: deque[QueuedRequest] = deque()
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._last = QueuedRequest(lambda: None)
        """What `stop` queues."""
        self._last.future.set_running_or_notify_cancel()

    def submit(self, run: Callable[[], Any]) -> RequestFuture:
        """Queue `run`; it is executed even if nobody waits, and cannot be withdrawn: later requests build on it."""
        job = QueuedRequest(run)
        job.future.set_running_or_notify_cancel()
        return self._put(job)

    def submit_grouped(
        self, group: Hashable, payload: Any, run_group: Callable[[Sequence[Any]], list]
    ) -> RequestFuture:
        """Queue `payload` to be executed together with others of the same `group`."""
        return self._put(QueuedRequest(run_group, group, payload))

    def stop(self) -> RequestFuture[None]:
        """Execute what is queued, then end the thread; the future is done when all is executed.

        Later submissions raise RuntimeError.
        """
        with self._wake:
            if not self._stopped:
                self._stopped = True
                if self._thread is None:
                    self._last.future.set_result(None)
                else:
                    self._jobs.append(self._last)
                self._wake.notify()
        return self._last.future

    def abandon(self) -> None:
        """Drop what is queued, unless `stop` was to execute it, and wait for the thread.

        For when nobody is left, the caller interrupts, or the interpreter exits: a daemon thread that is still inside
        torch when that goes away would abort the process.
        """
        with self._wake:
            dropped: deque[QueuedRequest] = deque()
            if not self._stopped:
                self._stopped = True
                dropped, self._jobs = self._jobs, dropped
                self._last.future.set_result(None)
            self._wake.notify()
            thread = self._thread
        for job in dropped:
            if not job.future.cancelled():
                job.future.set_exception(RuntimeError("the engine was closed before this request was executed"))
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _put(self, job: QueuedRequest) -> RequestFuture:
        with self._wake:
            if self._stopped:
                raise RuntimeError("this ServiceClient is closed; create a new one")
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name=self._name, daemon=True)
                self._thread.start()
            self._jobs.append(job)
            self._wake.notify()
        return job.future

    def _loop(self) -> None:
        ident = threading.get_ident()
        WORKER_THREADS.add(ident)
        try:
            while (jobs := self._take()) is not None:
                if jobs[0].group is None:
                    _execute(jobs[0])
                else:
                    _execute_group(jobs)
                del jobs  # a request must not outlive its answer: it may be the last reference to the engine
        finally:
            WORKER_THREADS.discard(ident)  # a later thread may be given the same number

    def _take(self) -> list[QueuedRequest] | None:
        with self._wake:
            while not self._jobs:
                if self._stopped:
                    return None
                self._wake.wait()
            first = self._jobs.popleft()
            if first.group is None:
                return [first]
        return [first, *self._take_group(first.group)]

    def _take_group(self, group: Hashable) -> list[QueuedRequest]:
        with self._wake:
            waiting = [job for job in self._jobs if job.group == group]
            if waiting:
                self._jobs = deque(job for job in self._jobs if job.group != group)
        return waiting


def _execute(job: QueuedRequest) -> None:
    try:
        result = job.run()
    except BaseException as error:
        job.future.set_exception(as_request_error(error))
    else:
        job.future.set_result(result)


def _execute_group(jobs: list[QueuedRequest]) -> None:
    jobs = [job for job in jobs if job.future.set_running_or_notify_cancel()]
    if not jobs:
        return
    try:
        results = jobs[0].run([job.payload for job in jobs])
    except BaseException as error:
        results = [error] * len(jobs)
    for job, result in zip(jobs, results, strict=True):
        if isinstance(result, BaseException):
            job.future.set_exception(as_request_error(result))
        else:
            job.future.set_result(result)


def as_request_error(error: BaseException) -> BaseException:
    """The error as a script of Tinker's expects it: Tinker's own class, with the original as its cause."""
    if isinstance(error, CallerError) and isinstance(error.error, StopIteration):
        stopped = RuntimeError("the function raised StopIteration")  # which a future that is awaited cannot hold
        stopped.__cause__ = error.error
        return stopped
    if isinstance(error, CallerError):
        return error.error
    if isinstance(error, tinker.TinkerError | NotImplementedError):
        return error
    if isinstance(error, TinkerloopError):
        request_error = user_error(str(error))
    else:
        request_error = server_error(f"{type(error).__name__}: {error}")
    request_error.__cause__ = error
    return request_error

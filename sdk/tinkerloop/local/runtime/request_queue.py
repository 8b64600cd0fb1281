"""The queue of requests, and the one thread that executes them in the order of their submission.

Everything that uses the model runs on this thread, so no lock is needed and the engine keeps the script's order.
Requests that may be executed together (samples from the same weights) have an equal `group`: when the first of them is
next, all waiting ones of its group are executed with it.
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
    """One request: `run()`; with a group `run(payloads)`, which returns a result or an exception for each payload."""

    run: Callable[..., Any]
    group: Hashable = None
    payload: Any = None
    future: RequestFuture = field(default_factory=RequestFuture)


class RequestQueue:
    """A FIFO queue and the thread that executes it. The thread starts with the first request and ends with `stop`."""

    def __init__(self, name: str):
        self._name = name
        self._jobs: deque[QueuedRequest] = deque()
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._last = QueuedRequest(lambda: None)
        """The last request, which `stop` queues."""
        self._last.future.set_running_or_notify_cancel()

    def submit(self, run: Callable[[], Any]) -> RequestFuture:
        """Queue `run`. It is executed even if nobody waits, and cannot be cancelled: later requests depend on it."""
        job = QueuedRequest(run)
        job.future.set_running_or_notify_cancel()
        return self._put(job)

    def submit_grouped(
        self, group: Hashable, payload: Any, run_group: Callable[[Sequence[Any]], list]
    ) -> RequestFuture:
        """Queue `payload` to be executed together with others of the same `group`."""
        return self._put(QueuedRequest(run_group, group, payload))

    def stop(self) -> RequestFuture[None]:
        """Execute the queued requests, then end the thread; the future is done after the last of them.

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
        """Drop the queued requests (unless `stop` was called before) and wait for the thread to end.

        It is called when all clients are gone, when the caller interrupts, and at interpreter exit: a daemon thread
        still inside torch while torch is being torn down would abort the process.
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
                del jobs  # else this variable keeps the engine alive, if the request was the last reference to it
        finally:
            WORKER_THREADS.discard(ident)  # a later thread may get the same number

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
    """Return the error as a script written for Tinker expects it: of Tinker's class, with the original as its cause."""
    if isinstance(error, CallerError) and isinstance(error.error, StopIteration):
        stopped = RuntimeError(
            "the function raised StopIteration"
        )  # a future that is awaited cannot raise StopIteration
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

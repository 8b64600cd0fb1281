"""The request queue, and the single thread that executes the requests in the order of submission.

All code that uses the model runs on this thread, so the model needs no lock. Requests that may be executed together
(samples from the same weights) have an equal `group`. When a request of a group is executed, the waiting requests of
the same group are executed with it: all of its lane, and at most as many of each other lane.

The other requests of one lane are executed in the order of submission. The lanes take turns, so that a user with many
queued requests does not delay another user by more than one request. In one process all requests are in the lane None.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import tinker

from tinkerloop.errors import TinkerloopError
from tinkerloop.local.request_errors import CallerError, server_error, user_error
from tinkerloop.local.runtime.request_future import WORKER_THREADS, RequestFuture, check_process, failed


@dataclass
class QueuedRequest:
    """Request in the queue. Without a group, `run()` executes it and returns its result.

    With a group, `run(payloads)` executes several requests and returns a result or an exception for each payload.
    """

    run: Callable[..., Any]
    group: Hashable = None
    payload: Any = None
    lane: Hashable = None
    future: RequestFuture = field(default_factory=RequestFuture)


class RequestQueue:
    """Queue of requests, first in, first out for each lane, with the thread that executes them.

    The thread starts at the first request and ends after `stop` or `abandon`.
    """

    def __init__(self, name: str):
        self._name = name
        self._lanes: OrderedDict[Hashable, deque[QueuedRequest]] = OrderedDict()
        """The waiting requests of each lane that has any. The lane at the front has the next turn."""
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._process: int | None = None
        """The process in which the thread was started. A forked child has the queue, but not the thread."""
        self._stopped = False
        self._ended: RequestFuture[None] = RequestFuture()
        """Done after the last request."""
        self._ended.set_running_or_notify_cancel()

    def submit(self, run: Callable[[], Any], lane: Hashable = None) -> RequestFuture:
        """Queue a call of `run()` in `lane` and return its future.

        The call is executed even if nobody waits for the future. It cannot be cancelled, because later requests depend
        on it.
        """
        job = QueuedRequest(run, lane=lane)
        job.future.set_running_or_notify_cancel()
        return self._put(job)

    def submit_grouped(
        self,
        group: Hashable,
        payload: Any,
        run_group: Callable[[Sequence[Any]], list],
        lane: Hashable = None,
    ) -> RequestFuture:
        """Queue `payload` in `lane` and return its future.

        `run_group` is called with this payload and other payloads of the same `group` that wait. It returns a result
        or an exception for each.
        """
        return self._put(QueuedRequest(run_group, group, payload, lane))

    def stop(self) -> RequestFuture[None]:
        """Execute the queued requests, then end the thread. The returned future is done after the last request.

        After this call, submitting a request raises RuntimeError. In a forked child the future raises
        RequestFailedError.
        """
        try:
            self._check_process()
        except tinker.RequestFailedError as error:
            return failed(error)
        with self._wake:
            if not self._stopped:
                self._stopped = True
                if self._thread is None:
                    self._ended.set_result(None)
                self._wake.notify()
        return self._ended

    def abandon(self) -> None:
        """Drop the queued requests and wait for the thread to end. If `stop` was called before, only wait.

        It is called when no client exists any more, when the user interrupts the program, and at interpreter exit. At
        exit it prevents that the daemon thread still runs torch code while torch shuts down, which would abort the
        process. In a forked child it does nothing.
        """
        if self._process not in (None, os.getpid()):
            return
        with self._wake:
            dropped: list[QueuedRequest] = []
            if not self._stopped:
                self._stopped = True
                dropped = [job for lane in self._lanes.values() for job in lane]
                self._lanes.clear()
                self._ended.set_result(None)
            self._wake.notify()
            thread = self._thread
        for job in dropped:
            if not job.future.cancelled():
                job.future.set_exception(RuntimeError("the engine was closed before this request was executed"))
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _check_process(self) -> None:
        if self._process is not None:  # before the lock, which the missing thread may hold for ever
            check_process(self._process)

    def _put(self, job: QueuedRequest) -> RequestFuture:
        self._check_process()
        with self._wake:
            if self._stopped:
                raise RuntimeError("cannot submit a request: this ServiceClient is closed; create a new one")
            if self._thread is None:
                self._process = os.getpid()
                self._thread = threading.Thread(target=self._loop, name=self._name, daemon=True)
                self._thread.start()
            self._lanes.setdefault(job.lane, deque()).append(job)
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
                del jobs  # A request may be the last reference to the engine; do not keep it while waiting.
            if not self._ended.done():
                self._ended.set_result(None)
        finally:
            WORKER_THREADS.discard(ident)  # a later thread may get the same identifier

    def _take(self) -> list[QueuedRequest] | None:
        with self._wake:
            while not self._lanes:
                if self._stopped:
                    return None
                self._wake.wait()
            name, lane = self._lanes.popitem(last=False)
            group = lane[0].group
            taken = [lane.popleft()] if group is None else _taken_from(lane, group, len(lane))
            if lane:
                self._lanes[name] = lane  # at the end: the other lanes have their turns first
            if group is not None:
                own = len(taken)
                for other in [key for key in self._lanes if key != name]:
                    taken += _taken_from(self._lanes[other], group, own)
                    if not self._lanes[other]:
                        del self._lanes[other]
        return taken


def _taken_from(lane: deque[QueuedRequest], group: Hashable, most: int) -> list[QueuedRequest]:
    """Remove the first requests of `group`, at most `most`, from a lane. Return them."""
    taken = list(itertools.islice((job for job in lane if job.group == group), most))
    if taken:
        chosen = set(map(id, taken))
        rest = [job for job in lane if id(job) not in chosen]
        lane.clear()
        lane.extend(rest)
    return taken


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
    """Return the exception to set on a request's future for `error`.

    For a CallerError it is the caller's own exception. Only StopIteration becomes a RuntimeError, because an awaited
    future cannot raise StopIteration. Tinker's errors and NotImplementedError are returned unchanged. Any other error
    becomes a RequestFailedError with `error` as its cause, of category user for a TinkerloopError, otherwise server.
    """
    if isinstance(error, CallerError) and isinstance(error.error, StopIteration):
        stopped = RuntimeError("the caller's function raised StopIteration, which a future cannot raise")
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

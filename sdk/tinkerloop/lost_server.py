"""A server that is lost: how it is noticed, and how a run goes on from its newest record.

The client asks a server that is gone again and again, without end. `ServerWatch` asks it for a sign of life meanwhile,
and fails the requests that wait for it after some minutes. A server that was started again answers, but has lost its
models; `is_lost` recognises its error. In both cases the run can be resumed from its newest record, or started anew if
nothing was saved yet: `Run` adds to the error which of both, and the command.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import httpx

from tinkerloop._lazy import tinker
from tinkerloop.errors import ServerLostError, TinkerloopError
from tinkerloop.gone_texts import GONE
from tinkerloop.redaction import redacted
from tinkerloop.terminal import printable

T = TypeVar("T")
PATIENCE = 120.0
"""Seconds without an answer after which a server counts as lost."""
START_PATIENCE = 30.0
"""Seconds that the first call waits for a server that does not answer: it may be starting."""
_PING_SECONDS = 5.0
_LOST = re.compile(
    rf"\b({'|'.join(map(re.escape, GONE))})\b"  # `tinkerloop serve`
    r"|Model \S+ not loaded"  # SkyRL, after a restart of its engine
)
"""Parts of the errors with which a server answers that has lost a model or is stopped."""


class ServerWatch:
    """Watch the server at `url` while requests wait for it, and fail them once it has been silent for `patience` s."""

    def __init__(self, url: str, patience: float = PATIENCE):
        self._url, self._patience = url, patience
        self._waiting: set[Future[Any]] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._was_there = False
        self.lost = False
        logging.getLogger("tinker.lib.telemetry").addFilter(_demote_lost_telemetry)  # once for all servers

    def add(self, future: Future[Any]) -> None:
        """Watch the server until `future` is done."""
        with self._lock:
            self._waiting.add(future)
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="tinkerloop-server-watch", daemon=True)
                self._thread.start()
        future.add_done_callback(self._remove)

    @contextmanager
    def direct_call(self) -> Iterator[None]:
        """Raise a `ServerLostError` if the server does not answer the first call, or if the client gives up connecting.

        In its first call, the client would ask without end and without a word. Only older versions give up.
        """
        self.wait_for_first_answer()
        try:
            yield
        except tinker.APIConnectionError as error:
            self.lost = True
            raise self._error() from error

    def wait_for_first_answer(self) -> None:
        """Wait until the server has answered once.

        Raises:
            ServerLostError: it did not for `START_PATIENCE` seconds.
        """
        patience, begun = min(START_PATIENCE, self._patience), time.monotonic()
        if not self._was_there and not self._is_there():
            print(f"server: no answer yet, waiting up to {patience:.0f} s", file=sys.stderr)
            while not self._is_there():
                if time.monotonic() - begun > patience:
                    raise ServerLostError(f"no server answers at {self._name}: start it, or correct the URL")
                time.sleep(min(_PING_SECONDS, patience / 4))
        self._was_there = True

    def _remove(self, future: Future[Any]) -> None:
        with self._lock:
            self._waiting.discard(future)

    def _watch(self) -> None:
        heard, is_silent = time.monotonic(), False
        while True:
            time.sleep(min(_PING_SECONDS, self._patience / 4))
            with self._lock:
                waiting = list(self._waiting)
                if not waiting:
                    self._thread = None  # the next request starts another one
                    return
            if self._is_there():
                if is_silent:
                    _tell(f"the server at {self._name} answers again")
                heard, is_silent = time.monotonic(), False
            elif time.monotonic() - heard > self._patience:
                self.lost = True
                for future in waiting:
                    settle(future, error=self._error())
            elif not is_silent:
                is_silent = True
                _tell(f"the server at {self._name} does not answer; waiting up to {self._patience:g} s")

    def _is_there(self) -> bool:
        """Return true if the server answers, with whatever status."""
        try:
            httpx.get(f"{self._url.rstrip('/')}/api/v1/healthz", timeout=10)
        except Exception:  # whatever the reason is, no error may end the thread that watches
            return False
        return True

    def _error(self) -> ServerLostError:
        return ServerLostError(
            f"the server at {self._name} does not answer any more: start it again, then start this run again"
        )

    @property
    def _name(self) -> str:
        return printable(redacted(self._url))


def _tell(text: str) -> None:
    """Print a line to standard error. If it is closed, print nothing: the watch goes on."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr)


def _demote_lost_telemetry(entry: logging.LogRecord) -> bool:
    """Demote the log entry for telemetry of tinker that found no server to the level DEBUG, for a logger's filter.

    Its long traceback would hide the errors of the run. All other entries stay as they are.
    """
    error = entry.exc_info[1] if entry.exc_info else None
    if not isinstance(error, tinker.APIConnectionError):
        return True
    entry.levelno, entry.levelname = logging.DEBUG, "DEBUG"
    return logging.getLogger(entry.name).isEnabledFor(logging.DEBUG)


def settle(future: Future[T], value: T | None = None, error: BaseException | None = None) -> None:
    """Finish a future with a value or an error, unless it is finished."""
    try:
        if error is None:
            future.set_result(value)  # type: ignore[arg-type]
        else:
            future.set_exception(error)
    except InvalidStateError:
        pass


def is_lost(error: BaseException) -> bool:
    """Return true if the cause of `error` is that the server, or a model on it, is gone."""
    if isinstance(error, ServerLostError | tinker.APIConnectionError):
        return True
    return _LOST.search(str(error)) is not None


def resume_when_lost(work: Callable[[], T], retry: int) -> T:
    """Call `work`, and call it again when the server or a model was lost, at most `retry` times.

    `work` must resume its run from the newest record. All other errors are raised at once.
    """
    if retry < 0:
        raise TinkerloopError(f"retry must be at least 0, got {retry}")
    for attempt in range(1, retry + 2):
        try:
            return work()
        except Exception as error:
            if attempt > retry or not is_lost(error):
                raise
            print(f"retry {attempt} of {retry}: {printable(redacted(str(error)))}", file=sys.stderr)
            time.sleep(min(2.0**attempt, 60.0))  # the server may be starting
    raise AssertionError("the loop above returns or raises")

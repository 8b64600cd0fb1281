"""Answers to requests, by request id: unfinished, finished, and forgotten after some minutes.

A request fails by an answer of its own, with a text and a category. The client raises it as a RequestFailedError at
once. Every HTTP status that stands for an error would make the client try again, some of them for minutes.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tinker
from pydantic import ValidationError
from tinker.types import RequestErrorCategory

from tinkerloop.errors import TinkerloopError
from tinkerloop.local.runtime.request_future import RequestFuture

KEEP_FETCHED = 120.0
"""Seconds for which an answer is kept after it was fetched, because the client asks again if the answer was lost."""
KEEP_UNFETCHED = 1800.0
"""Seconds for which an answer is kept that nobody has fetched."""


@dataclass(frozen=True)
class Answer:
    """Body of the HTTP response with which a request is answered, and its media type."""

    body: bytes
    media_type: str = "application/json"


class Answers:
    """Answers by request id. Use it only on the event loop's thread."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._entries

    def open(self, request_id: str) -> None:
        """Add an unfinished answer."""
        self._entries[request_id] = _Entry(asyncio.get_running_loop().create_future())

    def follow(
        self,
        request_id: str,
        request: RequestFuture,
        encode: Callable[[Any], Answer],
        failed: Callable[[], None] = lambda: None,
    ) -> None:
        """Finish the answer when `request` is done: with `encode` of its result, or with its error.

        If it fails, call `failed` first.
        """
        loop = asyncio.get_running_loop()

        def finish() -> None:
            error = request.exception()
            try:
                if error is not None:
                    failed()
                answer = encode(request.result()) if error is None else failure(error)
            except Exception as raised:  # of `encode`: not the user's fault, whatever its type is
                known = isinstance(raised, tinker.TinkerError)
                answer = failure(raised, None if known else RequestErrorCategory.Server)
            self.finish(request_id, answer)

        request.add_done_callback(lambda _: loop.call_soon_threadsafe(finish))

    def finish(self, request_id: str, answer: Answer) -> None:
        """Finish an answer, unless it is finished or forgotten."""
        entry = self._entries.get(request_id)
        if entry is not None and not entry.answer.done():
            entry.finished = time.monotonic()
            entry.answer.set_result(answer)

    async def fetch(self, request_id: str, seconds: float) -> Answer | None:
        """Wait for an answer for at most `seconds`. Return None if it is unfinished.

        Raises:
            KeyError: there is no such request.
        """
        entry = self._entries[request_id]
        if not entry.answer.done():
            await asyncio.wait([entry.answer], timeout=seconds)
            if not entry.answer.done():
                return None
        entry.fetched = time.monotonic()
        return entry.answer.result()

    def forget(self, now: float) -> None:
        """Remove the answers that were kept long enough at the time `now` (of `time.monotonic`)."""
        for request_id, entry in list(self._entries.items()):
            if entry.finished is not None and now > entry.kept_until:
                del self._entries[request_id]

    def excuse(self, paused: float, now: float) -> None:
        """Keep the answers for `paused` seconds longer, which end at the time `now`."""
        for entry in self._entries.values():
            if entry.finished is not None:
                entry.finished = min(entry.finished + paused, now)
            if entry.fetched is not None:
                entry.fetched = min(entry.fetched + paused, now)

    def fail_unfinished(self, error: BaseException) -> None:
        """Finish every unfinished answer with `error`."""
        for request_id in list(self._entries):
            self.finish(request_id, failure(error))


@dataclass
class _Entry:
    answer: asyncio.Future[Answer]
    finished: float | None = None
    fetched: float | None = None

    @property
    def kept_until(self) -> float:
        assert self.finished is not None
        return self.finished + KEEP_UNFETCHED if self.fetched is None else self.fetched + KEEP_FETCHED


def json_answer(value: Any) -> Answer:
    """Return the answer with a JSON-serializable value, or with one of tinker's response objects."""
    if not isinstance(value, dict):
        value = value.model_dump(mode="json", exclude_none=True)
    return Answer(json.dumps(value).encode())


def failure(error: BaseException, category: RequestErrorCategory | None = None) -> Answer:
    """Return the answer for a request that failed with `error`. The category follows from the error's type."""
    category = category or category_of(error)
    return Answer(json.dumps({"error": message_of(error), "category": category.value}).encode())


def category_of(error: BaseException) -> RequestErrorCategory:
    """Return who is to blame for an error: the user or the server.

    ValueError, TypeError and AssertionError are those of the checks that run before a request is queued. The engine
    wraps every error of its own code in a RequestFailedError.
    """
    if isinstance(error, tinker.RequestFailedError):
        return error.category
    known = (tinker.TinkerError, TinkerloopError, NotImplementedError, ValueError, TypeError, AssertionError)
    return RequestErrorCategory.User if isinstance(error, known) else RequestErrorCategory.Server


def message_of(error: BaseException) -> str:
    """Return the text of an error for the user."""
    if isinstance(error, ValidationError):
        problems = (f"{'.'.join(map(str, p['loc'])) or 'body'}: {p['msg']}" for p in error.errors(include_url=False))
        return f"invalid {error.title}: {'; '.join(problems)}"
    if isinstance(error, tinker.APIError):
        return error.message
    if category_of(error) is RequestErrorCategory.Server and not isinstance(error, tinker.TinkerError):
        return f"{type(error).__name__}: {error}"
    return str(error)

"""The order of one model's requests.

The client numbers the requests of a model 1, 2, 3, ... and expects them to be executed in this order. They may arrive
in another order: the client sends the parts of a large request at once, the first part last.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tinkerloop.local.request_errors import bad_request

GAP_SECONDS = 300.0
"""Seconds for which a request waits for one with a smaller number. The client stops retrying after this time."""
MAX_AHEAD = 10_000
"""The largest difference between the number of a waiting request and that of the next one."""


class RequestOrder:
    """Requests of one model, which are started in the order of their numbers. Nothing starts before `begin`."""

    def __init__(self) -> None:
        self._next = 0
        self._held: dict[int, _Held] = {}

    def begin(self) -> None:
        """Start the requests from number 1 on."""
        self._next = 1
        self._start_ready()

    def is_new(self, number: int) -> bool:
        """Return true if no request with this number has arrived."""
        return number >= max(self._next, 1) and number not in self._held

    def is_early(self, number: int) -> bool:
        """Return true if a request with this number would have to wait for an earlier one, or for `begin`."""
        return number > self._next or not self._next

    @property
    def held_bytes(self) -> int:
        """The memory that the waiting requests take."""
        return sum(held.size for held in self._held.values())

    def check(self, number: int) -> None:
        """Raise tinker.BadRequestError if `number` is so large that requests before it cannot be on their way."""
        if number > self._next + MAX_AHEAD:
            raise bad_request(
                f"seq_id {number} is too large: the next request of this model has number {self._next}, and at most "
                f"{MAX_AHEAD} requests may arrive before it"
            )

    def arrive(self, number: int, start: Callable[[], None], fail: Callable[[str], None], size: int = 0) -> None:
        """Call `start` when all requests with smaller numbers have been started, or `fail` if that cannot happen.

        `size` is the memory in bytes that the request takes while it waits.
        """
        self._held[number] = _Held(time.monotonic(), start, fail, size)
        self._start_ready()

    def give_up(self, now: float) -> None:
        """Fail the waiting requests if one of them has waited too long at the time `now` (of `time.monotonic`).

        The number that is missing belongs to a request that the client has given up. Later requests are executed.
        """
        if self._held and self._next and now - min(held.arrived for held in self._held.values()) > GAP_SECONDS:
            missing, self._next = self._next, max(self._held) + 1
            self.fail_waiting(
                f"request {missing} of this model never arrived, so the requests after it were not executed"
            )

    def excuse(self, paused: float, now: float) -> None:
        """Do not count `paused` seconds, which end at the time `now`, as waiting."""
        for held in self._held.values():
            held.arrived = min(held.arrived + paused, now)

    def fail_waiting(self, reason: str) -> None:
        """Fail all waiting requests."""
        held, self._held = self._held, {}
        for number in sorted(held):
            held[number].fail(reason)

    def _start_ready(self) -> None:
        while self._next and self._next in self._held:
            held = self._held.pop(self._next)
            self._next += 1
            held.start()


@dataclass
class _Held:
    arrived: float
    start: Callable[[], None]
    fail: Callable[[str], None]
    size: int


def memory_of(value: Any, enough: int) -> int:
    """Return the bytes of memory that decoded JSON takes. Do not count on from `enough`.

    It may be many times the size of the text: an empty list has 2 bytes there, and 56 in memory.
    """
    size, waiting = 0, [value]
    while waiting and size < enough:
        item = waiting.pop()
        size += sys.getsizeof(item)
        if isinstance(item, dict):
            waiting += [*item, *item.values()]
        elif isinstance(item, list):
            waiting += item
    return size

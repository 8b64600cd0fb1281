"""A clean end when the machine is taken away (preemption)."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

from tinkerloop.errors import PlanError
from tinkerloop.loop.callback import Callback
from tinkerloop.loop.events import Boundary, Requests, Stop, Summary


class Preempt(Callback):
    """Stop at the next boundary and record it, on SIGTERM or SIGINT; a second signal raises KeyboardInterrupt.

    The handlers are installed when the run starts and restored when it ends, and only set a flag. The script
    decides on its exit code: `summary.reason` names the signal.
    """

    def __init__(self, signals: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGINT)):
        self._signals = tuple(signals)
        self._previous: dict[signal.Signals, Any] = {}
        self._received: signal.Signals | None = None

    def on_start(self, step: int, steps: int | None) -> Requests:
        if threading.current_thread() is not threading.main_thread():
            raise PlanError(
                "Preempt works only in a loop on the main thread, where signals can be handled: run the loop there"
            )
        self._previous = {one: signal.signal(one, self._receive) for one in self._signals}

    def on_boundary(self, boundary: Boundary) -> Requests:
        return Stop(f"received {self._received.name}") if self._received else None

    def on_end(self, summary: Summary) -> None:
        for one, handler in self._previous.items():
            signal.signal(one, handler)
        self._previous = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received:
            raise KeyboardInterrupt(f"received {signal.Signals(number).name} again")
        self._received = signal.Signals(number)

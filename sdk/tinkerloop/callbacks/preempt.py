"""Ending well when the machine is wanted for something else."""

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
    """On SIGTERM or SIGINT, stops at the next boundary and records it; a second signal raises KeyboardInterrupt.

    The handlers are installed when the run starts and put back when it ends, and do nothing but set a flag. The exit
    code is the script's business: `summary.reason` names the signal.
    """

    def __init__(self, signals: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGINT)):
        self._signals = tuple(signals)
        self._previous: dict[signal.Signals, Any] = {}
        self._received: signal.Signals | None = None

    def on_start(self, step: int, steps: int | None) -> Requests:
        if threading.current_thread() is not threading.main_thread():
            raise PlanError("Preempt needs the loop to run on the main thread: only there can signals be handled")
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

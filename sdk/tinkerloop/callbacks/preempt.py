"""`Preempt`, which ends a run cleanly when the machine is about to be taken away (preemption)."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from types import FrameType, MappingProxyType
from typing import Any

from tinkerloop.errors import PlanError
from tinkerloop.loop.callback import Callback
from tinkerloop.loop.events import Boundary, Requests, Stop, Summary


class Preempt(Callback):
    """Stop the run on SIGTERM or SIGINT: at the next boundary (the point between two steps), which is recorded.

    A second signal raises KeyboardInterrupt. The signal handlers only set a flag; they are installed when the run
    starts, and the previous handlers are restored when it ends. `summary.reason` names the signal, so that the caller
    can choose an exit code.

    Args:
        signals: the signals to handle.
    """

    evaluations = MappingProxyType({})

    def __init__(self, signals: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGINT)):
        self._signals = tuple(signals)
        self._previous: dict[signal.Signals, Any] = {}
        self._received: signal.Signals | None = None

    def on_start(self, step: int, steps: int | None) -> Requests:
        if threading.current_thread() is not threading.main_thread():
            raise PlanError(
                "Preempt works only on the main thread, where Python handles signals, but the loop is on another one: "
                "run the loop on the main thread, or remove Preempt"
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

"""`Preempt`, which ends a run cleanly when the machine is about to be taken away (preemption)."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Sequence
from types import FrameType, MappingProxyType
from typing import Any

from tinkerloop.errors import PlanError
from tinkerloop.loop.callback import Callback
from tinkerloop.loop.events import Boundary, Requests, Stop, Summary

_SAME = 1.0
"""Seconds within which a further signal is the first one again: many senders reach a process by two ways at once."""


class Preempt(Callback):
    """Stop the run on SIGTERM or SIGINT: at the next boundary (the point between two steps), which is recorded.

    A second signal raises KeyboardInterrupt, unless it comes within a second of the first: a service manager, a job
    scheduler or `timeout` sends one signal to a program and to its parent, which passes it on.
    The signal handlers only set a flag; they are installed when the run
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
        self._received_at = 0.0

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
        if self._received is None:
            self._received, self._received_at = signal.Signals(number), time.monotonic()
        elif time.monotonic() - self._received_at > _SAME:
            raise KeyboardInterrupt(f"received {signal.Signals(number).name} again")

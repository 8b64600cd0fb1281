"""Calls of the callbacks: their names, saved state, allowed requests and timing, and notes on their errors."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from typing import Any

from tinkerloop.errors import CheckpointError, PlanError
from tinkerloop.loop.callback import Callback, callback_name
from tinkerloop.loop.checkpoints import Record
from tinkerloop.loop.events import Accumulate, Eval, Log, Request, Retain, Save, Stop
from tinkerloop.loop.plan import Plan

logger = logging.getLogger(__name__)

ALLOWED: Mapping[str, tuple[type, ...]] = {
    "on_start": (Accumulate, Log, Stop),
    "on_boundary": (Eval, Log, Save, Stop),
    "on_step": (Log, Stop),
    "on_eval": (Log, Stop),
    "on_save": (Log, Retain, Stop),
    "on_end": (),
}
"""The requests that a callback may return at each event."""


class Dispatcher:
    """The callbacks of one run, by name."""

    def __init__(self, callbacks: Sequence[Callback]):
        self._callbacks: dict[str, Callback] = {}
        for callback in callbacks:
            if not isinstance(callback, Callback):
                raise PlanError(f"callbacks must be tinkerloop.Callback objects, got {callback!r}")
            name, state = callback_name(callback), callback.state
            if name in self._callbacks:
                raise PlanError(f"two callbacks are named {name!r}: give one of them another name")
            if state is not None and (not is_dataclass(state) or isinstance(state, type)):
                raise PlanError(f"the state of callback {name!r} must be a dataclass or None, got {state!r}")
            self._callbacks[name] = callback
        self._unclaimed: dict[str, Mapping[str, Any]] = {}
        self._started: list[str] = []
        self._handlers = {event: self._overriding(event) for event in (*ALLOWED, "on_plan")}
        self._seconds: dict[str, float] = defaultdict(float)

    def lap(self) -> dict[str, float]:
        """Return the seconds spent since the last call: in all `callbacks`, and in each that ran, `callback/<name>`."""
        lap = {"callbacks": sum(self._seconds.values())}
        lap.update((f"callback/{name}", seconds) for name, seconds in self._seconds.items())
        self._seconds.clear()
        return lap

    # --- state ---

    def states(self) -> dict[str, Mapping[str, Any]]:
        """Return every callback's state by name, and the restored states that no callback of this run has.

        Raises:
            CheckpointError: a state holds values that JSON would change.
        """
        own = {name: _saved(name, cb.state) for name, cb in self._callbacks.items() if cb.state is not None}
        return self._unclaimed | own

    def restore(self, record: Record) -> None:
        """Give the states of a record to the callbacks of the same names.

        Raises:
            CheckpointError: a state's fields are not those its class has now.
        """
        stateful = {name: cb for name, cb in self._callbacks.items() if cb.state is not None}
        for name, callback in stateful.items():
            if name not in record.callbacks:
                logger.warning("no state was saved for callback %r: it starts with a new one", name)
                continue
            saved, expected = record.callbacks[name], {field.name for field in fields(callback.state)}
            if set(saved) != expected:
                raise CheckpointError(
                    f"the state of callback {name!r} has changed: the record of step {record.step} has "
                    f"{sorted(saved)}, its class has {sorted(expected)}; "
                    f"they differ in {sorted(set(saved) ^ expected)}"
                )
            callback.state = type(callback.state)(**saved)
        self._unclaimed = {name: state for name, state in record.callbacks.items() if name not in stateful}
        for name in self._unclaimed:
            logger.warning(
                "the record holds state of a callback %r that this run does not have: later records will hold it too",
                name,
            )

    # --- events ---

    def ask(self, event: str, step: int, *args: Any) -> list[tuple[str, Request]]:
        """Call every callback that handles `event` and return the requests as (name, request), in list order."""
        asked: list[tuple[str, Request]] = []
        for name, handler in self._handlers[event]:
            answer = self._call(name, event, handler, step, *args)
            if answer is not None:
                asked += [(name, request) for request in _requests(name, event, answer)]
        return asked

    def start(self, step: int, steps: int | None) -> list[tuple[str, Request]]:
        """Call `on_start`, and note which callbacks have started: only their `on_end` will be called."""
        asked: list[tuple[str, Request]] = []
        handlers = dict(self._handlers["on_start"])
        for name in list(self._callbacks):
            self._started.append(name)
            if name in handlers:
                answer = self._call(name, "on_start", handlers[name], step, step, steps)
                asked += [(name, request) for request in _requests(name, "on_start", answer)]
        return asked

    def plan(self, plan: Plan) -> Plan:
        """Call `on_plan`, each callback on the plan of the one before it in the list."""
        for name, handler in self._handlers["on_plan"]:
            changed = self._call(name, "on_plan", handler, plan.step, plan, if_dropped=plan)
            if not isinstance(changed, Plan):
                raise PlanError(f"{name}.on_plan must return a Plan, got {changed!r}")
            if (
                changed.step != plan.step
            ):  # results are delivered by step: another number would come too early, too late or never
                raise PlanError(f"{name}.on_plan must keep the plan's step, {plan.step}, got {changed.step}")
            plan = changed
        return plan

    def end(self, step: int, summary: Any) -> list[Exception]:
        """Call `on_end` of every started callback, last started first, and return the errors that they raised."""
        failures: list[Exception] = []
        handlers = dict(self._handlers["on_end"])
        for name in reversed(self._started):
            if name not in handlers:
                continue
            try:
                _requests(name, "on_end", self._call(name, "on_end", handlers[name], step, summary))
            except Exception as error:
                failures.append(error)
        return failures

    def _overriding(self, event: str) -> list[tuple[str, Callable[..., Any]]]:
        """List the callbacks that override `event`: calling the others would only cost time."""
        base = getattr(Callback, event)
        return [
            (name, getattr(cb, event)) for name, cb in self._callbacks.items() if getattr(type(cb), event) is not base
        ]

    def _call(
        self, name: str, event: str, handler: Callable[..., Any], step: int, *args: Any, if_dropped: Any = None
    ) -> Any:
        began = time.perf_counter()
        try:
            answer = handler(*args)
            return list(answer) if isinstance(answer, Iterator) else answer  # a generator's body runs here
        except Exception as error:
            if not self._callbacks[name].optional:
                error.add_note(f"in {name}.{event} at step {step}")
                raise
            logger.warning("%s.%s failed at step %d; the callback is dropped", name, event, step, exc_info=error)
            del self._callbacks[name]
            self._handlers = {event: self._overriding(event) for event in self._handlers}
            return if_dropped
        finally:
            self._seconds[name] += time.perf_counter() - began


def _saved(name: str, state: Any) -> dict[str, Any]:
    """Convert a callback's state to the form that a record holds."""
    for field in fields(state):
        value = getattr(state, field.name)
        if not field.init or not _is_json(value):
            raise CheckpointError(
                f"the state of callback {name!r} cannot be saved: {field.name} is {value!r}"
                f"{'' if field.init else ', a field with init=False'}; use a dataclass of JSON values: numbers, "
                "strings, booleans, None, lists, and dictionaries with strings as keys"
            )
    return asdict(state)


def _is_json(value: Any) -> bool:
    """Return true if JSON gives the value back unchanged. It turns tuples into lists, and keys into strings."""
    if isinstance(value, list):
        return all(map(_is_json, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(map(_is_json, value.values()))
    return value is None or isinstance(value, bool | int | float | str)


def _requests(name: str, event: str, answer: Any) -> list[Request]:
    """Return a callback's answer as a list of requests, or raise PlanError if one is not allowed at this event."""
    if answer is None:
        return []
    if isinstance(answer, ALLOWED[event]):
        return [answer]
    try:
        requests = [answer] if isinstance(answer, Request) else list(answer)
    except TypeError:
        requests = [answer]
    for request in requests:
        if not isinstance(request, ALLOWED[event]):
            allowed = ", ".join([*(kind.__name__ for kind in ALLOWED[event]), "None"])
            raise PlanError(f"{name}.{event} returned {request!r}; it may return {allowed}")
    return requests

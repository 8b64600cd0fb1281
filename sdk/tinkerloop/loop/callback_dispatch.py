"""`Dispatcher`, which calls the callbacks of a run.

It checks their names and requests, saves and restores their state, measures their time, and adds notes to their errors.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, fields, is_dataclass
from typing import Any

from tinkerloop.errors import CheckpointError, PlanError, TinkerloopError
from tinkerloop.loop.callback import Callback, callback_name
from tinkerloop.loop.checkpoints import Record
from tinkerloop.loop.events import Accumulate, Eval, Log, Request, Retain, Save, Stop
from tinkerloop.loop.metric_names import check_metrics, did_you_mean
from tinkerloop.loop.plan import Plan
from tinkerloop.loop.weak_identity_map import WeakIdentityMap

logger = logging.getLogger(__name__)

ALLOWED: Mapping[str, tuple[type, ...]] = {
    "on_start": (Accumulate, Log, Stop),
    "on_boundary": (Eval, Log, Save, Stop),
    "on_step": (Log, Stop),
    "on_eval": (Log, Stop),
    "on_row": (Stop,),
    "on_save": (Log, Retain, Stop),
    "on_end": (),
}
"""Mapping from an event's name to the types of request that a callback may return there."""


_used: WeakIdentityMap[bool] = WeakIdentityMap()  # callbacks that a loop has started


class Dispatcher:
    """Call the callbacks of one run, and save and restore their state by callback name."""

    def __init__(self, callbacks: Sequence[Callback]):
        self._callbacks: dict[str, Callback] = {}
        if isinstance(callbacks, Callback):
            name = type(callbacks).__name__
            raise PlanError(f"callbacks must be a list, got a single {name}: pass callbacks=[{name}(...)]")
        for callback in callbacks:
            if not isinstance(callback, Callback):
                raise PlanError(f"each item of callbacks must be a tinkerloop.Callback object, got {callback!r}")
            name, state = callback_name(callback), callback.state
            _refuse_unknown_events(name, callback)
            _refuse_used(name, callback)
            if name in self._callbacks:
                raise PlanError(
                    f"two callbacks have the name {name!r}, but names must be unique: set `name` on one of them"
                )
            if state is not None and (not is_dataclass(state) or isinstance(state, type)):
                raise PlanError(f"the state of callback {name!r} must be a dataclass instance or None, got {state!r}")
            self._callbacks[name] = callback
        check_metrics(self._callbacks)
        self._unclaimed: dict[str, Mapping[str, Any]] = {}
        self._started: list[str] = []
        self._handlers = {event: self._overriding(event) for event in (*ALLOWED, "on_plan")}
        self._seconds: dict[str, float] = defaultdict(float)

    @property
    def names(self) -> Collection[str]:
        """The names of the callbacks of the run."""
        return self._callbacks.keys()

    def lap(self) -> dict[str, float]:
        """Return the seconds spent in callbacks since the previous call of `lap`.

        The key `callbacks` has the sum, and `callback/<name>` the time of each callback that ran.
        """
        lap = {"callbacks": sum(self._seconds.values())}
        lap.update((f"callback/{name}", seconds) for name, seconds in self._seconds.items())
        self._seconds.clear()
        return lap

    # --- state ---

    def states(self) -> dict[str, Mapping[str, Any]]:
        """Return the state of every callback, by callback name, to be saved in a record.

        If the record of a resumed run has states of callbacks that are not in this run, these states are also returned,
        so that later records keep them.

        Raises:
            CheckpointError: a state contains values that JSON would change.
        """
        own = {name: _saved(name, cb.state) for name, cb in self._callbacks.items() if cb.state is not None}
        return self._unclaimed | own

    def restore(self, record: Record) -> None:
        """Set each callback's state to a copy of the one that the record has under the callback's name.

        Raises:
            CheckpointError: the fields of a saved state differ from the fields of the callback's state class.
        """
        stateful = {name: cb for name, cb in self._callbacks.items() if cb.state is not None}
        for name, callback in stateful.items():
            if name not in record.callbacks:
                logger.warning("no state was saved for callback %r: it starts with its initial state", name)
                continue
            saved, expected = record.callbacks[name], {field.name for field in fields(callback.state)}
            if set(saved) != expected:
                raise CheckpointError(
                    f"cannot restore the state of callback {name!r}: its fields have changed. The record of step "
                    f"{record.step} has {sorted(saved)}, the class has {sorted(expected)}; they differ in "
                    f"{sorted(set(saved) ^ expected)}. Restore the old fields, or give the callback another name"
                )
            callback.state = type(callback.state)(**deepcopy(saved))
        self._unclaimed = {name: state for name, state in record.callbacks.items() if name not in stateful}
        for name in self._unclaimed:
            logger.warning(
                "the record has the state of a callback %r that this run does not have: it is copied to later records",
                name,
            )

    # --- events ---

    def ask(self, event: str, step: int, *args: Any, keep_states: bool = False) -> list[tuple[str, Request]]:
        """Call every callback that overrides `event`, in list order, and return (callback name, request) pairs.

        With `keep_states`, a callback must not change its state, because the call comes at a time that depends on
        timing.
        """
        asked: list[tuple[str, Request]] = []
        for name, handler in self._handlers[event]:
            callback = self._callbacks.get(name)
            before = _contents(callback) if keep_states else None
            answer = self._call(name, event, handler, step, *args)
            if keep_states and _contents(callback) != before:
                raise PlanError(
                    f"{name}.{event} changed its state for the detached {args[0]!r}, whose time of arrival is not "
                    "reproducible: do nothing but log a result that has `detached`, or evaluate with detached=False"
                )
            if answer is not None:
                asked += [(name, request) for request in requests_of(name, event, answer)]
        return asked

    def start(self, step: int, steps: int | None) -> list[tuple[str, Request]]:
        """Call every `on_start`, and return (callback name, request) pairs.

        The started callbacks are remembered, because `end` calls `on_end` only on them.
        """
        asked: list[tuple[str, Request]] = []
        handlers = dict(self._handlers["on_start"])
        for name, callback in self._callbacks.items():
            _refuse_used(name, callback)
        for name, callback in list(self._callbacks.items()):
            _used.set(callback, True)
            self._started.append(name)
            if name in handlers:
                answer = self._call(name, "on_start", handlers[name], step, step, steps)
                asked += [(name, request) for request in requests_of(name, "on_start", answer)]
        return asked

    def plan(self, plan: Plan) -> Plan:
        """Call every `on_plan` in list order, each with the plan that the previous one returned; return the last."""
        for name, handler in self._handlers["on_plan"]:
            changed = self._call(name, "on_plan", handler, plan.step, plan, if_dropped=plan)
            if not isinstance(changed, Plan):
                raise PlanError(f"{name}.on_plan must return a Plan, but it returned {changed!r}")
            if (
                changed.step != plan.step
            ):  # results are delivered by step number: with another number, this one would come too early or too late
                raise PlanError(f"{name}.on_plan must not change plan.step: it was {plan.step}, got {changed.step}")
            plan = changed
        return plan

    def end(self, step: int, summary: Any) -> list[BaseException]:
        """Call `on_end` of every started callback, in reverse order of their start, and return what they raised.

        Not even a KeyboardInterrupt in one of them skips the others.
        """
        failures: list[BaseException] = []
        handlers = dict(self._handlers["on_end"])
        for name in reversed(self._started):
            if name not in handlers:
                continue
            try:
                requests_of(name, "on_end", self._call(name, "on_end", handlers[name], step, summary))
            except BaseException as error:
                failures.append(error)
        return failures

    def _overriding(self, event: str) -> list[tuple[str, Callable[..., Any]]]:
        """Return the name and handler of each callback that overrides `event`. The default handlers do nothing."""
        base = getattr(Callback, event)
        return [
            (name, getattr(cb, event)) for name, cb in self._callbacks.items() if getattr(type(cb), event) is not base
        ]

    def _call(
        self, name: str, event: str, handler: Callable[..., Any], step: int, *args: Any, if_dropped: Any = None
    ) -> Any:
        began = time.perf_counter()
        try:
            return _answer(handler, f"{name}.{event}", *args)
        except Exception as error:
            if not self._callbacks[name].optional:
                error.add_note(f"in {name}.{event} at step {step}")
                raise
            logger.warning("%s.%s failed at step %d; the callback is removed", name, event, step, exc_info=error)
            del self._callbacks[name]
            self._handlers = {event: self._overriding(event) for event in self._handlers}
            return if_dropped
        finally:
            self._seconds[name] += time.perf_counter() - began


def _answer(handler: Callable[..., Any], what: str, *args: Any) -> Any:
    """Call `handler`, also the body of a generator function. A StopIteration would look like the end of the loop."""
    try:
        answer = handler(*args)
        return list(answer) if isinstance(answer, Iterator) else answer
    except StopIteration as error:
        raise TinkerloopError(
            f"StopIteration was raised in {what}, probably by next() on an iterator that has ended: "
            "give next() a default"
        ) from error


def _refuse_unknown_events(name: str, callback: Callback) -> None:
    events = (*ALLOWED, "on_plan")
    for unknown in sorted(set(dir(callback)) - set(events)):
        if unknown.startswith("on_") and callable(getattr(callback, unknown)):
            raise PlanError(
                f"callback {name!r} has a method {unknown!r}, which is no event of the loop and would never be called"
                f"{did_you_mean(unknown, events)} (the events are {', '.join(events)}; rename a method that is not "
                "meant to be one)"
            )


def _refuse_used(name: str, callback: Callback) -> None:
    carries_nothing = callback.reusable or (callback.state is None and vars(callback).keys() <= {"name", "optional"})
    if _used.get(callback) and not carries_nothing:
        raise PlanError(
            f"callback {name!r} was already used by another loop, and may have the state of that run: create a new "
            f"{type(callback).__name__} for each loop, or set `reusable` if nothing in it changes"
        )


def _contents(callback: Callback | None) -> str:
    """Return the state of a callback as text, to be compared; a NaN, unlike in a comparison of values, is equal."""
    return repr(callback and callback.state and asdict(callback.state))


def _saved(name: str, state: Any) -> dict[str, Any]:
    """Convert a callback's state from a dataclass to the dict that is saved in a record."""
    for field in fields(state):
        value = getattr(state, field.name)
        if not field.init or not _is_json(value):
            raise CheckpointError(
                f"the state of callback {name!r} cannot be saved: {field.name} is {value!r}"
                f"{'' if field.init else ', a field with init=False'}. Its fields must be init fields and have "
                "JSON-serializable values: numbers, strings, booleans, None, lists, or dicts with strings as keys"
            )
    return asdict(state)


def _is_json(value: Any) -> bool:
    """Return true if a round trip through JSON leaves `value` unchanged. Tuples, for example, would become lists."""
    if isinstance(value, list):
        return all(map(_is_json, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(map(_is_json, value.values()))
    return value is None or isinstance(value, bool | int | float | str)


def requests_of(name: str, event: str, answer: Any) -> list[Request]:
    """Return what a callback's event handler returned, as a list of requests.

    Raises:
        PlanError: a request is not allowed at this event.
    """
    if answer is None:
        return []
    if isinstance(answer, ALLOWED[event]):
        return [answer]
    try:
        requests: list[Any] = [answer] if isinstance(answer, Request | Mapping | str) else list(answer)
    except TypeError:
        requests = [answer]
    for request in requests:
        if not isinstance(request, ALLOWED[event]):
            allowed = ", ".join([*(kind.__name__ for kind in ALLOWED[event]), "None"])
            wrap = "; to log metrics, wrap it: Log({...})"
            hint = wrap if isinstance(request, Mapping) and Log in ALLOWED[event] else ""
            raise PlanError(f"{name}.{event} returned {request!r}, but it may return only {allowed}{hint}")
    return requests

"""`check_callback`, which holds a callback to what the loop promises, and `drive`, which calls it without a loop.

    print(check_callback(lambda: StopOnSpike(factor=2.0)))       # runs small loops on an in-memory service

    assert drive(StopOnSpike(), [sample_step_result(loss=1.0)]) == [[Log({"worst_loss": 1.0})]]

A boundary is the point between two optimizer steps.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from tinkerloop.errors import CheckFailedError
from tinkerloop.loop.callback import Callback
from tinkerloop.loop.callback_dispatch import ALLOWED, requests_of
from tinkerloop.loop.checkpoints import Checkpoints, Record
from tinkerloop.loop.events import Boundary, EvalResult, Requests, Save, StepResult, Summary
from tinkerloop.loop.loop import Loop
from tinkerloop.loop.plan import Plan
from tinkerloop.loop.resume import open_training_client
from tinkerloop.testing._compared_answers import comparable
from tinkerloop.testing.loop_checks import first_difference, no_sync
from tinkerloop.testing.ordered_service import Operation, OrderedService
from tinkerloop.testing.sample_events import sample_batches

_SLEEP = time.sleep

EVENTS = (*ALLOWED, "on_plan")
"""The names of all events."""

Event = Plan | Boundary | StepResult | EvalResult | Record | Summary | tuple[int, Mapping[str, float]]
"""An event of a callback; a row of metrics is a pair of its step and its values."""
_HANDLERS: Mapping[type, str] = {
    Plan: "on_plan",
    Boundary: "on_boundary",
    StepResult: "on_step",
    EvalResult: "on_eval",
    Record: "on_save",
    Summary: "on_end",
}


def drive(callback: Callback, events: Iterable[Event]) -> list[Any]:
    """Call a callback with events, in order, and return its answer to each: a list of requests, or a plan for a plan.

    A test that needs `on_start` calls it itself, before.

    Raises:
        PlanError: an answer has a request that is not allowed at its event.
    """
    answers: list[Any] = []
    for event in events:
        name, args = ("on_row", event) if isinstance(event, tuple) else (_HANDLERS[type(event)], (event,))
        answer = getattr(callback, name)(*args)
        answers.append(answer if name == "on_plan" else requests_of(type(callback).__name__, name, answer))
    return answers


@dataclass
class CallbackReport:
    """Counts and times of a callback's calls, by event.

    Attributes:
        calls: the number of calls, by event.
        seconds: the seconds in all of these calls, by event.
    """

    calls: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        rows = [f"  {name:<12} {n:>6} calls  {self.seconds[name] / n * 1e6:>9.1f} µs" for name, n in self.calls.items()]
        return "\n".join(["mean time of a call, by event:", *rows])


def check_callback(
    make: Callable[[], Callback],
    *,
    others: Callable[[], Sequence[Callback]] = tuple,
    batches: Callable[[], Sequence[Sequence[Any]]] = sample_batches,
    ahead: int = 1,
    ignored_metrics: tuple[str, ...] = (),
) -> CallbackReport:
    """Check a callback in small runs on `OrderedService`.

    * Its state survives JSON, and a run that is resumed at any step continues with the same requests.
    * `run`, `arun`, `steps` and `asteps` give the same requests.
    * `on_end` is called once, whatever fails, and hides no error.
    * No event waits for the service, or sleeps.

    Args:
        make: function that creates the callback. Each run needs a new one.
        others: function that creates callbacks that it needs beside it, such as an evaluation.
        batches: function that returns the batches of a run; token ids must be below 64.
        ahead: the argument of `Loop`.
        ignored_metrics: prefixes of metrics in `Log` that are not compared, such as "tokens_per_second", because they
            are measured times.

    Returns:
        The cost of each event, to print.

    Raises:
        CheckFailedError: the callback breaks one of these promises.
    """
    if make() is make():
        raise CheckFailedError("`make` returned the same callback twice: create a new one in each call")
    with tempfile.TemporaryDirectory(prefix="check_callback-") as root, mock.patch("os.fsync", no_sync):
        trial = _Trial(make, others, batches, ahead, Path(root), OrderedService(), ignored_metrics)
        whole = trial.run("whole")
        _check_drivers(trial, whole)
        _check_resumes(trial, whole)
        _check_end(trial, whole)
    return whole.report


_Answers = dict[tuple[str, int], list[Any]]


@dataclass
class _Recorded:
    """The behaviour of one run: the answers of the callback, in order, and the state of the callback at the end."""

    callback: Callback
    ignored_metrics: tuple[str, ...]
    watched: bool
    """Whether each call in an event is watched, which makes the event slower."""
    answers: list[tuple[str, int, Any]] = field(default_factory=list)
    report: CallbackReport = field(default_factory=CallbackReport)
    blocked: list[str] = field(default_factory=list)
    rows: list[Any] = field(default_factory=list)
    inside: tuple[str, int] | None = None
    """The event that is being handled, and its thread."""

    @property
    def state(self) -> Any:
        return None if self.callback.state is None else asdict(self.callback.state)

    def by_event(self) -> _Answers:
        """Return the answers by event and step."""
        found: _Answers = {}
        for name, step, answer in self.answers:
            found.setdefault((name, step), []).append(answer)
        return found


class _SaveEveryStep(Callback):
    """Saves a checkpoint at every boundary, so that the run can be resumed at each."""

    name = "check-callback-saves"

    def on_boundary(self, boundary: Boundary) -> Requests:
        return Save()


@dataclass
class _Trial:
    """The small runs of one check."""

    make: Callable[[], Callback]
    others: Callable[[], Sequence[Callback]]
    batches: Callable[[], Sequence[Sequence[Any]]]
    ahead: int
    root: Path
    service: OrderedService
    ignored_metrics: tuple[str, ...]

    def run(
        self,
        name: str,
        *,
        record: Record | None = None,
        driver: str = "run",
        fault: Callable[[Operation], None] | None = None,
    ) -> _Recorded:
        """Train in the folder `name`, from `record` if it is given, and return what the callback did."""
        recorded = _Recorded(self.make(), self.ignored_metrics, watched=driver != "run")
        _record_answers(recorded)

        def watch(operation: Operation) -> None:
            if operation[0] == "result" and recorded.inside and recorded.inside[1] == threading.get_ident():
                recorded.blocked.append(f"{recorded.inside[0]} waited for the result of {operation[1][0]}")
            if fault is not None:
                fault(operation)

        self.service.fault = watch
        client = open_training_client(self.service, record, base_model="unigram")
        loop = Loop(
            client,
            list(self.batches()),
            callbacks=[*self.others(), recorded.callback, _SaveEveryStep()],
            sinks=[lambda step, row: recorded.rows.append((step, dict(row)))],
            checkpoints=Checkpoints(self.root / name),
            record=record,
            ahead=self.ahead,
        )
        try:
            with _no_sleep(recorded):
                _drive_loop(loop, driver)
        except Exception as error:
            if fault is None:
                place = "".join(f", {note}" for note in getattr(error, "__notes__", ()))
                raise CheckFailedError(f"a run with the callback, by `{driver}`, raised {error!r}{place}") from error
        if recorded.blocked:
            raise CheckFailedError(
                f"the callback blocks: {recorded.blocked[0]}; queue the work, and return its future in an Eval"
            )
        return recorded


def _check_drivers(trial: _Trial, whole: _Recorded) -> None:
    for driver in ("arun", "steps", "asteps"):
        other = trial.run(driver, driver=driver)
        if difference := _other_answer(other.by_event(), whole.by_event()):
            raise CheckFailedError(
                f"`{driver}` gives other requests than `run`: {difference}. A callback must decide from its events and "
                "its `state` alone, not from a clock, random numbers or attributes of its class"
            )


def _check_resumes(trial: _Trial, whole: _Recorded) -> None:
    expected = whole.by_event()
    for record in reversed(Checkpoints(trial.root / "whole").records()):  # a resume replaces all later records
        resumed = trial.run("whole", record=record)
        found = resumed.by_event()
        found.pop(("on_start", record.step), None)
        later = {key: answers for key, answers in expected.items() if key[1] > record.step}
        same_step = {key: expected.get(key, []) for key in found if key[1] <= record.step}
        if difference := _other_answer(found, later | same_step):
            raise CheckFailedError(
                f"a run that is resumed at step {record.step} gives other requests than one that was not interrupted: "
                f"{difference}. Put what the callback decides from into `state`"
            )
        if difference := first_difference(resumed.state, whole.state, "the state"):
            raise CheckFailedError(f"a run that is resumed at step {record.step} ends with another state: {difference}")


def _other_answer(found: _Answers, expected: _Answers) -> str | None:
    """Return the first event whose answers differ, with both answers; None if there is none."""
    for name, step in {**expected, **found}:
        given, wanted = found.get((name, step), []), expected.get((name, step), [])
        if first_difference(given, wanted):
            return f"{name} at step {step} returned {_shown(given)}, expected {_shown(wanted)}"
    return None


def _shown(answers: list[Any]) -> str:
    """Return the answers to an event, which most runs have once at a step, as text."""
    return " and then ".join(map(repr, answers)) or "nothing, because it was not called"


def _check_end(trial: _Trial, whole: _Recorded) -> None:
    if "on_end" not in whole.report.calls:
        return
    kinds = dict.fromkeys(_kind(operation) for operation in trial.service.operations)
    for number, kind in enumerate([*kinds, *(f"result of {kind}" for kind in kinds)]):

        def fail(operation: Operation, kind: str = kind) -> None:
            if _kind(operation) == kind:
                raise ConnectionError(f"the service failed at {kind}")

        failed = trial.run(f"failed-{number}", fault=fail)
        ends = sum(name == "on_end" for name, _, _ in failed.answers)
        if ends != 1:
            raise CheckFailedError(f"on_end was called {ends} times, or raised, in a run that failed at {kind}")


def _kind(operation: Operation) -> str:
    return f"result of {operation[1][0]}" if operation[0] == "result" else operation[0]


def _record_answers(recorded: _Recorded) -> None:
    """Replace the event handlers that the callback overrides by ones that also record their answers and their time."""
    callback = recorded.callback
    for name in EVENTS:
        if getattr(type(callback), name) is not getattr(Callback, name):
            recording = _recording(recorded, name, getattr(callback, name))
            object.__setattr__(callback, name, recording)  # the callback may be a frozen dataclass


def _recording(recorded: _Recorded, name: str, handler: Callable[..., Any]) -> Callable[..., Any]:
    def handle(*args: Any) -> Any:
        began = time.perf_counter()
        recorded.inside = name, threading.get_ident()
        try:
            with _watched_calls(recorded, name) if recorded.watched else nullcontext():
                answer = handler(*args)
                answer = list(answer) if isinstance(answer, Iterator) else answer
        finally:
            recorded.inside = None
            seconds = time.perf_counter() - began
            report = recorded.report
            report.calls[name] = report.calls.get(name, 0) + 1
            report.seconds[name] = report.seconds.get(name, 0.0) + seconds
        step = args[0] if isinstance(args[0], int) else args[0].step
        callback = type(recorded.callback).__name__
        recorded.answers.append((name, step, comparable(callback, name, answer, recorded.ignored_metrics)))
        return answer

    return handle


@contextmanager
def _no_sleep(recorded: _Recorded) -> Iterator[None]:
    """Note each `time.sleep` in an event of the callback, and do not sleep there."""

    def noted(seconds: float) -> None:
        if recorded.inside and recorded.inside[1] == threading.get_ident():
            recorded.blocked.append(f"{recorded.inside[0]} slept for {seconds} s")
        else:
            _SLEEP(seconds)

    with mock.patch("time.sleep", noted):
        yield


@contextmanager
def _watched_calls(recorded: _Recorded, name: str) -> Iterator[None]:
    """Note each sleep in this thread, also of a module with `from time import sleep`, which `_no_sleep` cannot see."""

    def watch(frame: Any, event: str, called: Any) -> None:
        if event == "c_call" and called is _SLEEP:
            recorded.blocked.append(f"{name} slept")

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        yield
    finally:
        sys.setprofile(before)


def _drive_loop(loop: Loop, driver: str) -> None:
    async def iterate() -> None:
        async for _ in loop.asteps():
            pass

    async def wait() -> None:
        await loop.arun()

    if driver == "run":
        loop.run()
    elif driver == "steps":
        for _ in loop.steps():
            pass
    else:
        asyncio.run(wait() if driver == "arun" else iterate())

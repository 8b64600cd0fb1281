"""Callbacks: subclass `Callback`, override the events you need, and return requests.

Two clocks run through a training run. Work is *queued* in strict order (submit clock) and *answered* up to `ahead`
steps later (result clock). Around two steps with `ahead=1`:

    queued     boundary 3 | plan 3, step 3 | boundary 4 | plan 4, step 4 | boundary 5 | ...
                          |                |            |                |
    answered   step 1     |                | step 2     |                | step 3
               eval 2     |                | eval 3     |                | eval 4

Before step s is queued, exactly the results of steps <= s - 1 - ahead, and of the evaluations and saves queued after
them, have been delivered. Delivery therefore depends on (s, ahead) and never on timing: even a callback that reacts to
results decides the same way every time. At boundary s the weights will hold exactly steps [0, s); there, and only
there, evaluations and saves are queued and the run can end.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinkerloop.loop.checkpoints import Record
    from tinkerloop.loop.events import Boundary, EvalResult, Requests, StepResult, Summary
    from tinkerloop.loop.plan import Plan


class Callback:
    """The base of every callback. Each event is optional; `on_plan` returns a plan, the others return requests.

    Callbacks observe and request; they never change the loop themselves. Their order matters only for `on_plan`,
    which composes in list order, and each can be tested without a loop:

    >>> class StopAt(Callback):
    ...     def on_boundary(self, boundary):
    ...         return Stop("far enough") if boundary.step >= 10 else None
    """

    name: str = ""
    """The callback's name, unique in a run. Its state is saved under it. By default the class name in kebab-case."""

    state: Any = None
    """A dataclass of JSON values, or None. Saved with every record, and restored before `on_start` when resuming.

    For type checkers, declare its class in yours: `state: Seen`.
    """

    optional: bool = False
    """If true, an exception is logged once and the callback dropped, instead of ending the run."""

    def on_start(self, step: int, steps: int | None) -> Requests:
        """Handle the start, once, before anything is queued: the run goes from boundary `step` to boundary `steps`."""

    def on_plan(self, plan: Plan) -> Plan:
        """Return the plan, changed or not. Submit clock; the weights are normalised after the last callback."""
        return plan

    def on_boundary(self, boundary: Boundary) -> Requests:
        """Handle a boundary, on the submit clock; may queue work on `boundary.client`. Must not block."""

    def on_step(self, result: StepResult) -> Requests:
        """Handle the result of a step: once per step, in order, on the result clock."""

    def on_eval(self, result: EvalResult) -> Requests:
        """Handle the result of an evaluation, on the result clock; `result.step` is the boundary that was evaluated."""

    def on_save(self, record: Record) -> Requests:
        """Handle a record that is on disk, on the result clock.

        A resumed run calls this again for its record, because the record was written before the first call.
        """

    def on_end(self, summary: Summary) -> None:
        """Handle the end, once, in reverse order of start; `summary.error` is the error that ended the run, or None."""


def callback_name(callback: Callback) -> str:
    """Return the callback's `name`, or its class name in kebab-case."""
    return (
        callback.name
        or re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", type(callback).__name__).lower()
    )

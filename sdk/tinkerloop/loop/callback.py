"""Callbacks: subclass, override what you need, return what you ask for.

Two clocks run through a training run. Work is *queued* in strict order (submit clock) and *answered* up to `ahead`
steps later (result clock). Around two steps with `ahead=1`:

    queued     boundary 3 | plan 3, step 3 | boundary 4 | plan 4, step 4 | boundary 5 | ...
                          |                |            |                |
    answered   step 1     |                | step 2     |                | step 3
               eval 2     |                | eval 3     |                | eval 4

Before step s is queued, exactly the results of steps <= s - 1 - ahead, and of the evaluations and saves queued behind
them, have been delivered. Delivery therefore depends on (s, ahead) and never on timing: even a callback that reacts to
results decides the same way every time. At boundary s the weights will hold exactly steps [0, s); there, and only
there, things are decided and saved.
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

    Callbacks observe and ask; they never reach into the loop. So their order does not matter, except for `on_plan`,
    which composes in list order, and each can be tested without a loop:

    >>> class StopAt(Callback):
    ...     def on_boundary(self, boundary):
    ...         return Stop("far enough") if boundary.step >= 10 else None
    """

    name: str = ""
    """Unique in a run; the class name in kebab-case unless set. Saved state is found again by it."""

    state: Any = None
    """A dataclass of JSON values, saved with every record and put back before `on_start` of a resumed run; or None."""

    optional: bool = False
    """If true, an exception is logged once and the callback dropped, instead of ending the run."""

    def on_start(self, step: int, steps: int | None) -> Requests:
        """Once, before anything is queued: the run goes from boundary `step` to boundary `steps`."""

    def on_plan(self, plan: Plan) -> Plan:
        """Submit clock: return the plan, changed or not. Weights are normalised after all callbacks had their say."""
        return plan

    def on_boundary(self, boundary: Boundary) -> Requests:
        """Submit clock: steps [0, boundary.step) are queued; may queue more on `boundary.client`. Must not block."""

    def on_step(self, result: StepResult) -> Requests:
        """Result clock: once per step, in order."""

    def on_eval(self, result: EvalResult) -> Requests:
        """Result clock: an evaluation finished; `result.step` says which boundary's weights were scored."""

    def on_save(self, record: Record) -> Requests:
        """Result clock: the save succeeded and its record is on disk. A resumed run is told of its record again: what
        was done here had not been when the record was written."""

    def on_end(self, summary: Summary) -> None:
        """Always, once, in reverse order of start; `summary.error` carries the error that ended the run, if one did."""


def callback_name(callback: Callback) -> str:
    """The callback's `name`, or its class name in kebab-case."""
    return (
        callback.name
        or re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", type(callback).__name__).lower()
    )

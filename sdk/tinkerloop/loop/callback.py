"""Callbacks: subclass `Callback`, override the events you need, and return requests.

A boundary is the point between two optimizer steps. At boundary s, exactly steps 0 to s - 1 have been queued.
Evaluations and saves are queued only at boundaries, and a run ends only at a boundary.

Some events happen when work is queued (the submit clock), others when a result is delivered (the result clock). Work is
queued in strict order, and its result is delivered up to `ahead` steps later. With `ahead=1`, around steps 3 and 4:

    queued     boundary 3 | plan 3, step 3 | boundary 4 | plan 4, step 4 | boundary 5 | ...
                          |                |            |                |
    delivered  step 1     |                | step 2     |                | step 3
               eval 2     |                | eval 3     |                | eval 4

Before step s is queued, exactly the results of the steps up to s - 1 - ahead have been delivered, and those of the
evaluations and saves queued right after these steps. Delivery depends only on s and `ahead`, never on timing. So a
callback that reacts to results makes the same decisions in every run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinkerloop.loop.checkpoints import Record
    from tinkerloop.loop.events import Boundary, EvalResult, Requests, StepResult, Summary
    from tinkerloop.loop.plan import Plan


class Callback:
    """Base class of all callbacks. Override only the events you need: `on_plan` returns a plan, the others requests.

    A callback never changes the loop: it receives values and returns requests, so it can be tested without a loop.
    The order of the callbacks matters only for `on_plan`, where each callback gets the plan that the previous one
    returned.

    >>> class StopAt(Callback):
    ...     def on_boundary(self, boundary):
    ...         return Stop("far enough") if boundary.step >= 10 else None
    """

    name: str = ""
    """The callback's name, under which its state is saved. Unique in a run; by default the class name in kebab-case."""

    state: Any = None
    """The state to save: a dataclass whose fields are JSON-serializable, or None for a callback without state.

    It is saved in every record, and restored before `on_start` when the run is resumed. For type checkers, a subclass
    declares the class of its state, for example `state: Seen`.
    """

    optional: bool = False
    """If true, an exception in the callback does not end the run: it is logged, and the callback is removed."""

    reusable: bool = False
    """If true, nothing in the object changes during a run, so several loops may use it.

    Objects without state and without attributes of their own are reusable in any case.
    """

    evaluations: Mapping[str, bool] | None = None
    """Mapping from the name of each evaluation that `on_boundary` may request to whether it is detached; None: unknown.

    If every callback with an `on_boundary` declares them, a metric that nothing logs is found before the run starts.
    """

    decides_from: Mapping[str, bool] = MappingProxyType({})
    """Mapping from each metric that the callback decides from to whether it must be one of an evaluation."""

    def on_start(self, step: int, steps: int | None) -> Requests:
        """Handle the start of the run. Called once, before any work is queued.

        Args:
            step: the boundary at which the run starts: 0, or the record's `step` in a resumed run.
            steps: the boundary at which the run ends; None: at the end of the data.
        """

    def on_plan(self, plan: Plan) -> Plan:
        """Return the plan of the next step, changed or not. The loss weights are normalised after the last callback."""
        return plan

    def on_boundary(self, boundary: Boundary) -> Requests:
        """Handle a boundary, before the next step is queued. May queue work on `boundary.client`; must not block.

        Called once more for the same boundary, with `boundary.final`, if the run is stopped there after the first call,
        or if it is resumed there only to end.
        """

    def on_step(self, result: StepResult) -> Requests:
        """Handle the result of a step. Called once per step, in the order of the steps."""

    def on_eval(self, result: EvalResult) -> Requests:
        """Handle the result of an evaluation. `result.step` is the boundary whose weights were evaluated."""

    def on_row(self, step: int, row: Mapping[str, float]) -> Requests:
        """Handle the row of metrics of a step or an evaluation, with what the callbacks have added to it.

        Called after `on_step` or `on_eval` of all callbacks; not for a detached evaluation.
        """

    def on_save(self, record: Record) -> Requests:
        """Handle a record that has been written to `checkpoints.jsonl`.

        A resumed run calls this again for the record that it resumes from. The first call came after the record was
        written, so the record does not contain changes that this call made to the callback's state.
        """

    def on_end(self, summary: Summary) -> None:
        """Handle the end of the run. `summary.error` is the error that ended the run, or None.

        Called once. The callbacks are called in the reverse order of their `on_start`.
        """


def callback_name(callback: Callback) -> str:
    """Return the callback's `name`; if it is empty, the name of its class in kebab-case."""
    return (
        callback.name
        or re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", type(callback).__name__).lower()
    )

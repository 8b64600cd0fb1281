"""Events, which the loop gives to its callbacks, and requests, which they return.

All are values. A callback is tested by giving it an event and comparing the requests it returns.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from tinkerloop._lazy import tinker
from tinkerloop.clients import Future, TrainingClientLike
from tinkerloop.loop.checkpoints import Record
from tinkerloop.loop.plan import Plan

# --- events -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Boundary:
    """The moment between two steps, on the submit clock: exactly steps [0, step) are queued.

    Attributes:
        step: the weights will hold exactly steps [0, step).
        steps: the boundary at which the run ends; None: when the data ends.
        final: true at the last boundary: only the work requested here will still be queued.
        client: the training client, to queue more work on, such as an evaluation.
        tokens: input positions queued in steps [0, step).
        metrics: the newest delivered value of every metric, which may be up to `ahead` steps old.
    """

    step: int
    steps: int | None
    final: bool
    client: TrainingClientLike
    tokens: int
    metrics: Mapping[str, float]

    def __repr__(self) -> str:
        return (
            f"Boundary(step={self.step}, steps={self.steps}, final={self.final}, tokens={self.tokens}, "
            f"metrics={len(self.metrics)})"
        )


@dataclass(frozen=True)
class StepResult:
    """An optimizer step that the service has finished.

    Attributes:
        step: the step's number, from 0.
        loss: the loss to report (see `tinkerloop.loop.plan.mean_loss`).
        metrics: `loss`, `learning_rate`, `tokens`, and all that the service and custom losses returned. The metrics of
            several micro-batches are reduced to one value (see `tinkerloop.loop.pipeline.reduce_metrics`).
        plan: the step as it was queued, its weights normalised.
        outputs: the answers to `forward_backward`, in the order of `plan.micro_batches`.
        timings: seconds since the previous step was delivered: `total`, and within it `data` (waiting for batches),
            `server` (waiting for answers), `callbacks`, and `callback/<name>` for each callback that ran.
    """

    step: int
    loss: float
    metrics: Mapping[str, float]
    plan: Plan
    outputs: tuple[tinker.ForwardBackwardOutput, ...]
    timings: Mapping[str, float] = field(default_factory=dict, compare=False)

    def __repr__(self) -> str:
        return f"StepResult(step={self.step}, loss={self.loss:g}, metrics={len(self.metrics)}, plan={self.plan!r})"


@dataclass(frozen=True)
class EvalResult:
    """An evaluation that has finished.

    Attributes:
        step: the boundary whose weights were evaluated.
        name: the evaluation's name.
        value: the value of the evaluation's future.
        final: true if it was requested at the run's last boundary.
    """

    step: int
    name: str
    value: Any
    final: bool = False


@dataclass(frozen=True)
class Summary:
    """The end of a run.

    Attributes:
        step: the weights hold exactly steps [0, step).
        reason: "steps reached", "data exhausted", the reason of a `Stop`, "abandoned" or "error".
        metrics: the newest value of every metric.
        error: the error that ended the run, or None.
    """

    step: int
    reason: str
    metrics: Mapping[str, float]
    error: BaseException | None = None

    @property
    def stopped_early(self) -> bool:
        """True if the run ended before its steps or its data did."""
        return self.reason not in ("steps reached", "data exhausted")

    def __repr__(self) -> str:
        loss = f"{self.metrics['loss']:g}" if "loss" in self.metrics else None
        return (
            f"Summary(step={self.step}, reason={self.reason!r}, loss={loss}, metrics={len(self.metrics)}, "
            f"error={self.error!r})"
        )


# --- requests -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Log:
    """Give metrics to the sinks. From `on_step` and `on_eval` they join that item's row; elsewhere they are a new row.

    Attributes:
        metrics: values by name.
    """

    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Eval:
    """Wait for an evaluation that `on_boundary` has just queued, and give its result to every callback's `on_eval`.

    Attributes:
        name: the name of the evaluation (`EvalResult.name`).
        future: the future of its value.
        detached: if false, the result is delivered in queue order. If true, training does not wait for it: results are
            delivered when they are ready, in the order in which they began, before the next record is written and
            before the run ends. They can be logged but decide nothing, so that decisions do not depend on timing.
    """

    name: str
    future: Future[Any]
    detached: bool = False


@dataclass(frozen=True)
class Save:
    """Write a checkpoint at this boundary. All requests of a boundary become one; the longest lifetime wins.

    Attributes:
        ttl_seconds: how long the service keeps the checkpoint; None: until it is deleted.
        sampler: if true, also save weights that a sampling client can be opened from.
    """

    ttl_seconds: int | None = None
    sampler: bool = False


@dataclass(frozen=True)
class Retain:
    """Delete records and their checkpoints.

    Attributes:
        keep: given all records, returns the steps of those to keep. The newest is always kept.
    """

    keep: Callable[[Sequence[Record]], Collection[int]]


@dataclass(frozen=True)
class Stop:
    """Queue no further step. The steps already queued are delivered.

    Attributes:
        reason: becomes `Summary.reason`.
        save: if true, the last boundary is recorded.
    """

    reason: str
    save: bool = True


@dataclass(frozen=True)
class Accumulate:
    """Read several batches for each step, requested from `on_start`.

    Attributes:
        batches: batches in a step. Each becomes one micro-batch.
    """

    batches: int


Request: TypeAlias = Log | Eval | Save | Retain | Stop | Accumulate
Requests: TypeAlias = Request | Iterable[Request] | None

"""Events, which the loop passes to callbacks, and requests, which callbacks return.

Both are plain values: a test of a callback passes it an event and compares the requests that it returns. A boundary is
the point between two optimizer steps; boundary s comes right before step s.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from tinkerloop._lazy import tinker
from tinkerloop.clients import Future, TrainingClientLike
from tinkerloop.loop.checkpoints import Record
from tinkerloop.loop.plan import Plan
from tinkerloop.number_checks import check_whole

# --- events -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Boundary:
    """The point between two optimizer steps: exactly steps 0 to step - 1 have been queued.

    Attributes:
        step: the number of the boundary, which is the number of the next step.
        steps: the boundary at which the run ends; None: at the end of the data.
        final: true at the last boundary: no step is queued after it. If a `Stop` comes when `on_boundary` was already
            called for this boundary, or the run is resumed there only to end, it is called once more, with `final`.
        client: the training client, on which a callback can queue more work, such as an evaluation.
        tokens: the number of input positions in steps 0 to step - 1.
        metrics: the newest delivered value of every metric, which may be up to `ahead` steps old. Without those of
            detached evaluations, which would depend on timing.
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
        step: the number of the step; the first is 0.
        loss: the loss of the step, computed by `tinkerloop.loop.plan.mean_loss`.
        metrics: `loss`, `learning_rate`, `tokens`, and all metrics returned by the service and by custom losses. A
            metric of several micro-batches is reduced to one value by `tinkerloop.loop.pipeline.reduce_metrics`.
        plan: the plan as it was queued, with normalised weights.
        outputs: the outputs of `forward_backward`, in the order of `plan.micro_batches`.
        timings: seconds since the previous step was delivered. `total` includes `data` (waiting for batches), `server`
            (waiting for results), `callbacks`, and `callback/<name>` for each callback that ran.
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
        name: the name of the evaluation.
        value: what the evaluation returned, usually a dict of metrics.
        final: true if the evaluation was requested at the last boundary of the run, when this was known.
        detached: true if the result arrives at a time that is not reproducible. `on_eval` may only log it, and must not
            change `state`.
    """

    step: int
    name: str
    value: Any
    final: bool = False
    detached: bool = False


COMPLETE = ("steps reached", "data exhausted")
"""The reasons in the summary of a run that has trained all that it was asked to."""


@dataclass(frozen=True)
class Summary:
    """Summary of a finished run: its last step, why it ended, and the final metrics.

    Attributes:
        step: the number of the boundary at which the run ended. Exactly the steps from 0 to `step - 1` were queued.
        reason: "steps reached", "data exhausted", the reason of a `Stop`, "error", or "abandoned" if the caller left
            the iteration over the steps early.
        metrics: the newest value of every metric, except those of detached evaluations, which are only logged.
        error: the error that ended the run, or None.
        steps: the number of steps of the loop; None if it was not given. `step` is larger if the run was resumed with
            fewer steps than were already done.
    """

    step: int
    reason: str
    metrics: Mapping[str, float]
    error: BaseException | None = None
    steps: int | None = None

    @property
    def stopped_early(self) -> bool:
        """True if the run ended before it reached its number of steps or the end of its data."""
        return self.reason not in COMPLETE

    def __repr__(self) -> str:
        loss = f"{self.metrics['loss']:g}" if "loss" in self.metrics else None
        return (
            f"Summary(step={self.step}, reason={self.reason!r}, loss={loss}, metrics={len(self.metrics)}, "
            f"error={self.error!r})"
        )


# --- requests -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Log:
    """Request to log metrics.

    From `on_step` or `on_eval`, the metrics are added to the row of that step or evaluation. From any other event, they
    become a new row.

    Attributes:
        metrics: mapping from metric name to value. A value is a number, also of numpy or torch, or a bool. `step`, and
            in a row of its own or of an evaluation also `loss`, `learning_rate`, `tokens`, `tokens/total` and
            `tokens/trained`, are reserved for the loop.
    """

    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Eval:
    """Request to deliver the result of an evaluation to every callback's `on_eval`.

    `on_boundary` submits the evaluation and returns this request with its future.

    Attributes:
        name: the name of the evaluation, which becomes `EvalResult.name`.
        future: the future of the result, usually a dict of metrics.
        detached: if false, the result is delivered in queue order. If true, training does not wait for the result.
            Detached results are delivered when they are ready, in the order of submission; at the latest before the
            next record is written or the run ends. `on_eval` may only log them, and they are in no `metrics` but the
            rows of the sinks, so that no decision depends on timing.
    """

    name: str
    future: Future[Any]
    detached: bool = False


@dataclass(frozen=True)
class Save:
    """Request to save a checkpoint and write a record at this boundary.

    If several callbacks request a save at the same boundary, one checkpoint with the longest lifetime is saved.

    Attributes:
        ttl_seconds: how long the service keeps the checkpoint; None: until it is deleted.
        sampler: if true, weights for sampling are also saved, from which a sampling client can be opened.

    Raises:
        PlanError: `ttl_seconds` is not a whole number of at least 1.
    """

    ttl_seconds: int | None = None
    sampler: bool = False

    def __post_init__(self) -> None:
        if self.ttl_seconds is not None:
            check_whole("the ttl_seconds of Save", self.ttl_seconds, 1)


@dataclass(frozen=True)
class Retain:
    """Request to delete old records and their checkpoints.

    Attributes:
        keep: function that gets the records that this callback asked for with a `Save` (all of them, if it asked for
            none), and returns the steps of those to keep. A record that another callback asked for is kept as long as
            that callback keeps it. The newest record is always kept.
    """

    keep: Callable[[Sequence[Record]], Collection[int]]


@dataclass(frozen=True)
class Stop:
    """Request to end the run before the next step is queued. Results of steps already queued are still delivered.

    Attributes:
        reason: why the run ends; it becomes `Summary.reason`.
        save: if true, and the loop has `checkpoints`, a record of the last boundary is written.
    """

    reason: str
    save: bool = True


@dataclass(frozen=True)
class Accumulate:
    """Request from `on_start` to train on several batches in each step (gradient accumulation).

    Attributes:
        batches: the number of batches in a step. Each batch becomes one micro-batch.

    Raises:
        PlanError: `batches` is not a whole number of at least 1.
    """

    batches: int

    def __post_init__(self) -> None:
        check_whole("the batches of Accumulate", self.batches, 1)


Request: TypeAlias = Log | Eval | Save | Retain | Stop | Accumulate
Requests: TypeAlias = Request | Iterable[Request] | None

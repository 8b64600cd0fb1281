"""What crosses between the loop and its callbacks: events tell what happened, requests ask for something.

All are values. A callback is tested by handing it an event and comparing what it returns.
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
    """Between two steps, on the submit clock: exactly steps [0, step) are queued, and the weights will hold them."""

    step: int
    steps: int | None
    """Where the run ends; None means when the data does."""
    final: bool
    """Nothing will be queued after this boundary but what is asked for here."""
    client: TrainingClientLike
    """The training client, to queue more work on (an evaluation)."""
    tokens: int
    """Input positions queued in steps [0, step)."""
    metrics: Mapping[str, float]
    """The newest delivered value of every metric: up to `ahead` steps behind."""


@dataclass(frozen=True)
class StepResult:
    """An optimizer step that the service has finished."""

    step: int
    loss: float
    """See `tinkerloop.loop.plan.mean_loss`."""
    metrics: Mapping[str, float]
    """`loss`, `learning_rate`, `tokens`, and all that the service and custom losses returned.

    One value a name: those of several micro-batches are reduced (see `tinkerloop.loop.pipeline.reduce_metrics`).
    """
    plan: Plan
    """The step as it was queued, its weights normalised."""
    outputs: tuple[tinker.ForwardBackwardOutput, ...]
    """What each micro-batch returned, in the order of `plan.micro_batches`."""
    timings: Mapping[str, float] = field(default_factory=dict, compare=False)
    """Seconds since the previous step's delivery: `total`, and in it `data` (waiting for batches), `server` (waiting
    for answers), `callbacks`, and `callback/<name>` for each callback that ran."""


@dataclass(frozen=True)
class EvalResult:
    """An evaluation that has finished: `step` says which boundary's weights were scored."""

    step: int
    name: str
    value: Any
    """What the evaluation's future resolved to."""
    final: bool = False
    """It was asked for at the run's last boundary."""


@dataclass(frozen=True)
class Summary:
    """How a run ended."""

    step: int
    """The weights hold exactly steps [0, step)."""
    reason: str
    """"steps reached", "data exhausted", a `Stop`'s reason, "abandoned" or "error"."""
    metrics: Mapping[str, float]
    """The newest value of every metric."""
    error: BaseException | None = None

    @property
    def stopped_early(self) -> bool:
        return self.reason not in ("steps reached", "data exhausted")


# --- requests -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Log:
    """Metrics for the sinks. From `on_step` and `on_eval` they join that item's row; elsewhere they are a row."""

    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Eval:
    """An evaluation just queued, from `on_boundary`: its result comes to every callback's `on_eval`, in order.

    `detached` ones run beside training: their results are delivered when ready, in the order they began, before the
    next record is written and before the run ends. They may be logged but decide nothing, so that decisions do not
    depend on timing.
    """

    name: str
    future: Future[Any]
    detached: bool = False


@dataclass(frozen=True)
class Save:
    """Write a checkpoint at this boundary. All requests of a boundary become one; the longest life wins."""

    ttl_seconds: int | None = None
    """Seconds the service keeps it; None: for good."""
    sampler: bool = False
    """Also save weights that a sampling client can be opened from."""


@dataclass(frozen=True)
class Retain:
    """Delete the records, and their checkpoints, whose step `keep` does not return; the newest stays in any case."""

    keep: Callable[[Sequence[Record]], Collection[int]]


@dataclass(frozen=True)
class Stop:
    """Queue no further step. What is queued is delivered; then, if `save`, the last boundary is recorded."""

    reason: str
    save: bool = True


@dataclass(frozen=True)
class Accumulate:
    """Each step takes `batches` batches from the loader, from `on_start`: one micro-batch each, one update together."""

    batches: int


Request: TypeAlias = Log | Eval | Save | Retain | Stop | Accumulate
Requests: TypeAlias = Request | Iterable[Request] | None

"""The queue of requests: steps, evaluations and saves are answered in the order in which they were queued.

The loop uses it, and a hand-written script can:

    pipeline = Pipeline(client, ahead=1)
    for step in range(100):
        for result in pipeline.before(step):
            print(result)
        pipeline.step(Plan(step, (MicroBatch(tuple(next(batches))),), AdamParams(learning_rate=schedule(step))))
    for result in pipeline.drain():
        print(result)
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tinkerloop._lazy import tinker
from tinkerloop.clients import Future, TrainingClientLike
from tinkerloop.errors import PlanError, TinkerloopError
from tinkerloop.loop.events import EvalResult, StepResult
from tinkerloop.loop.futures import Flow, Wait, iterate
from tinkerloop.loop.plan import MicroBatch, Plan, mean_loss, normalized


@dataclass(frozen=True)
class SaveResult:
    """A checkpoint that the service has written.

    Attributes:
        step: the boundary whose weights it holds.
        path: the `tinker://` path of the training state: weights and optimizer.
        sampler_path: the `tinker://` path of weights for a sampling client, if they were requested.
    """

    step: int
    path: str
    sampler_path: str | None


Result = StepResult | EvalResult | SaveResult


@dataclass(frozen=True)
class Queued:
    """Work that the service has accepted and not yet answered.

    Attributes:
        after: the last step queued before this work, or the step itself. It is delivered together with that step.
        what: what it is, for the notes on errors.
        futures: the futures to wait for.
        finish: makes the result of the futures' values.
    """

    after: int
    what: str
    futures: tuple[Future[Any], ...]
    finish: Callable[[list[Any]], Result]

    def answer(self) -> Flow[Result]:
        """Wait for every future, in order, and return the result of their values."""
        values = []
        for future in self.futures:
            try:
                values.append((yield Wait(future)))
            except Exception as error:
                error.add_note(f"in {self.what}")
                raise
        return self.finish(values)


class Pipeline:
    """Queue work on a training client, and deliver its results in queue order, up to `ahead` steps later.

    Only `before` and `drain` block.

    Args:
        client: the training client; `submit_save` and the plans determine which of its methods are used.
        ahead: how many steps may be queued while an earlier one is not answered yet.
    """

    def __init__(self, client: TrainingClientLike, ahead: int = 1):
        if ahead < 0:
            raise PlanError(f"ahead must be >= 0, got {ahead}")
        self.client = client
        self.ahead = ahead
        self._queue: deque[Queued] = deque()

    # --- the submit clock ---

    def step(self, plan: Plan) -> Plan:
        """Queue one optimizer step.

        Returns:
            The plan as it was queued, its weights normalised.

        Raises:
            PlanError: the plan cannot be queued (see `tinkerloop.loop.plan.normalized`).
        """
        plan = normalized(plan)
        futures: list[Future[Any]] = [_submit(self.client, one) for one in plan.micro_batches]
        futures.append(self.client.optim_step(plan.optim))

        def finish(values: list[Any]) -> StepResult:
            return _step_result(plan, values[:-1], values[-1])

        self._queue.append(Queued(plan.step, f"step {plan.step}", tuple(futures), finish))
        return plan

    def eval(self, step: int, name: str, future: Future[Any], *, final: bool = False) -> None:
        """Put an evaluation of boundary `step`, which has just been submitted, at the end of the queue."""
        self.push(submitted_eval(step, name, future, final=final))

    def submit_save(self, step: int, *, ttl_seconds: int | None = None, sampler: bool = False) -> Queued:
        """Ask the service to save boundary `step`. Give the returned work to `push` to have its result delivered.

        The checkpoint's name is the step. A save of the same step has the same weights, so it may overwrite.
        """
        name = f"{step:06d}"
        futures: list[Future[Any]] = [self.client.save_state(name, ttl_seconds=ttl_seconds, overwrite=True)]
        if sampler:
            futures.append(self.client.save_weights_for_sampler(name, ttl_seconds=ttl_seconds))

        def finish(values: list[Any]) -> SaveResult:
            return SaveResult(step, values[0].path, values[1].path if sampler else None)

        return Queued(step - 1, f"save at boundary {step}", tuple(futures), finish)

    def push(self, queued: Queued) -> None:
        """Put submitted work at the end of the queue."""
        self._queue.append(queued)

    # --- the result clock ---

    def pop(self, upto: float = math.inf) -> Queued | None:
        """Take the oldest work from the queue if it was queued up to step `upto` (see `Queued.after`), else None."""
        return self._queue.popleft() if self._queue and self._queue[0].after <= upto else None

    def before(self, step: int) -> Iterator[Result]:
        """Wait for the results that are due before `step` is queued: those up to step `step - 1 - ahead`."""
        return self._deliver(step - 1 - self.ahead)

    def drain(self) -> Iterator[Result]:
        """Wait for every outstanding result."""
        return self._deliver(math.inf)

    def _deliver(self, upto: float) -> Iterator[Result]:
        def flow() -> Flow[None]:
            while queued := self.pop(upto):
                yield (yield from queued.answer())

        return iterate(flow())


def submitted_eval(step: int, name: str, future: Future[Any], *, final: bool = False) -> Queued:
    """Make work to wait for of an evaluation of boundary `step` that has just been submitted."""

    def finish(values: list[Any]) -> EvalResult:
        return EvalResult(step, name, values[0], final)

    return Queued(step - 1, f"evaluation {name!r} at boundary {step}", (future,), finish)


def _submit(client: TrainingClientLike, micro_batch: MicroBatch) -> Future[tinker.ForwardBackwardOutput]:
    datums, loss_fn, config = list(micro_batch.datums), micro_batch.loss_fn, micro_batch.config
    if isinstance(loss_fn, str):
        name: Any = loss_fn  # the service knows which names there are, and that differs between versions of tinker
        return client.forward_backward(datums, name, dict(config) if config else None)
    if config:
        raise PlanError(f"a custom loss takes no config, got {dict(config)}: close over its options instead")
    return client.forward_backward_custom(datums, loss_fn)


RESERVED = ("loss", "learning_rate", "tokens")
"""Metrics that the loop itself gives to every step."""


def _step_result(
    plan: Plan, outputs: Sequence[tinker.ForwardBackwardOutput], optim: tinker.OptimStepResponse
) -> StepResult:
    metrics = reduce_metrics([output.metrics for output in outputs], [len(one.datums) for one in plan.micro_batches])
    metrics.update(optim.metrics or {})
    taken = [name for name in RESERVED if name in metrics]
    if taken:
        raise PlanError(f"step {plan.step} returned metrics named {taken}, which are the loop's own names: rename them")
    if "loss:sum" not in metrics:
        raise TinkerloopError(f"the service returned no 'loss:sum' at step {plan.step}; it returned {sorted(metrics)}")
    loss = mean_loss(plan, metrics["loss:sum"])
    own = {"loss": loss, "learning_rate": plan.optim.learning_rate, "tokens": plan.tokens}
    return StepResult(plan.step, loss, own | metrics, plan, tuple(outputs))


def reduce_metrics(metrics: Sequence[Mapping[str, float]], counts: Sequence[int]) -> dict[str, float]:
    """Reduce the metrics of several calls to one value per name, as tinker's client does for the parts of a large call.

    The suffix after the colon decides: `sum` is added, of `min` and `max` the extreme is taken, and of all others the
    mean, weighted by `counts`.

    Args:
        metrics: the metrics of each call.
        counts: the number of datums in each call.
    """
    if len(metrics) == 1:
        return dict(metrics[0])
    reduced: dict[str, float] = {}
    for name in dict.fromkeys(name for one in metrics for name in one):
        present = [(one[name], count) for one, count in zip(metrics, counts, strict=True) if name in one]
        values = [value for value, _ in present]
        suffix = name.rpartition(":")[2]
        if suffix == "sum":
            reduced[name] = math.fsum(values)
        elif suffix in ("min", "max"):
            reduced[name] = {"min": min, "max": max}[suffix](values)
        else:
            reduced[name] = math.fsum(v * n for v, n in present) / sum(n for _, n in present)
    return reduced

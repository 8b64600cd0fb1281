"""`Pipeline`, a queue of steps, evaluations and saves, whose results are delivered in the order of the requests.

A boundary is the point between two optimizer steps; boundary s comes right before step s. `Loop` uses a `Pipeline`, and
so can a hand-written training loop:

    pipeline = Pipeline(client, ahead=1)
    for step in range(100):
        for result in pipeline.before(step):
            print(result)
        pipeline.step(Plan(step, (MicroBatch(tuple(next(batches))),), AdamParams(learning_rate=schedule(step))))
    for result in pipeline.drain():
        print(result)
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tinkerloop._lazy import tinker
from tinkerloop.clients import CustomLoss, Future, TrainingClientLike
from tinkerloop.errors import PlanError, TinkerloopError
from tinkerloop.loop.checkpoints import new_run_id
from tinkerloop.loop.events import EvalResult, StepResult
from tinkerloop.loop.futures import Flow, Wait, iterate
from tinkerloop.loop.plan import MicroBatch, Plan, check_loss_name, folded, mean_loss, normalized
from tinkerloop.number_checks import check_whole


@dataclass(frozen=True)
class SaveResult:
    """A checkpoint that the service has saved.

    Attributes:
        step: the boundary whose weights were saved.
        path: the `tinker://` path of the saved weights and optimizer state.
        sampler_path: the `tinker://` path of the weights saved for sampling; None if they were not requested.
    """

    step: int
    path: str
    sampler_path: str | None


Result = StepResult | EvalResult | SaveResult


@dataclass(frozen=True)
class Queued:
    """Work that was submitted to the service, and whose result has not been delivered yet.

    Attributes:
        after: for a step, its number; for an evaluation or a save, the number of the last step queued before it. The
            result is delivered when the results up to this step are due.
        what: a description of the work, used in the notes on errors.
        futures: the futures to wait for.
        finish: function that computes the result from the values of the futures.
    """

    after: int
    what: str
    futures: tuple[Future[Any], ...]
    finish: Callable[[list[Any]], Result]

    def answer(self) -> Flow[Result]:
        """Wait for all futures, in order, and return `finish` of their values."""
        values = []
        for future in self.futures:
            try:
                values.append((yield Wait(future)))
            except Exception as error:
                error.add_note(f"in {self.what}")
                raise
        return self.finish(values)


class Pipeline:
    """Queue work on a training client, and deliver its results in the same order, up to `ahead` steps later.

    Only the iterators that `before` and `drain` return block.

    Args:
        client: the training client. Only the methods that the queued plans and saves need are called.
        ahead: how many further steps may be queued before the result of a step has arrived. 0 waits for each result.
        run: the id of the run, with which the names of its checkpoints begin, as returned by `Checkpoints.run_id`;
            None: a new random one.
    """

    def __init__(self, client: TrainingClientLike, ahead: int = 1, *, run: str | None = None):
        check_whole("ahead", ahead, 0)
        self.client = client
        self.run = new_run_id() if run is None else run
        self.ahead = ahead
        self._queue: deque[Queued] = deque()

    # --- the submit clock ---

    def step(self, plan: Plan) -> Plan:
        """Queue one optimizer step.

        Returns:
            The plan as it was queued, with normalised weights. The service receives the weights of policy losses
            multiplied into the advantages; the plan keeps them, so that callbacks can see which tokens were sampled.

        Raises:
            PlanError: the plan is invalid, as described at `tinkerloop.loop.plan.normalized`.
            DatumError: the weights of a policy datum cannot be multiplied into its advantages.
        """
        plan = normalized(plan)
        micro_batches = [folded(one) for one in plan.micro_batches]
        futures: list[Future[Any]] = [_submit(self.client, one) for one in micro_batches]
        futures.append(self.client.optim_step(plan.optim))

        def finish(values: list[Any]) -> StepResult:
            return _step_result(plan, values[:-1], values[-1])

        self._queue.append(Queued(plan.step, f"step {plan.step}", tuple(futures), finish))
        return plan

    def eval(self, step: int, name: str, future: Future[Any], *, final: bool = False) -> None:
        """Append an evaluation of boundary `step` to the queue. It must have been submitted just before."""
        self.push(submitted_eval(step, name, future, final=final))

    def submit_save(
        self, step: int, *, ttl_seconds: int | None = None, sampler: bool = False, again: bool = False
    ) -> Queued:
        """Submit a save of boundary `step` to the service, and return it as `Queued` work.

        The work is not in the queue yet: pass it to `push` to have its result delivered. The checkpoint is named by the
        run and the step, so two runs on one client never overwrite each other's. It may overwrite a checkpoint of the
        same name, because a save of the same step of the same run has the same weights. Weights for sampling cannot be
        overwritten. With `again`, for a boundary that was saved with a shorter lifetime, they get another name.
        """
        name = self._checkpoint_name(step)
        futures: list[Future[Any]] = [self.client.save_state(name, ttl_seconds=ttl_seconds, overwrite=True)]
        if sampler:
            futures.append(self._save_for_sampler(f"{name}-again" if again else name, ttl_seconds))

        def finish(values: list[Any]) -> SaveResult:
            return SaveResult(step, values[0].path, values[1].path if len(values) > 1 else None)

        return Queued(step - 1, f"save at boundary {step}", tuple(futures), finish)

    def submit_sampler_save(self, saving: Queued, ttl_seconds: int | None = None) -> Queued:
        """Add the weights for sampling to a save that `submit_save` returned without them.

        No step may have been queued since, so that both have the weights of the same boundary.
        """
        name = self._checkpoint_name(saving.after + 1)
        return replace(saving, futures=(*saving.futures, self._save_for_sampler(name, ttl_seconds)))

    def _save_for_sampler(self, name: str, ttl_seconds: int | None) -> Future[Any]:
        return self.client.save_weights_for_sampler(name, ttl_seconds=ttl_seconds)

    def _checkpoint_name(self, step: int) -> str:
        return f"{self.run}-{step:06d}"

    def push(self, queued: Queued) -> None:
        """Append submitted work to the queue."""
        self._queue.append(queued)

    # --- the result clock ---

    def pop(self, upto: float = math.inf) -> Queued | None:
        """Remove and return the oldest work, if its `Queued.after` is at most `upto`; otherwise return None."""
        return self._queue.popleft() if self._queue and self._queue[0].after <= upto else None

    def before(self, step: int) -> Iterator[Result]:
        """Yield the results that are due before `step` is queued: all those up to step `step - 1 - ahead`. Blocks."""
        return self._deliver(step - 1 - self.ahead)

    def drain(self) -> Iterator[Result]:
        """Yield all outstanding results. Blocks until they have arrived."""
        return self._deliver(math.inf)

    def _deliver(self, upto: float) -> Iterator[Result]:
        def flow() -> Flow[None]:
            while queued := self.pop(upto):
                yield (yield from queued.answer())

        return iterate(flow())


def submitted_eval(step: int, name: str, future: Future[Any], *, final: bool = False, detached: bool = False) -> Queued:
    """Return the `Queued` work of an evaluation of boundary `step` that has just been submitted."""

    def finish(values: list[Any]) -> EvalResult:
        return EvalResult(step, name, values[0], final, detached)

    return Queued(step - 1, f"evaluation {name!r} at boundary {step}", (future,), finish)


def _submit(client: TrainingClientLike, micro_batch: MicroBatch) -> Future[tinker.ForwardBackwardOutput]:
    datums, loss_fn, config = list(micro_batch.datums), micro_batch.loss_fn, micro_batch.config
    if isinstance(loss_fn, str):
        check_loss_name(loss_fn)
        name: Any = loss_fn  # unchecked: the valid names depend on the service and on the version of tinker
        return client.forward_backward(datums, name, dict(config) if config else None)
    if config:
        raise PlanError(
            f"a custom loss must have config=None, got {dict(config)}: put its options into the loss function instead"
        )
    return client.forward_backward_custom(datums, _checked(loss_fn))


def _checked(loss_fn: CustomLoss) -> CustomLoss:
    """Return a function that does what `loss_fn` does, and checks that it returns a loss and metrics."""

    @functools.wraps(loss_fn)
    def checked(datums: list[tinker.Datum], logprobs: list[Any]) -> Any:
        answer: Any = loss_fn(datums, logprobs)
        if isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], Mapping):
            return answer
        raise PlanError(
            f"a custom loss must return (scalar loss, dict of metrics), got a {type(answer).__name__}: return "
            "(loss, {}) if it has no metrics"
        )

    return checked


TOKEN_TOTALS = ("tokens/total", "tokens/trained")
"""Names of the metrics with the numbers of positions in all steps so far: of the inputs, and of those with a weight."""
RESERVED = ("loss", "learning_rate", "tokens", *TOKEN_TOTALS)
"""Names of the metrics that the loop adds to every step, which no other metric may have."""


def _step_result(
    plan: Plan, outputs: Sequence[tinker.ForwardBackwardOutput], optim: tinker.OptimStepResponse
) -> StepResult:
    metrics = reduce_metrics([output.metrics for output in outputs], [len(one.datums) for one in plan.micro_batches])
    metrics.update(optim.metrics or {})
    taken = [name for name in RESERVED if name in metrics]
    if taken:
        raise PlanError(
            f"step {plan.step} returned metrics named {taken}, but these names are reserved for the loop: rename them"
        )
    if "loss:sum" not in metrics:
        raise TinkerloopError(
            f"the service must return the metric 'loss:sum', but returned only {sorted(metrics)} at step {plan.step}"
        )
    loss = mean_loss(plan, metrics["loss:sum"])
    own = {"loss": loss, "learning_rate": plan.optim.learning_rate, "tokens": plan.tokens}
    return StepResult(plan.step, loss, own | metrics, plan, tuple(outputs))


def reduce_metrics(metrics: Sequence[Mapping[str, float]], counts: Sequence[int]) -> dict[str, float]:
    """Reduce the metrics of several `forward_backward` calls to one value per name.

    The suffix of the name selects the reduction: the sum for `:sum`, the minimum for `:min`, the maximum for `:max`,
    and for all other names the mean weighted by `counts`. The client of tinker does the same for the parts of a large
    call.

    Args:
        metrics: the metrics of each call.
        counts: the number of datums of each call.
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

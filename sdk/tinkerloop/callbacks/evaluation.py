"""Evaluations during training.

An evaluation uses exactly the weights of its boundary, the point between two optimizer steps at which it was requested.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from tinkerloop._lazy import tinker
from tinkerloop.clients import Future, SamplingClientLike, TrainingClientLike
from tinkerloop.datum_values import read_tensor
from tinkerloop.errors import PlanError
from tinkerloop.loop.argument_checks import datums_of
from tinkerloop.loop.callback import Callback
from tinkerloop.loop.events import Boundary, Eval, EvalResult, Log, Requests
from tinkerloop.loop.futures import Mapped, awaitable, background, is_done, resolve
from tinkerloop.loop.jsonl import append_line, read_lines, write_lines
from tinkerloop.number_checks import check_whole

T = TypeVar("T")
Metrics = Mapping[str, float]
Evaluator = Callable[[TrainingClientLike], Future[Metrics]]
"""Function from a training client to a future of metrics. It submits the work and returns without waiting for it."""


@dataclass
class _Evaluated:
    boundary: int | None = None
    """The newest boundary that was evaluated, which is evaluated once, also if it is asked for twice; -1: none.

    None before the start of a new run, and after a record without this state.
    """


class Evaluate(Callback):
    """Run an evaluator at regular boundaries, and log its metrics as `<name>/<metric>`.

    Args:
        name: the name of the evaluation, unique in a run. Other callbacks see it as `EvalResult.name`.
        evaluator: `nll(...)`, `sampled(...)`, or any function from a training client to a future of metrics.
        every: the number of steps between evaluations; None: evaluate only at the start and at the end.
        at_start: if true, also evaluate before the first step of a new run.
        at_end: if true, also evaluate at the last boundary of the run, whatever ends it but an error.
        detached: if true, training does not wait for the result, which is delivered when it is ready. See `Eval`.
        samples: a file to which sample replies are appended as JSON lines. The evaluator returns them beside its
            metrics, as `"samples"`: a list of dicts with `messages` (the prompt), `reply`, and what is known of
            `reference`, `score` and `termination`. `step` and `name` are added. The page of a run reads `samples.jsonl`
            in its folder.
    """

    def __init__(
        self,
        name: str,
        evaluator: Evaluator,
        *,
        every: int | None = None,
        at_start: bool = True,
        at_end: bool = True,
        detached: bool = False,
        samples: str | Path | None = None,
    ):
        if every is not None:
            check_whole("every", every, 1)
        if every is None and not at_start and not at_end:
            raise PlanError(
                f"the evaluation {name!r} would never run: pass every=, or leave at_start or at_end at True"
            )
        if not callable(evaluator):
            raise PlanError(
                f"an evaluator must be a function from a training client to a future of metrics, got a "
                f"{type(evaluator).__name__}: for the loss of held-out datums, pass nll(datums)"
            )
        self.name = name
        self._evaluator, self._every, self._detached = evaluator, every, detached
        self._at_start, self._at_end = at_start, at_end
        self._samples = None if samples is None else Path(samples)
        self.state = _Evaluated()

    @property
    def evaluations(self) -> Mapping[str, bool]:  # type: ignore[override]
        return {self.name: self._detached}

    def on_start(self, step: int, steps: int | None) -> Requests:
        newest = self.state.boundary
        if newest is None:
            newest, self.state.boundary = step if step > 0 else -1, -1
        if self._samples is not None and self._samples.exists():
            # Those of an earlier run, or of evaluations that come again, are removed.
            rows = read_lines(self._samples, restore_numbers=False)
            write_lines(self._samples, [row for row in rows if row["name"] != self.name or row["step"] <= newest])

    def on_boundary(self, boundary: Boundary) -> Requests:
        if boundary.step == self.state.boundary:
            return None
        periodic = self._every is not None and boundary.step > 0 and boundary.step % self._every == 0
        if periodic or (self._at_start and boundary.step == 0) or (self._at_end and boundary.final):
            self.state.boundary = boundary.step
            return Eval(self.name, self._evaluator(boundary.client), self._detached)
        return None

    def on_eval(self, result: EvalResult) -> Requests:
        if result.name == self.name:
            metrics = dict(result.value)
            samples = metrics.pop("samples", ())
            if samples and self._samples is None:
                raise PlanError(
                    f"the evaluator of {self.name!r} returned samples, but Evaluate has no file for them: pass "
                    'samples=run.folder / "samples.jsonl"'
                )
            for sample in samples:
                if own := sorted({"name", "step"} & set(sample)):
                    raise PlanError(
                        f"a sample of {self.name!r} at step {result.step} has the keys {own}, but Evaluate writes its "
                        "own values under these: rename them"
                    )
                append_line(Path(self._samples or ""), {"step": result.step, "name": self.name, **sample})
            return Log({f"{self.name}/{metric}": float(value) for metric, value in metrics.items()})
        return None


def nll(datums: Sequence[tinker.Datum], *, batch_size: int | None = None, utf8_bytes: int | None = None) -> Evaluator:
    """Return an evaluator that computes the cross-entropy loss of held-out datums with `forward` calls.

    Its metric `nll` is the weighted mean of the negative log-likelihood over tokens, in nats:
    sum(-w * logp) / sum(w). With `utf8_bytes` it also has `bits_per_byte`: sum(-w * logp) / (utf8_bytes * ln 2).

    Args:
        datums: the held-out datums, with weights as for cross_entropy.
        batch_size: the number of datums in one `forward` call; None: all datums.
        utf8_bytes: the number of UTF-8 bytes of the text of the weighted tokens.

    Raises:
        PlanError: there are no datums, one has no weights, the sum of their weights is not positive, or a number is
            not a whole number of at least 1.
    """
    datums = datums_of(datums, "the data of nll")
    if not datums:
        raise PlanError("nll needs at least one datum to evaluate, got none")
    for name, value in (("batch_size", batch_size), ("utf8_bytes", utf8_bytes)):
        if value is not None:
            check_whole(f"{name} of nll", value, 1)
    for index, datum in enumerate(datums):
        if "weights" not in datum.loss_fn_inputs:
            raise PlanError(
                f"datum {index} of nll has only {sorted(datum.loss_fn_inputs)}, but its loss needs 'weights': build "
                "datums with tinkerloop.make_datum"
            )
    size = batch_size or len(datums)
    batches = [list(datums[start : start + size]) for start in range(0, len(datums), size)]
    weights = [read_tensor("weights", datum.loss_fn_inputs["weights"]) for datum in datums]
    total = math.fsum(float(np.sum(one, dtype=np.float64)) for one in weights)
    if not total > 0:
        raise PlanError(
            f"the weights of the evaluated datums sum to {total:g}, but nll needs a positive sum: pass datums with "
            "positive weights"
        )

    def submit(client: TrainingClientLike) -> Future[Metrics]:
        futures = [client.forward(batch, "cross_entropy") for batch in batches]
        return Mapped(_All(futures), metrics)

    def metrics(outputs: list[tinker.ForwardBackwardOutput]) -> Metrics:
        loss = math.fsum(output.metrics["loss:sum"] for output in outputs)
        values = {"nll": loss / total}
        if utf8_bytes is not None:
            values["bits_per_byte"] = loss / (utf8_bytes * math.log(2))
        return values

    return submit


def sampled(score: Callable[[SamplingClientLike], Metrics | Coroutine[Any, Any, Metrics]]) -> Evaluator:
    """Return an evaluator that computes metrics with a sampling client.

    The evaluator requests a sampling client for the current weights. The request is queued in order with the training
    steps, so the client has exactly the weights of the boundary, although training continues meanwhile.

    Args:
        score: function or coroutine function from a sampling client to metrics. It runs on a separate thread.
    """

    def submit(client: TrainingClientLike) -> Future[Metrics]:
        snapshot = client.save_weights_and_get_sampling_client()
        return background(lambda: score(resolve(snapshot)))

    return submit


def together(*evaluators: Evaluator) -> Evaluator:
    """Return an evaluator that runs several evaluators at the same boundary, and merges their metrics into one row."""

    def submit(client: TrainingClientLike) -> Future[Metrics]:
        return Mapped(_All([evaluator(client) for evaluator in evaluators]), merged)

    def merged(values: list[Metrics]) -> Metrics:
        names = [name for one in values for name in one]
        if len(names) != len(set(names)):
            raise PlanError(
                f"combined evaluators must return different metrics, got {sorted(names)}: rename the duplicates"
            )
        return {name: value for one in values for name, value in one.items()}

    return submit


class _All(Generic[T]):
    """The future of the list of the values of `futures`, in order."""

    def __init__(self, futures: Sequence[Future[T]]):
        self._futures = futures

    def result(self, timeout: float | None = None) -> list[T]:
        return [future.result(timeout) for future in self._futures]

    def done(self) -> bool:
        return all(map(is_done, self._futures))

    def __await__(self) -> Generator[Any, Any, list[T]]:
        return self._gather().__await__()

    async def _gather(self) -> list[T]:
        return [await awaitable(future) for future in self._futures]

"""Events for tests of callbacks, with plain values where a test gives none, and the batches of a small run."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinkerloop._lazy import tinker
from tinkerloop.datum import make_datum
from tinkerloop.loop.checkpoints import Record
from tinkerloop.loop.events import Boundary, EvalResult, StepResult
from tinkerloop.loop.plan import MicroBatch, Plan


def sample_batches(batches: int = 6, datums: int = 4, vocab_size: int = 20) -> list[list[tinker.Datum]]:
    """Return batches of random datums of 4 to 8 tokens below `vocab_size`. Equal arguments give equal batches."""
    rng = np.random.default_rng(0)
    sizes = [4 + i % 5 for i in range(batches * datums)]
    flat = [make_datum(rng.integers(0, vocab_size, size), np.ones(size)) for size in sizes]
    return [flat[i : i + datums] for i in range(0, len(flat), datums)]


def sample_plan(step: int = 0, learning_rate: float = 0.1) -> Plan:
    """Return a plan with one micro-batch of 6 datums."""
    datums = tuple(datum for batch in sample_batches(2, 3) for datum in batch)
    return Plan(step, (MicroBatch(datums),), tinker.AdamParams(learning_rate=learning_rate))


def sample_step_result(step: int = 0, loss: float = 1.0, **metrics: float) -> StepResult:
    """Return the result of a step with this loss and these further metrics."""
    plan = sample_plan(step)
    return StepResult(step, loss, {"loss": loss, "learning_rate": 0.1, **metrics}, plan, ())


def sample_boundary(
    step: int, steps: int | None = None, *, final: bool = False, tokens: int = 0, client: Any = None, **metrics: float
) -> Boundary:
    """Return a boundary: the point before step `step`."""
    return Boundary(step, steps, final, client, tokens, metrics)


def sample_eval_result(step: int, name: str = "test", **metrics: float) -> EvalResult:
    """Return the result of an evaluation called `name`."""
    return EvalResult(step, name, metrics)


def sample_record(step: int, **metrics: float) -> Record:
    """Return the record of boundary `step`."""
    return Record(step, f"tinker://run/weights/{step:06d}", None, {}, metrics)

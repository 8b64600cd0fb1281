"""Evaluators of supervised training: held-out loss, bits per byte, and whatever a user scores by sampling."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from tinkerloop.callbacks import nll, sampled
from tinkerloop.callbacks.evaluation import Evaluator, Metrics

if TYPE_CHECKING:
    import tinker


class SamplingClientEvaluator:
    """Scores a sampling client: subclass it and write `__call__(sampling_client) -> metrics`, async or not."""

    def __call__(self, sampling_client: Any) -> Any:
        raise NotImplementedError


EvaluatorBuilder = Callable[[], Evaluator | SamplingClientEvaluator]
"""Makes an evaluator once the run starts: a `SamplingClientEvaluator`, or a function as `callbacks.nll` returns it."""


class NLLEvaluator:
    """Held-out loss in nats per weighted token, `nll`; with a tokenizer also `bits_per_byte`."""

    def __init__(self, datums: Iterable[tinker.Datum], *, tokenizer: Any = None, batch_size: int = 64):
        datums = list(datums)
        self._submit = nll(
            datums,
            batch_size=batch_size,
            utf8_bytes=None if tokenizer is None else utf8_bytes(datums, tokenizer),
        )

    def __call__(self, training_client: Any) -> Any:
        """Queue the forward passes; the future of the metrics."""
        return self._submit(training_client)


def utf8_bytes(datums: Iterable[tinker.Datum], tokenizer: Any) -> int:
    """UTF-8 bytes of the text that the weighted tokens spell. Control tokens are no text."""
    total = 0
    for datum in datums:
        targets = datum.loss_fn_inputs["target_tokens"].tolist()
        weights = datum.loss_fn_inputs["weights"].tolist()
        trained = [token for token, weight in zip(targets, weights, strict=True) if weight]
        total += len(tokenizer.decode(trained, skip_special_tokens=True).encode())
    return total


def as_evaluator(evaluator: Any) -> Evaluator:
    """What the loop runs: `training client -> future of metrics`."""
    if isinstance(evaluator, SamplingClientEvaluator):
        return sampled(evaluator)
    if inspect.iscoroutinefunction(evaluator) or inspect.iscoroutinefunction(getattr(evaluator, "__call__", None)):  # noqa: B004
        raise TypeError(
            f"{evaluator!r} is a coroutine function: by the time it submits its work, training has moved on. Subclass "
            "SamplingClientEvaluator to score samples, or write a function that submits and returns a future"
        )
    return evaluator


__all__ = ["EvaluatorBuilder", "Metrics", "NLLEvaluator", "SamplingClientEvaluator", "as_evaluator", "utf8_bytes"]

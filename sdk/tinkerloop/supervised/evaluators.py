"""Evaluators of supervised training: held-out loss, bits per byte, and scores of samples."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from tinkerloop.callbacks import nll, sampled
from tinkerloop.callbacks.evaluation import Evaluator, Metrics

if TYPE_CHECKING:
    import tinker


class SamplingClientEvaluator:
    """The base class of evaluators that sample; a subclass defines `__call__(sampling_client) -> metrics`."""

    def __call__(self, sampling_client: Any) -> Any:
        raise NotImplementedError


EvaluatorBuilder = Callable[[], Evaluator | SamplingClientEvaluator]
"""Makes an evaluator at the start of a run: a `SamplingClientEvaluator`, or a function like that of `callbacks.nll`."""


class NLLEvaluator:
    """Held-out loss: `nll` in nats per weighted token and, with a tokenizer, `bits_per_byte`.

    Args:
        datums: the test data.
        tokenizer: counts the bytes of the text; None leaves out `bits_per_byte`.
        batch_size: datums in one forward pass.
    """

    def __init__(self, datums: Iterable[tinker.Datum], *, tokenizer: Any = None, batch_size: int = 64):
        datums = list(datums)
        self._submit = nll(
            datums,
            batch_size=batch_size,
            utf8_bytes=None if tokenizer is None else utf8_bytes(datums, tokenizer),
        )

    def __call__(self, training_client: Any) -> Any:
        """Submit the forward passes; return a future of the metrics."""
        return self._submit(training_client)


def utf8_bytes(datums: Iterable[tinker.Datum], tokenizer: Any) -> int:
    """Count the UTF-8 bytes of the text of the weighted tokens, without control tokens."""
    total = 0
    for datum in datums:
        targets = datum.loss_fn_inputs["target_tokens"].tolist()
        weights = datum.loss_fn_inputs["weights"].tolist()
        trained = [token for token, weight in zip(targets, weights, strict=True) if weight]
        total += len(tokenizer.decode(trained, skip_special_tokens=True).encode())
    return total


def as_evaluator(evaluator: Any) -> Evaluator:
    """Return the evaluator as the loop runs it: a function from a training client to a future of metrics.

    Raises:
        TypeError: the evaluator is a coroutine function.
    """
    if isinstance(evaluator, SamplingClientEvaluator):
        return sampled(evaluator)
    if inspect.iscoroutinefunction(evaluator) or inspect.iscoroutinefunction(getattr(evaluator, "__call__", None)):  # noqa: B004
        raise TypeError(
            f"{evaluator!r} is a coroutine function, which would submit its work too late; subclass "
            "SamplingClientEvaluator to score samples, or write a function that submits and returns a future"
        )
    return evaluator


__all__ = ["EvaluatorBuilder", "Metrics", "NLLEvaluator", "SamplingClientEvaluator", "as_evaluator", "utf8_bytes"]

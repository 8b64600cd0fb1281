"""Evaluators for supervised training: held-out loss, bits per byte, and the base class of evaluators that sample."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from tinkerloop.callbacks import nll, sampled
from tinkerloop.callbacks.evaluation import Evaluator, Metrics

if TYPE_CHECKING:
    import tinker


class SamplingClientEvaluator:
    """The base class of evaluators that sample. A subclass defines `__call__(sampling_client)`, returning metrics."""

    def __call__(self, sampling_client: Any) -> Any:
        raise NotImplementedError


EvaluatorBuilder = Callable[[], Evaluator | SamplingClientEvaluator]
"""A function that is called at the start of a run and returns an evaluator.

The evaluator is a `SamplingClientEvaluator`, or a function like the one that `callbacks.nll` returns.
"""


class NLLEvaluator:
    """Evaluator of the held-out loss.

    Its metrics are `nll`, the weighted mean over tokens in nats, and, with a tokenizer, `bits_per_byte`.

    Args:
        datums: the test data.
        tokenizer: the tokenizer with which the bytes of the text are counted; None leaves out `bits_per_byte`.
        batch_size: the number of datums in one forward pass.
    """

    def __init__(self, datums: Iterable[tinker.Datum], *, tokenizer: Any = None, batch_size: int = 64):
        datums = list(datums)
        self._submit = nll(
            datums,
            batch_size=batch_size,
            utf8_bytes=None if tokenizer is None else utf8_bytes(datums, tokenizer),
        )

    def __call__(self, training_client: Any) -> Any:
        """Submit the forward passes to `training_client`, and return a future of the metrics."""
        return self._submit(training_client)


def utf8_bytes(datums: Iterable[tinker.Datum], tokenizer: Any) -> int:
    """Return the number of UTF-8 bytes in the text of the weighted tokens, without special tokens."""
    total = 0
    for datum in datums:
        targets = datum.loss_fn_inputs["target_tokens"].tolist()
        weights = datum.loss_fn_inputs["weights"].tolist()
        trained = [token for token, weight in zip(targets, weights, strict=True) if weight]
        total += len(tokenizer.decode(trained, skip_special_tokens=True).encode())
    return total


def as_evaluator(evaluator: Any) -> Evaluator:
    """Convert an evaluator to the form that the loop runs: a function from a training client to a future of metrics.

    Raises:
        TypeError: the evaluator is a coroutine function.
    """
    if isinstance(evaluator, SamplingClientEvaluator):
        return sampled(evaluator)
    if inspect.iscoroutinefunction(evaluator) or inspect.iscoroutinefunction(getattr(evaluator, "__call__", None)):  # noqa: B004
        raise TypeError(
            f"the evaluator {evaluator!r} is a coroutine function, which would submit its work too late; to score "
            "samples, subclass SamplingClientEvaluator; otherwise pass a function that submits its work and returns a "
            "future"
        )
    return evaluator


__all__ = ["EvaluatorBuilder", "Metrics", "NLLEvaluator", "SamplingClientEvaluator", "as_evaluator", "utf8_bytes"]

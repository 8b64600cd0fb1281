"""Answers of callbacks as values that can be compared between runs: without futures, functions and measured times."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from tinkerloop.clients import CustomLoss
from tinkerloop.loop.callback_dispatch import requests_of
from tinkerloop.loop.events import Eval, Log, Request, Retain
from tinkerloop.loop.plan import Plan


def comparable(callback: str, event: str, answer: Any, ignored_metrics: tuple[str, ...]) -> Any:
    """Return what is compared of an answer of a callback to an event.

    Args:
        callback: the name of the callback's class, for error messages.
        event: the name of the event.
        answer: a plan or requests.
        ignored_metrics: prefixes of metrics in `Log` that are left out.
    """
    if isinstance(answer, Plan):
        batches = [
            (len(one.datums), _loss(one.loss_fn), None if one.config is None else dict(one.config))
            for one in answer.micro_batches
        ]
        datums = [
            (datum.model_input, [(key, data.to_numpy().tolist()) for key, data in sorted(datum.loss_fn_inputs.items())])
            for datum in answer.datums
        ]
        return answer.optim.model_dump(), batches, datums, answer.normalize
    requests = requests_of(callback, event, answer)
    return [kept for request in requests if (kept := _request(request, ignored_metrics)) is not None]


def _request(request: Request, ignored_metrics: tuple[str, ...]) -> Any:
    """Return what is compared of a request; None for a `Log` that has only ignored metrics."""
    if isinstance(request, Log) and ignored_metrics:
        kept = {name: value for name, value in request.metrics.items() if not name.startswith(ignored_metrics)}
        return Log(kept) if kept else None
    if isinstance(request, Eval):
        return "Eval", request.name, request.detached
    return "Retain" if isinstance(request, Retain) else request


def _loss(loss_fn: str | CustomLoss) -> Any:
    """Return the name of a loss and, of a custom one, the numbers and texts that it was created with.

    The text of a function has its address, which is another one in each run.
    """
    if isinstance(loss_fn, str):
        return loss_fn
    given: dict[str, Any] = {}
    function: Any = loss_fn
    if isinstance(function, functools.partial):
        given |= function.keywords | {str(i): value for i, value in enumerate(function.args)}
        function = function.func
    if inspect.isfunction(function):
        given |= inspect.getclosurevars(function).nonlocals
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return name, {key: value for key, value in sorted(given.items()) if isinstance(value, int | float | str)}

"""Gradient accumulation: several batches in one step, and a step split into several calls."""

from __future__ import annotations

from tinkerloop.errors import PlanError
from tinkerloop.loop.callback import Callback
from tinkerloop.loop.events import Accumulate, Requests
from tinkerloop.loop.plan import Plan


class GradientAccumulation(Callback):
    """Take several batches in each step, and queue the step as micro-batches of limited size.

    Weights are normalised over the whole step, so the split never changes the update.

    Args:
        batches: batches in each step. The last step of the data may have fewer.
        micro_batch: the most datums in one forward_backward call; None: no limit.
        micro_tokens: the most input positions in one call; None: no limit. A longer datum gets a call of its own.
    """

    def __init__(self, batches: int = 1, *, micro_batch: int | None = None, micro_tokens: int | None = None):
        for name, value in (("batches", batches), ("micro_batch", micro_batch), ("micro_tokens", micro_tokens)):
            if value is not None and value < 1:
                raise PlanError(f"{name} must be >= 1, got {value}")
        self._batches, self._micro_batch, self._micro_tokens = batches, micro_batch, micro_tokens

    def on_start(self, step: int, steps: int | None) -> Requests:
        return Accumulate(self._batches)

    def on_plan(self, plan: Plan) -> Plan:
        if self._micro_batch is not None:
            plan = plan.split(lambda datum: 1, self._micro_batch)
        if self._micro_tokens is not None:
            plan = plan.split(lambda datum: datum.model_input.length, self._micro_tokens)
        return plan

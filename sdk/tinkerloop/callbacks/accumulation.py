"""Gradient accumulation: training on several batches in one step, split into several `forward_backward` calls."""

from __future__ import annotations

from dataclasses import dataclass

from tinkerloop.errors import CheckpointError
from tinkerloop.loop.callback import Callback
from tinkerloop.loop.events import Accumulate, Requests
from tinkerloop.loop.plan import Plan
from tinkerloop.number_checks import check_positive_number, check_whole


@dataclass
class _Accumulated:
    batches: int


class GradientAccumulation(Callback):
    """Train on several batches in each step, split into micro-batches of limited size.

    A micro-batch contains the datums of one `forward_backward` call. The loss weights are normalised over the whole
    step, so the split never changes the update.

    Args:
        batches: the number of batches in each step. The last step of the data may have fewer. A resumed run must have
            the same number, because its steps up to the record are counted with it.
        micro_batch: the maximum number of datums in one micro-batch; None: no limit.
        micro_tokens: the maximum number of input positions in one micro-batch; None: no limit. A datum that alone
            exceeds the limit becomes a separate micro-batch.
    """

    reusable = True

    def __init__(self, batches: int = 1, *, micro_batch: int | None = None, micro_tokens: int | None = None):
        check_whole("batches", batches, 1)
        if micro_batch is not None:
            check_whole("micro_batch", micro_batch, 1)
        if micro_tokens is not None:
            check_positive_number("micro_tokens", micro_tokens)
        self._batches, self._micro_batch, self._micro_tokens = batches, micro_batch, micro_tokens

    @property
    def state(self) -> _Accumulated:  # type: ignore[override]
        return _Accumulated(self._batches)

    @state.setter
    def state(self, recorded: _Accumulated) -> None:
        if recorded.batches != self._batches:
            raise CheckpointError(
                f"the run was trained with batches={recorded.batches} in each step, got batches={self._batches}: its "
                "steps would be counted in two ways, and it could end before its data does. Resume it with the same "
                "number (of GradientAccumulation, or gradient_accumulation_steps of train.Config), or start a new run "
                "in a new folder"
            )

    def on_start(self, step: int, steps: int | None) -> Requests:
        return Accumulate(self._batches)

    def on_plan(self, plan: Plan) -> Plan:
        if self._micro_batch is not None:
            plan = plan.split(lambda datum: 1, self._micro_batch)
        if self._micro_tokens is not None:
            plan = plan.split(lambda datum: datum.model_input.length, self._micro_tokens)
        return plan

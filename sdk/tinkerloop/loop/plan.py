"""The plan of one optimizer step: its datums, their split into micro-batches, the loss and the optimizer parameters.

A micro-batch contains the datums of one `forward_backward` call. A `Plan` is immutable; callbacks return changed copies
of it. After the last callback, the loop normalises the loss weights over the whole step, and then queues the step. So
neither splitting nor accumulating can change the update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from itertools import islice
from typing import Any, Literal

import numpy as np

from tinkerloop._lazy import tinker
from tinkerloop.clients import CustomLoss
from tinkerloop.datum import LOSS_INPUTS, read_tensor, scale_weights
from tinkerloop.errors import PlanError

Normalize = Literal["token", "example", "none"]
NORMALIZE: tuple[Normalize, ...] = ("token", "example", "none")


@dataclass(frozen=True)
class MicroBatch:
    """The datums and the loss of one `forward_backward` call.

    The gradients of all micro-batches of a step are summed.

    Attributes:
        datums: the datums; at least one.
        loss_fn: the name of a built-in loss, or a custom loss function for `forward_backward_custom`.
        config: the options of a built-in loss, passed as `loss_fn_config`, such as `{"clip_high_threshold": 1.2}`.
    """

    datums: tuple[tinker.Datum, ...]
    loss_fn: str | CustomLoss = "cross_entropy"
    config: Mapping[str, float | str] | None = None

    def __repr__(self) -> str:
        return f"MicroBatch(datums={len(self.datums)}, loss_fn={_loss_name(self.loss_fn)}, config={self.config})"


@dataclass(frozen=True)
class Plan:
    """One optimizer step, before it is queued.

    Attributes:
        step: the number of the step, from 0. When it begins, steps 0 to step - 1 have been applied to the weights.
        micro_batches: the datums of the step, one micro-batch for each `forward_backward` call.
        optim: the optimizer parameters, passed to `optim_step`.
        normalize: how the loss weights are scaled over the whole step. "token": all weights together are scaled to sum
            to 1, so the loss is the weighted mean over tokens. "example": each datum's weights are scaled to sum to
            1/n, where n is the number of datums, so the loss is the mean of the datums' weighted means. "none": the
            weights are not changed.
    """

    step: int
    micro_batches: tuple[MicroBatch, ...]
    optim: tinker.AdamParams
    normalize: Normalize = "token"

    def __repr__(self) -> str:  # numbers instead of the datums, which would fill the screen
        return (
            f"Plan(step={self.step}, micro_batches={len(self.micro_batches)}, datums={len(self.datums)}, "
            f"tokens={self.tokens}, learning_rate={self.optim.learning_rate:g}, normalize={self.normalize!r})"
        )

    @property
    def datums(self) -> tuple[tinker.Datum, ...]:
        """The datums of all micro-batches, in order."""
        if len(self.micro_batches) == 1:
            return self.micro_batches[0].datums
        return tuple(datum for one in self.micro_batches for datum in one.datums)

    @cached_property
    def tokens(self) -> int:
        """The total number of input positions of all datums."""
        return sum(datum.model_input.length for datum in self.datums)

    def with_optim(self, **fields: float) -> Plan:
        """Return a copy with some optimizer parameters changed, for example `plan.with_optim(learning_rate=1e-4)`.

        Raises:
            PlanError: an optimizer parameter is unknown.
        """
        known = type(self.optim).model_fields
        if unknown := sorted(fields.keys() - known.keys()):
            raise PlanError(f"unknown optimizer parameters: {', '.join(unknown)}; valid ones are {', '.join(known)}")
        return Plan(self.step, self.micro_batches, self.optim.model_copy(update=fields), self.normalize)

    def with_micro_batches(self, micro_batches: Iterable[MicroBatch], **changes: Any) -> Plan:
        """Return a copy with these micro-batches. `changes` replaces other fields, for example `normalize="none"`."""
        return replace(self, micro_batches=tuple(micro_batches), **changes)

    def split(self, size: Callable[[tinker.Datum], float], limit: float) -> Plan:
        """Return a copy whose micro-batches are split so that the sizes of the datums in each sum to at most `limit`.

        The order of the datums is kept. A datum larger than `limit` becomes a separate micro-batch.
        """
        if all(sum(map(size, one.datums)) <= limit for one in self.micro_batches):
            return self
        return self.with_micro_batches(
            replace(one, datums=chunk) for one in self.micro_batches for chunk in _chunked(one.datums, size, limit)
        )


def _chunked(
    datums: Sequence[tinker.Datum], size: Callable[[tinker.Datum], float], limit: float
) -> list[tuple[tinker.Datum, ...]]:
    chunks: list[list[tinker.Datum]] = []
    room = -1.0
    for datum in datums:
        need = size(datum)
        if need > room:
            chunks.append([])
            room = limit
        chunks[-1].append(datum)
        room -= need
    return [tuple(chunk) for chunk in chunks]


def normalized(plan: Plan) -> Plan:
    """Check a plan, and return a copy with the loss weights scaled over the whole step, as `plan.normalize` specifies.

    Raises:
        PlanError: a micro-batch has no datums, or its weights cannot be scaled as specified.
    """
    datums = plan.datums
    if not datums or not all(one.datums for one in plan.micro_batches):
        raise PlanError(
            f"step {plan.step} has no datums, or has an empty micro-batch: every micro-batch needs at least one datum"
        )
    if plan.normalize == "none":
        return plan
    for one in plan.micro_batches:
        if one.loss_fn != "cross_entropy":
            raise PlanError(
                f"normalize={plan.normalize!r} can scale only the weights of cross_entropy, but step {plan.step} has a "
                f'micro-batch with loss {_loss_name(one.loss_fn)}: use normalize="none" and scale the inputs of the '
                "loss yourself"
            )
    sums = [_weight_sum(datum) for datum in datums]
    if plan.normalize == "token":
        _refuse_unless_positive(plan, sum(sums), "the step's weights")
        factors = [1.0 / sum(sums)] * len(sums)
    else:
        for index, total in enumerate(sums):
            _refuse_unless_positive(plan, total, f"the weights of datum {index}")
        factors = [1.0 / (total * len(sums)) for total in sums]
    scaled = map(scale_weights, datums, factors)
    micro_batches = [replace(one, datums=tuple(islice(scaled, len(one.datums)))) for one in plan.micro_batches]
    return Plan(plan.step, tuple(micro_batches), plan.optim, plan.normalize)


def mean_loss(plan: Plan, loss_sum: float) -> float:
    """Return the loss to report for a step.

    With `plan.normalize` "token" or "example", it is `loss_sum`, because the scaled weights make it a weighted mean.
    With "none", it is `loss_sum` divided by the sum of the weights if every micro-batch uses cross_entropy and the sum
    of the weights is positive; otherwise it is `loss_sum`.

    Args:
        plan: the plan as it was queued.
        loss_sum: the sum of the `loss:sum` metrics that the micro-batches returned.
    """
    if plan.normalize != "none" or any(one.loss_fn != "cross_entropy" for one in plan.micro_batches):
        return loss_sum
    total = sum(_weight_sum(datum) for datum in plan.datums)
    return loss_sum / total if total > 0 else loss_sum


def check_loss_name(loss_fn: str | CustomLoss) -> None:
    """Refuse the misspelt name of a built-in loss. Any other name is left to the service, which may know more losses.

    Raises:
        PlanError: the name is unknown and similar to a known one.
    """
    if isinstance(loss_fn, str) and loss_fn not in LOSS_INPUTS:
        close = get_close_matches(loss_fn, LOSS_INPUTS, n=1)
        if close:
            raise PlanError(f"unknown loss {loss_fn!r}; did you mean {close[0]!r}? Known are {', '.join(LOSS_INPUTS)}")


def _refuse_unless_positive(plan: Plan, total: float, what: str) -> None:
    if not total > 0:
        raise PlanError(
            f"{what} sum to {total:g} at step {plan.step}, but normalize={plan.normalize!r} needs a positive sum: "
            'drop datums without trained tokens, or use normalize="none" for weights of mixed sign'
        )


def _weight_sum(datum: tinker.Datum) -> float:
    weights = datum.loss_fn_inputs.get("weights")
    if weights is None:
        raise PlanError(
            f"a datum for cross_entropy needs 'weights' in its loss_fn_inputs, got {sorted(datum.loss_fn_inputs)}: "
            "build datums with tinkerloop.make_datum, or add weights"
        )
    return float(read_tensor("weights", weights).sum(dtype=np.float64))


def _loss_name(loss_fn: str | CustomLoss) -> str:
    return repr(loss_fn) if isinstance(loss_fn, str) else getattr(loss_fn, "__name__", repr(loss_fn))

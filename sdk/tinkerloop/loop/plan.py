"""The plan of one optimizer step: its datums, their split into forward_backward calls, its loss and its optimizer.

A `Plan` is a value. Callbacks return changed copies of it; nothing is queued until every callback has been asked.
The loop then normalises the weights over the whole step, so neither splitting nor accumulating can change the update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any, Literal

import numpy as np

from tinkerloop._lazy import tinker
from tinkerloop.clients import CustomLoss
from tinkerloop.datum import scale_weights
from tinkerloop.errors import PlanError

Normalize = Literal["token", "example", "none"]
NORMALIZE: tuple[Normalize, ...] = ("token", "example", "none")


@dataclass(frozen=True)
class MicroBatch:
    """The datums of one `forward_backward` call. Its gradient adds to those of the step's other micro-batches.

    Attributes:
        datums: at least one.
        loss_fn: the name of a built-in loss, or a function for `forward_backward_custom`.
        config: options of the built-in loss (`loss_fn_config`), such as `{"clip_high_threshold": 1.2}`.
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
        step: 0 for the first step. The weights hold exactly steps [0, step) when it begins.
        micro_batches: the step's datums, one micro-batch for each `forward_backward` call.
        optim: the parameters of `optim_step`.
        normalize: how the weights of the whole step are scaled. "token": they sum to 1, so the loss is the mean per
            weighted token. "example": those of each of the n datums sum to 1/n, so the loss is the mean of the datums'
            means. "none": they are not changed.
    """

    step: int
    micro_batches: tuple[MicroBatch, ...]
    optim: tinker.AdamParams
    normalize: Normalize = "token"

    def __repr__(self) -> str:  # counts: the datums themselves would fill the screen
        return (
            f"Plan(step={self.step}, micro_batches={len(self.micro_batches)}, datums={len(self.datums)}, "
            f"tokens={self.tokens}, learning_rate={self.optim.learning_rate:g}, normalize={self.normalize!r})"
        )

    @property
    def datums(self) -> tuple[tinker.Datum, ...]:
        """All datums, in the order of the micro-batches."""
        if len(self.micro_batches) == 1:
            return self.micro_batches[0].datums
        return tuple(datum for one in self.micro_batches for datum in one.datums)

    @cached_property
    def tokens(self) -> int:
        """The number of input positions in all datums."""
        return sum(datum.model_input.length for datum in self.datums)

    def with_optim(self, **fields: float) -> Plan:
        """Return the plan with some optimizer parameters changed: `plan.with_optim(learning_rate=1e-4)`.

        Raises:
            PlanError: `optim` has no such parameter.
        """
        known = type(self.optim).model_fields
        if unknown := sorted(fields.keys() - known.keys()):
            raise PlanError(f"there are no optimizer parameters {unknown}; use some of {', '.join(known)}")
        return Plan(self.step, self.micro_batches, self.optim.model_copy(update=fields), self.normalize)

    def with_micro_batches(self, micro_batches: Iterable[MicroBatch], **changes: Any) -> Plan:
        """Return the plan with other micro-batches, and with other fields where given."""
        return replace(self, micro_batches=tuple(micro_batches), **changes)

    def split(self, size: Callable[[tinker.Datum], float], limit: float) -> Plan:
        """Cut each micro-batch so that the sizes of its datums add up to at most `limit`.

        The order of the datums is kept. A datum larger than `limit` gets a micro-batch of its own.
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
    """Check a plan, and scale its weights over the whole step (see `Plan.normalize`).

    Returns:
        The plan as it is queued.

    Raises:
        PlanError: a micro-batch has no datums, or the weights cannot be scaled as asked.
    """
    datums = plan.datums
    if not datums or not all(one.datums for one in plan.micro_batches):
        raise PlanError(
            f"step {plan.step} has no datums (or an empty micro-batch): every micro-batch needs at least one datum"
        )
    if plan.normalize == "none":
        return plan
    for one in plan.micro_batches:
        if one.loss_fn != "cross_entropy":
            raise PlanError(
                f"normalize={plan.normalize!r} scales cross_entropy weights, but step {plan.step} has a micro-batch "
                f'with loss {_loss_name(one.loss_fn)}: use normalize="none" and scale its inputs yourself'
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
    """Compute the loss to report for a queued plan, whose micro-batches returned `loss:sum` values of this sum.

    It is the mean per weighted token ("token"), the mean of the datums' means ("example"), and with "none" the sum
    divided by the sum of the weights when every micro-batch is cross_entropy with a positive sum, else the sum itself.
    """
    if plan.normalize != "none" or any(one.loss_fn != "cross_entropy" for one in plan.micro_batches):
        return loss_sum
    total = sum(_weight_sum(datum) for datum in plan.datums)
    return loss_sum / total if total > 0 else loss_sum


def _refuse_unless_positive(plan: Plan, total: float, what: str) -> None:
    if not total > 0:
        raise PlanError(
            f"{what} sum to {total:g} at step {plan.step}, so normalize={plan.normalize!r} cannot scale them: "
            'drop datums without trained tokens, or use normalize="none" for weights of mixed sign'
        )


def _weight_sum(datum: tinker.Datum) -> float:
    weights = datum.loss_fn_inputs.get("weights")
    if weights is None:
        raise PlanError(f"a cross_entropy datum has no weights; it has {sorted(datum.loss_fn_inputs)}")
    return float(weights.to_numpy().sum(dtype=np.float64))


def _loss_name(loss_fn: str | CustomLoss) -> str:
    return repr(loss_fn) if isinstance(loss_fn, str) else getattr(loss_fn, "__name__", repr(loss_fn))

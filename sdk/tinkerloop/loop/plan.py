"""The plan of one optimizer step: its datums, their split into micro-batches, the loss and the optimizer parameters.

A micro-batch contains the datums of one `forward_backward` call. A `Plan` is immutable; callbacks return changed copies
of it. After the last callback, the loop normalises the loss weights over the whole step, and then queues the step. So
neither splitting nor accumulating can change the update.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from itertools import islice
from numbers import Real
from typing import Any, Literal

import numpy as np

from tinkerloop._lazy import tinker
from tinkerloop.clients import CustomLoss
from tinkerloop.datum_checks import LOSS_INPUTS, POLICY_LOSSES, fold_weights, scale_weights
from tinkerloop.datum_values import read_tensor, trained_positions
from tinkerloop.errors import PlanError
from tinkerloop.number_checks import check_positive_number

Normalize = Literal["token", "example", "none"]
NORMALIZE: tuple[Normalize, ...] = ("token", "example", "none")
_PROPORTIONAL = ("cross_entropy", "importance_sampling", "ppo", "cispo", "gspo")
"""The built-in losses that are proportional to the weights, also when these are multiplied into the advantages.

dro is not: its quadratic term does not depend on the advantage. The formula of stable_reinforce is not published.
"""


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
            weights are not changed. The weights of a policy loss are multiplied into its advantages when the plan is
            queued. A plan with another loss than cross_entropy, importance_sampling, ppo, cispo and gspo needs "none".
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

    def _repr_html_(self) -> str:
        """Return the plan, with the token ids of its datums, as HTML, which a notebook shows for this object."""
        from tinkerloop.loop.datum_html import datums_html
        from tinkerloop.renderers.token_html import styled, text_html

        parts = [f"<p>{text_html(one)}</p>{datums_html(one.datums)}" for one in self.micro_batches]
        return styled(f"<p>{text_html(self)}</p>", *parts)

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

    @cached_property
    def trained_tokens(self) -> int:
        """The number of positions whose weight is not 0, in all datums. A datum without weights counts as a whole."""
        return sum(map(trained_positions, self.datums))

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

        Raises:
            PlanError: `limit` is not a finite number above 0.
        """
        check_positive_number("the limit of a split", limit)
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
        PlanError: a micro-batch has no datums, its weights cannot be scaled as specified, `plan.normalize` is unknown,
            or an optimizer parameter is no finite number.
    """
    datums = plan.datums
    _refuse_unless_numbers(plan)
    check_normalize(plan.normalize, f" at step {plan.step}")
    if not datums or not all(one.datums for one in plan.micro_batches):
        raise PlanError(
            f"step {plan.step} has no datums, or has an empty micro-batch: every micro-batch needs at least one datum"
        )
    for one in plan.micro_batches:
        if one.loss_fn == "cross_entropy" and any("advantages" in datum.loss_fn_inputs for datum in one.datums):
            raise PlanError(
                f"step {plan.step} has datums with advantages, as of rollouts, but the loss cross_entropy: pass "
                'loss_fn="importance_sampling" (the loss_fn of the rollouts) to the Loop'
            )
        if one.loss_fn not in _PROPORTIONAL:
            _refuse_scaling(plan, one)
    if plan.normalize == "none":
        return plan
    sums = [_weight_sum(datum, one.loss_fn) for one in plan.micro_batches for datum in one.datums]
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


def folded(micro_batch: MicroBatch) -> MicroBatch:
    """Return the micro-batch as the service accepts it: without the weights of policy losses, see `fold_weights`.

    Raises:
        DatumError: the weights of a datum cannot be multiplied into its advantages.
    """
    if micro_batch.loss_fn not in POLICY_LOSSES:
        return micro_batch
    return replace(micro_batch, datums=tuple(map(fold_weights, micro_batch.datums)))


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
    total = sum(_weight_sum(datum, "cross_entropy") for datum in plan.datums)
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


def check_normalize(normalize: Any, place: str = "") -> None:
    """Raise PlanError unless `normalize` is one of `NORMALIZE`."""
    if normalize not in NORMALIZE:
        raise PlanError(f"normalize must be one of {', '.join(NORMALIZE)}, got {normalize!r}{place}")


def _refuse_unless_numbers(plan: Plan) -> None:
    """Raise if an optimizer parameter is no finite number: `with_optim` and `model_copy` accept any value."""
    for name, value in vars(plan.optim).items():
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            raise PlanError(
                f"{name} is {value!r} at step {plan.step}, but the optimizer needs a finite number: correct the "
                "schedule or the callback that sets it"
            )


def _refuse_unless_positive(plan: Plan, total: float, what: str) -> None:
    if not total > 0:
        raise PlanError(
            f"{what} sum to {total:g} at step {plan.step}, but normalize={plan.normalize!r} needs a positive sum: "
            'drop datums without trained tokens, or use normalize="none" for weights of mixed sign'
        )


def _refuse_scaling(plan: Plan, micro_batch: MicroBatch) -> None:
    """Raise if `plan` scales the weights of a micro-batch whose loss is not proportional to the weights."""
    name = _loss_name(micro_batch.loss_fn)
    if plan.normalize != "none":
        raise PlanError(
            f"normalize={plan.normalize!r} can scale only the weights of {', '.join(_PROPORTIONAL)}, but step "
            f'{plan.step} has a micro-batch with loss {name}: use normalize="none" and scale the inputs of the loss '
            "yourself"
        )
    if micro_batch.loss_fn in POLICY_LOSSES:
        for datum in micro_batch.datums:
            weights = datum.loss_fn_inputs.get("weights")
            if weights is not None and not np.isin(weights.to_numpy(), (0, 1)).all():
                raise PlanError(
                    f"the loss {name} is not proportional to the advantages, so the weights of its sampled tokens must "
                    f"be 1, but step {plan.step} has other weights: create the datums with weight 1"
                )


def _weight_sum(datum: tinker.Datum, loss_fn: str | CustomLoss) -> float:
    weights = datum.loss_fn_inputs.get("weights")
    if weights is None:
        remedy = "tinkerloop.make_datum"
        if loss_fn != "cross_entropy":
            remedy = 'tinkerloop.rollouts.policy_datum, or use normalize="none"'
        raise PlanError(
            f"to normalise the loss, a datum for {_loss_name(loss_fn)} needs 'weights' in its loss_fn_inputs, got "
            f"{sorted(datum.loss_fn_inputs)}: build datums with {remedy}"
        )
    return float(read_tensor("weights", weights).sum(dtype=np.float64))


def _loss_name(loss_fn: str | CustomLoss) -> str:
    return repr(loss_fn) if isinstance(loss_fn, str) else getattr(loss_fn, "__name__", repr(loss_fn))

"""Policy datums: sampled tokens with their log-probabilities and advantages, for the losses of reinforcement learning.

A policy datum also has `weights`, which are greater than 0 exactly at the sampled tokens. The loop normalises them over
the whole step, as it does for cross_entropy, and multiplies them into the advantages when it queues the step. The
weights that a datum is created with therefore decide which unit counts equally: each token, each trajectory, or each
group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from numbers import Real
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tinkerloop._lazy import tinker
from tinkerloop.datum import make_datum
from tinkerloop.datum_checks import POLICY_LOSSES, check_datum
from tinkerloop.datum_values import check_chunks, real_array
from tinkerloop.errors import DatumError
from tinkerloop.renderers.rendered import model_input
from tinkerloop.rollouts.advantages import per_token
from tinkerloop.rollouts.trajectory import Group, Trajectory

Weighting = Literal["token", "sequence", "group"]
WEIGHTING: tuple[Weighting, ...] = ("token", "sequence", "group")
TRAJECTORY_LOSSES = tuple(name for name in POLICY_LOSSES if name != "stable_reinforce")
"""The losses whose datums can be built from a trajectory. It does not have the ids that stable_reinforce needs."""

_LARGEST_LOGPROB = 0.1  # services that compute in 16 bits round a probability of almost 1 above 1


def policy_datum(
    tokens: tinker.ModelInput | Sequence[int] | NDArray[np.integer],
    sampled: ArrayLike,
    logprobs: ArrayLike,
    advantages: ArrayLike | float,
    *,
    loss_fn: str = "importance_sampling",
    weight: float = 1.0,
    vocab_size: int | None = None,
) -> tinker.Datum:
    """Build a checked datum for a policy loss from tokens that are not shifted.

    Where a token was not sampled, its log-probability, advantage and weight are 0, so it adds nothing to the loss. The
    loss dro is an exception: its quadratic term pulls the log-probabilities of these tokens towards 0. For
    stable_reinforce, add the provenance to the returned datum with `with_provenance`.

    Args:
        tokens: the N tokens, not shifted. An image takes `expected_tokens` positions.
        sampled: (N,) booleans, true where the token was sampled. S of them are true; the first is not.
        logprobs: (S,) the log-probabilities of the sampled tokens under the weights that sampled them.
        advantages: one number, or (S,) the advantage of each sampled token.
        loss_fn: the policy loss that the datum is for, one of `tinkerloop.datum_checks.POLICY_LOSSES`.
        weight: the weight of each sampled token, greater than 0.
        vocab_size: if given, every token id must be less than this.

    Returns:
        A datum with N - 1 positions. Its loss inputs are those of `tinkerloop.datum_checks.LOSS_INPUTS[loss_fn]` and
        `weights`; `sequence_ratio_mask`, the mask of gspo, is 1 at the sampled tokens.

    Raises:
        ZeroWeightError: no token was sampled.
        DatumError: the input breaks another rule. The message gives the field, the expected and the given value.

    Example:
        datum = policy_datum([*prompt, *reply], [False] * len(prompt) + [True] * len(reply), reply_logprobs, 0.5)
    """
    if loss_fn not in POLICY_LOSSES:
        raise DatumError("not a policy loss", field="loss_fn", expected=" | ".join(POLICY_LOSSES), given=loss_fn)
    if not weight > 0:
        raise DatumError("must be greater than 0", field="weight", expected="> 0", given=weight)
    mask = _mask(tokens, sampled)
    datum = make_datum(tokens, np.where(mask, weight, 0), vocab_size=vocab_size)
    count, shifted = int(mask.sum()), mask[1:]

    def at_sampled(field: str, values: ArrayLike) -> tinker.TensorData:
        spread = np.zeros(len(shifted), np.float32)  # (N - 1,)
        spread[shifted] = _one_per_token(field, values, count)
        return tinker.TensorData.from_numpy(spread)

    if isinstance(advantages, Real):
        advantages = np.full(count, advantages)
    inputs = dict(datum.loss_fn_inputs)
    inputs["logprobs"] = at_sampled("logprobs", logprobs)
    if not np.all(np.asarray(logprobs, np.float64) <= _LARGEST_LOGPROB):
        raise DatumError(
            "log-probabilities are at most 0, up to rounding; these may be probabilities, or negated",
            field="logprobs",
            expected="<= 0",
            given=float(np.max(np.asarray(logprobs, np.float64))),
        )
    inputs["advantages"] = at_sampled("advantages", advantages)
    if loss_fn == "gspo":
        inputs["sequence_ratio_mask"] = tinker.TensorData.from_numpy(shifted.astype(np.float32))
    datum = replace(datum, loss_fn_inputs=inputs)
    check_datum(datum, loss_fn=loss_fn, vocab_size=vocab_size)
    return datum


def policy_datums(
    trajectory: Trajectory,
    advantages: ArrayLike | float,
    *,
    loss_fn: str = "importance_sampling",
    weight: float = 1.0,
) -> list[tinker.Datum]:
    """Build the policy datums of one trajectory: one for each segment that has sampled tokens.

    Args:
        trajectory: the trajectory.
        advantages: one number; or one for each turn; or one for each sampled token of all segments, in order.
        loss_fn: the policy loss that the datums are for.
        weight: the weight of each sampled token.

    Raises:
        DatumError: the advantages are neither of these, or a segment breaks a rule of `policy_datum`.
        NotImplementedError: `loss_fn` is stable_reinforce, which needs the ids of the sampled sequences. A trajectory
            does not have them.
    """
    if loss_fn == "stable_reinforce":
        raise NotImplementedError(
            "datums for loss_fn='stable_reinforce' cannot be built from a trajectory, which does not have the ids of "
            "the sampled sequences: use policy_datum, and add the ids with tinker.Datum.with_provenance"
        )
    values, datums, start = per_token(trajectory, advantages), [], 0
    for segment in trajectory.segments:
        stop = start + len(segment.logprobs)
        if segment.sampled:
            datums.append(
                policy_datum(
                    model_input(list(segment.tokens), segment.images),
                    segment.turn_index >= 0,
                    segment.logprobs,
                    values[start:stop],
                    loss_fn=loss_fn,
                    weight=weight,
                )
            )
        start = stop
    return datums


def group_datums(
    group: Group,
    advantages: Sequence[ArrayLike | float],
    *,
    loss_fn: str = "importance_sampling",
    weighting: Weighting = "token",
) -> list[tinker.Datum]:
    """Build the policy datums of all trajectories of a group, in order.

    Args:
        group: the group.
        advantages: the advantages of each trajectory, as for `policy_datums`.
        loss_fn: the policy loss that the datums are for.
        weighting: what the weights of the datums sum to, and so what counts equally when the loop normalises a step
            with `normalize="token"`. "token": each sampled token has weight 1. "sequence": the weights of each
            trajectory sum to 1. "group": the weights of the group sum to 1.

    Raises:
        DatumError: there is not one entry of `advantages` for each trajectory, `weighting` is unknown, or the
            trajectories break a rule of `policy_datums`.
    """
    if weighting not in WEIGHTING:
        raise DatumError("unknown unit", field="weighting", expected=" | ".join(WEIGHTING), given=weighting)
    if len(advantages) != len(group.trajectories):
        raise DatumError(
            "must have one entry per trajectory",
            field="advantages",
            expected=len(group.trajectories),
            given=len(advantages),
        )
    of_group = sum(trajectory.sampled_tokens for trajectory in group.trajectories)
    datums: list[tinker.Datum] = []
    for trajectory, advantage in zip(group.trajectories, advantages, strict=True):
        tokens = {"token": 1, "sequence": trajectory.sampled_tokens, "group": of_group}[weighting]
        datums += policy_datums(trajectory, advantage, loss_fn=loss_fn, weight=1 / max(tokens, 1))
    return datums


def _mask(tokens: Any, sampled: ArrayLike) -> NDArray[np.bool_]:
    """Return `sampled` as an array, after checking that there is one boolean per token and that the first is false."""
    if isinstance(tokens, tinker.ModelInput):
        check_chunks(tokens.chunks)
        length = tokens.length
    else:
        length = len(tokens)
    mask = np.asarray(sampled)
    if mask.dtype != np.bool_ or mask.shape != (length,):
        raise DatumError(
            "must have one boolean per token",
            field="sampled",
            expected=f"({length},) bool",
            given=f"{mask.shape} {mask.dtype}",
        )
    if mask[:1].any():
        raise DatumError(
            "the first token cannot be sampled, because no token precedes it", field="sampled", index=0, expected=False
        )
    return mask


def _one_per_token(field: str, values: ArrayLike, count: int) -> NDArray[np.float32]:
    array = real_array(field, values)
    if array.shape != (count,):
        raise DatumError("must have one value per sampled token", field=field, expected=(count,), given=array.shape)
    return array

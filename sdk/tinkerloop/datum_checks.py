"""The loss inputs of each loss, and the check of datums that were built elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from tinkerloop._lazy import tinker
from tinkerloop.datum_values import check_finite, check_ids, read_chunks, read_tensor, real_array
from tinkerloop.errors import DatumError, ZeroWeightError

_POLICY_INPUTS = ("target_tokens", "logprobs", "advantages")
LOSS_INPUTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "cross_entropy": ("target_tokens", "weights"),
        "importance_sampling": _POLICY_INPUTS,
        "ppo": _POLICY_INPUTS,
        "cispo": _POLICY_INPUTS,
        "dro": _POLICY_INPUTS,
        "gspo": (*_POLICY_INPUTS, "sequence_ratio_mask"),
        "stable_reinforce": _POLICY_INPUTS,
    }
)
"""Mapping from the name of a built-in loss to the names of its loss inputs. The service accepts exactly these inputs.

`stable_reinforce`, a loss of the hosted service, also needs the provenance of each datum (`Datum.with_provenance`).
"""
POLICY_LOSSES = tuple(name for name in LOSS_INPUTS if "advantages" in LOSS_INPUTS[name])
"""The built-in losses with advantages. Until the loop queues a step, their datums may also have `weights`."""


def check_datum(
    datum: tinker.Datum,
    *,
    loss_fn: str = "cross_entropy",
    vocab_size: int | None = None,
    allow_zero_weight: bool = False,
) -> None:
    """Raise unless `datum` can be trained on with `loss_fn`.

    A valid datum has exactly the loss inputs of `LOSS_INPUTS[loss_fn]`, each as long as the model input. Token ids are
    in range, numbers are finite, weights at image positions are 0, and at least one weight is not zero. For a policy
    loss, it may also have `weights`, as described at `fold_weights`. With `loss_fn="custom"`, only `target_tokens` of
    the loss inputs is required and checked.

    Raises:
        ZeroWeightError: all `weights` are zero and `allow_zero_weight` is false.
        DatumError: the datum breaks another rule. The message gives the field, the index, the expected and the given
            value.
    """
    if not isinstance(datum, tinker.Datum):
        raise DatumError("not a datum", expected="a tinker.Datum", given=type(datum).__name__)
    _, tokens, is_text = read_chunks(datum.model_input)
    if loss_fn in POLICY_LOSSES and "advantages" in datum.loss_fn_inputs:
        datum = fold_weights(datum)
    check_positions(datum, tokens, is_text, loss_fn, vocab_size, allow_zero_weight)


def check_positions(
    datum: tinker.Datum,
    tokens: NDArray[np.int64],
    is_text: NDArray[np.bool_] | None,
    loss_fn: str,
    vocab_size: int | None,
    allow_zero_weight: bool,
) -> None:
    """Like `check_datum`, for a datum whose model input has already been read into arrays.

    Args:
        tokens: (N,) token ids of the model input; at image positions any valid id.
        is_text: (N,) True at text positions, False at image positions; None if all positions are text.
    """
    length = len(tokens)
    if length < 1:
        raise DatumError("the model input is empty", field="model_input", expected=">= 1 token", given=0)
    check_ids("model_input", tokens, vocab_size)

    inputs = datum.loss_fn_inputs
    if loss_fn != "custom":
        if not isinstance(loss_fn, str) or loss_fn not in LOSS_INPUTS:
            raise DatumError(
                "unknown loss function", field="loss_fn", expected=" | ".join([*LOSS_INPUTS, "custom"]), given=loss_fn
            )
        if set(inputs) != set(LOSS_INPUTS[loss_fn]):
            policy = loss_fn == "cross_entropy" and "advantages" in inputs
            raise DatumError(
                f"wrong loss inputs for {loss_fn}"
                + '; datums of rollouts need their own loss: pass loss_fn="importance_sampling" (the loss_fn of the '
                "rollouts)" * policy,
                field="loss_fn_inputs",
                expected=sorted(LOSS_INPUTS[loss_fn]),
                given=sorted(inputs),
            )
    elif "target_tokens" not in inputs:
        raise DatumError("a custom loss needs target_tokens", field="loss_fn_inputs", given=sorted(inputs))

    target = read_tensor("target_tokens", inputs["target_tokens"])
    if target.dtype != np.int64:
        raise DatumError("token ids have the wrong dtype", field="target_tokens", expected="int64", given=target.dtype)
    if target.ndim not in (1, 2) or len(target) != length or target.size == 0:
        unshifted = target.ndim in (1, 2) and len(target) == length - 1
        raise DatumError(
            "must have one target (or K targets) per input position"
            + ("; the input is one token longer: beside .target_tokens of an example, use its .input" * unshifted),
            field="target_tokens",
            expected=f"({length},) or ({length}, K)",
            given=target.shape,
        )
    check_ids("target_tokens", target, vocab_size)
    if loss_fn == "custom":
        return
    if target.ndim == 2 and loss_fn != "cross_entropy":
        raise DatumError(
            f"must be 1-D for {loss_fn}; only cross_entropy allows several targets per position",
            field="target_tokens",
            given=target.shape,
        )
    for name in LOSS_INPUTS[loss_fn][1:]:
        values = read_tensor(name, inputs[name])
        if values.dtype != np.float32:
            raise DatumError("must be float32", field=name, expected="float32", given=values.dtype)
        if values.shape != target.shape:
            unshifted = name == "weights" and values.shape == (length + 1,)
            raise DatumError(
                "must have the shape of target_tokens"
                + ("; beside .target_tokens of an example, use its .target_weights, which are shifted too" * unshifted),
                field=name,
                expected=target.shape,
                given=values.shape,
            )
        check_finite(name, values)
    if loss_fn == "cross_entropy":
        weight = inputs["weights"].to_numpy()
        if not allow_zero_weight and not np.any(weight):
            raise ZeroWeightError("all weights are zero, so nothing would be learned", field="weights")
        predicts_image = [] if is_text is None else np.flatnonzero(~is_text[1:])
        if len(predicts_image) and np.any(weight[predicts_image]):
            index = next(int(i) for i in predicts_image if np.any(weight[i]))
            raise DatumError(
                "an image position cannot be a training target; set its weight to 0",
                field="weights",
                index=index,
                expected=0,
                given=weight[index],
            )


def scale_weights(datum: tinker.Datum, factor: float) -> tinker.Datum:
    """Return a copy of a datum with every weight multiplied by `factor`."""
    weights = read_tensor("weights", datum.loss_fn_inputs["weights"])
    scaled = np.multiply(weights, factor, dtype=np.float64).astype(np.float32)
    inputs = {**datum.loss_fn_inputs, "weights": tinker.TensorData.from_numpy(scaled)}
    return replace(datum, loss_fn_inputs=inputs)


def fold_weights(datum: tinker.Datum) -> tinker.Datum:
    """Return a copy of a policy datum whose weights are multiplied into its advantages, and are then left out.

    Policy losses have no weights on the service. The weights of a policy datum are greater than 0 exactly where the
    target was sampled, so that the loop can normalise over these positions. A datum without weights is returned as it
    is.

    Raises:
        DatumError: the advantages are missing, or do not have the shape of the weights; or a weight is negative or not
            finite.
    """
    inputs = dict(datum.loss_fn_inputs)
    if "weights" not in inputs:
        return datum
    weights = real_array("weights", read_tensor("weights", inputs.pop("weights")))
    if "advantages" not in inputs:
        raise DatumError("a policy datum needs advantages", field="loss_fn_inputs", given=sorted(datum.loss_fn_inputs))
    advantages = real_array("advantages", read_tensor("advantages", inputs["advantages"]))
    if advantages.shape != weights.shape:
        raise DatumError(
            "must have the shape of weights", field="advantages", expected=weights.shape, given=advantages.shape
        )
    if (weights < 0).any():
        index = int(np.argwhere(weights < 0)[0][0])
        raise DatumError(
            "a weight of a policy datum must not be negative, because a policy loss is not linear in the advantage; "
            "change the sign of the advantage",
            field="weights",
            index=index,
            expected=">= 0",
            given=weights[index],
        )
    inputs["advantages"] = tinker.TensorData.from_numpy(advantages * weights)
    return replace(datum, loss_fn_inputs=inputs)

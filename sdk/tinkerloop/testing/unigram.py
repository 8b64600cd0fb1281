"""The unigram model of `OrderedService` in numpy: one logit for each of V tokens, the same at every position."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinkerloop._lazy import tinker
from tinkerloop.datum_checks import LOSS_INPUTS, check_datum
from tinkerloop.errors import DatumError
from tinkerloop.testing._policy_losses import DEFAULTS, complete_config, policy_loss


@dataclass(frozen=True)
class UnigramState:
    """The training state of the unigram model, for V tokens.

    Attributes:
        logits: the weights of the model, shape (V,).
        first: the first moments of Adam, shape (V,).
        second: the second moments of Adam, shape (V,).
        updates: the number of optimizer steps so far.
        gradient: the accumulated gradient, shape (V,); None if there is none.
    """

    logits: NDArray[np.float64]
    first: NDArray[np.float64]
    second: NDArray[np.float64]
    updates: int = 0
    gradient: NDArray[np.float64] | None = None


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the log-probabilities of all tokens."""
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def loss_and_gradient(
    logits: NDArray[np.float64], data: Sequence[tinker.Datum], loss_fn: str, config: Mapping[str, float | str] | None
) -> tuple[tinker.ForwardBackwardOutput, NDArray[np.float64]]:
    """Return a built-in loss of the datums and its gradient with respect to the logits, shape (V,).

    With the loss "custom", only the log-probabilities are computed, and the gradient is 0.

    Raises:
        DatumError: a datum is not valid, or has inputs of another loss.
        NotImplementedError: the loss is not supported.
        ValueError: there are no datums, an option of the loss is not valid, or the loss or its gradient is not finite.
    """
    if not data:
        raise ValueError("No data provided: pass at least one datum")
    if loss_fn not in (*DEFAULTS, "custom"):
        raise NotImplementedError(f"OrderedService supports {', '.join(DEFAULTS)} and custom losses, got {loss_fn!r}")
    options = {} if loss_fn == "custom" else complete_config(loss_fn, config)
    total, gradient, outputs = [], np.zeros(len(logits)), []
    logprobs = log_softmax(logits)
    for datum in data:
        check_datum(datum, loss_fn=loss_fn, vocab_size=len(logits), allow_zero_weight=True)
        targets, one = targets_of(datum), {"logprobs": logprobs[targets_of(datum)]}
        if loss_fn != "custom":
            inputs = _exact_inputs(datum, loss_fn)
            if loss_fn == "cross_entropy":
                loss, weights = -one["logprobs"] * inputs["weights"], inputs["weights"]
                one["elementwise_loss"] = loss
            else:
                loss, weights = policy_loss(loss_fn, one["logprobs"], inputs, options)
            total.append(float(loss.sum()))
            refuse_non_finite(f"the {loss_fn} loss of datum {len(outputs)}", loss)
            gradient += gradient_of(logits, targets, weights)
        outputs.append({name: tinker.TensorData.from_numpy(v.astype(np.float32)) for name, v in one.items()})
    refuse_non_finite(f"the gradient of the {loss_fn} loss", gradient)
    output = tinker.ForwardBackwardOutput(
        loss_fn_output_type="ArrayRecord", loss_fn_outputs=outputs, metrics={"loss:sum": math.fsum(total)}
    )
    return output, gradient


def refuse_non_finite(name: str, values: NDArray[np.float64]) -> None:
    """Raise ValueError if a value is NaN or infinite."""
    if not np.isfinite(values).all():
        raise ValueError(f"NonFiniteInTensor: {name} is NaN or infinite; check its loss inputs")


def gradient_of(logits: NDArray[np.float64], targets: NDArray[np.int64], weights: NDArray[Any]) -> NDArray[np.float64]:
    """Return the gradient of sum(-w * logp[target]) with respect to the logits.

    It is sum(w) * softmax(logits), minus at each token the sum of w over the positions with this target.
    """
    at_targets = np.bincount(targets.ravel(), weights.ravel(), minlength=len(logits))
    return weights.sum(dtype=np.float64) * np.exp(log_softmax(logits)) - at_targets


def adam_update(state: UnigramState, p: tinker.AdamParams) -> tuple[UnigramState, float]:
    """Return the state after one step of Adam with decoupled weight decay, and the norm of the gradient.

    If `grad_clip_norm` is positive, the gradient is first clipped to this L2 norm.

    Raises:
        ValueError: a parameter is out of range.
    """
    _check_adam(p)
    gradient = np.zeros(len(state.logits)) if state.gradient is None else state.gradient
    norm = float(np.linalg.norm(gradient))
    if p.grad_clip_norm > 0:
        gradient = gradient * min(1.0, p.grad_clip_norm / max(norm, 1e-300))
    updates = state.updates + 1
    first = p.beta1 * state.first + (1 - p.beta1) * gradient
    second = p.beta2 * state.second + (1 - p.beta2) * gradient**2
    update = (first / (1 - p.beta1**updates)) / (np.sqrt(second / (1 - p.beta2**updates)) + p.eps)
    logits = state.logits * (1 - p.learning_rate * p.weight_decay) - p.learning_rate * update
    return UnigramState(logits, first, second, updates), norm


def _check_adam(p: tinker.AdamParams) -> None:
    """Raise ValueError if a parameter of Adam is out of range. `tinker.AdamParams` itself accepts any number."""
    in_range = {
        "learning_rate": p.learning_rate >= 0,
        "beta1": 0 <= p.beta1 < 1,
        "beta2": 0 <= p.beta2 < 1,
        "eps": p.eps > 0,
        "weight_decay": p.weight_decay >= 0,
        "grad_clip_norm": p.grad_clip_norm >= 0,
    }
    for name, is_in_range in in_range.items():
        value = getattr(p, name)
        if not (is_in_range and value <= np.finfo(np.float32).max):
            raise ValueError(
                f"AdamParams.{name}={value} is out of range: beta1 and beta2 must be at least 0 and below 1, eps must "
                "be above 0, and all other values at least 0 and finite in float32"
            )


def targets_of(datum: tinker.Datum) -> NDArray[np.int64]:
    """Return the target tokens of a datum."""
    return datum.loss_fn_inputs["target_tokens"].to_numpy()


def _exact_inputs(datum: tinker.Datum, loss_fn: str) -> dict[str, NDArray[np.float64]]:
    """Return the loss inputs as arrays, after checking that there are only those of the loss."""
    if other := sorted(datum.loss_fn_inputs.keys() - set(LOSS_INPUTS[loss_fn])):
        raise DatumError(f"wrong loss inputs for {loss_fn}", field="loss_fn_inputs", given=other)
    return {name: tensor.to_numpy().astype(np.float64) for name, tensor in datum.loss_fn_inputs.items()}

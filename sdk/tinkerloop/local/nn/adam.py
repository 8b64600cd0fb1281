"""The optimizer step: clip the gradient by its global norm, then apply AdamW.

AdamW is described by Loshchilov & Hutter 2019 (arXiv:1711.05101).
"""

from __future__ import annotations

import math

import tinker
import torch
from torch.optim.adamw import adamw

from tinkerloop.local.nn.parameters import TrainState, norm_of
from tinkerloop.local.request_errors import user_error

BLOCK = 2**20
"""The number of weights that one call updates. It limits the size of the temporary float32 copy of the gradient."""
LARGEST_GRADIENT = 1.8e19
"""The largest element of a gradient whose square, the second moment, is finite in float32 (the root of 3.4e38)."""
SMALLEST_EPS = 2.0**-150
"""The largest number that is 0 in float32. The step of a weight without a gradient would be 0 / 0."""


def check_adam(params: tinker.AdamParams) -> None:
    """Check that Adam's hyper-parameters are in range. `tinker.AdamParams` itself accepts any number.

    Raises:
        tinker.RequestFailedError: a value is out of range (category user).
    """
    in_range = {
        "learning_rate": params.learning_rate >= 0,
        "beta1": 0 <= params.beta1 < 1,
        "beta2": 0 <= params.beta2 < 1,
        "eps": not params.eps <= SMALLEST_EPS,
        "weight_decay": params.weight_decay >= 0,
        "grad_clip_norm": params.grad_clip_norm >= 0,
    }
    for name, ok in in_range.items():
        value = getattr(params, name)
        if not (ok and abs(value) <= torch.finfo(torch.float32).max):
            raise user_error(
                f"AdamParams.{name}={value} is out of range: beta1 and beta2 must be at least 0 and below 1, eps must "
                "be above 0 in float32 (at least 1.4e-45), and all other values at least 0 and finite in float32"
            )


@torch.no_grad()
def adam_step(state: TrainState, params: tinker.AdamParams) -> dict[str, float]:
    """Apply one AdamW step with the accumulated gradient, then set the gradient to zero.

    The gradient is a plain sum over datums. If `grad_clip_norm` is c > 0, the gradient is first scaled by
    min(1, c / norm), where norm is its L2 norm over all trained tensors. If no gradient was accumulated, the step uses
    zeros: the moments decay, and weight decay is applied.

    Returns: a dict with one metric, "unclipped_grad_l2:mean": the norm before clipping.

    Raises:
        tinker.RequestFailedError: a hyper-parameter is out of range; the gradient is NaN, infinite, or so large that
            Adam's moments would overflow; or weights would not be finite (category user). Nothing has changed then.
    """
    check_adam(params)
    norm = norm_of(state.gradient) if state.norm is None else state.norm
    scale = params.grad_clip_norm / norm if 0 < params.grad_clip_norm < norm else 1.0
    _check_gradient(state.gradient, norm, scale)
    changing = (state.weights.flat, state.exp_avg, state.exp_avg_sq)
    kept = None if _is_ordinary(params, state.step + 1) else [vector.clone() for vector in changing]
    flat = (state.weights.flat, state.gradient, state.exp_avg, state.exp_avg_sq)
    for weights, gradient, exp_avg, exp_avg_sq in zip(*(vector.split(BLOCK) for vector in flat), strict=True):
        adamw(
            [weights],
            [(gradient * scale if scale < 1 else gradient).float()],
            [exp_avg],
            [exp_avg_sq],
            [],
            [torch.tensor(float(state.step), device=state.gradient.device)],
            fused=True,
            amsgrad=False,
            beta1=params.beta1,
            beta2=params.beta2,
            lr=params.learning_rate,
            weight_decay=params.weight_decay,
            eps=params.eps,
            maximize=False,
        )
    if kept is not None and not state.weights.flat.isfinite().all():
        for vector, old in zip(changing, kept, strict=True):
            vector.copy_(old)
        raise user_error(
            f"NonFiniteInTensor: a step with {params} would make weights NaN or infinite in float32. optim_step "
            "changed nothing, and the gradient is still there: pass a smaller learning_rate or weight_decay, or a "
            "larger eps"
        )
    state.step += 1
    state.step_tokens = state.pending_tokens
    state.weights.touch()
    state.clear_gradient()
    return {"unclipped_grad_l2:mean": norm}


def _check_gradient(gradient: torch.Tensor, norm: float, scale: float) -> None:
    """Raise if the gradient, multiplied by `scale`, has an element that Adam's moments cannot hold in float32.

    A weight whose second moment is infinite would never move again. `norm` is the norm of the gradient.
    """
    if norm * scale <= LARGEST_GRADIENT:  # no element is larger than the norm
        return
    largest = float(torch.linalg.vector_norm(gradient, math.inf))
    if not math.isfinite(norm) or not largest * scale <= LARGEST_GRADIENT:
        raise user_error(
            f"NonFiniteInTensor: the gradient has an element of {largest:.3g} and the norm {norm:.3g}; above "
            f"{LARGEST_GRADIENT:.3g}, Adam's moments overflow in float32. optim_step changed nothing, and the gradient "
            "is still there: check the loss inputs of its datums (weights, advantages, logprobs), or pass a "
            "grad_clip_norm to scale it down"
        )


def _is_ordinary(params: tinker.AdamParams, step: int) -> bool:
    """Return True if step number `step` cannot make a weight infinite. Else the caller checks, and needs copies.

    The first moment is then at most a small multiple of the root of the second, or is divided by an `eps` that is far
    above the smallest number, and weight decay shrinks the weights.
    """
    rate = params.learning_rate / (1 - params.beta1**step)
    shrinks = params.learning_rate * params.weight_decay <= 1
    return rate <= 1e6 and shrinks and params.eps >= 1e-30 and params.beta1**2 <= params.beta2

"""Custom losses: the caller writes a loss computed from logprobs, and cross_entropy trains with its gradient.

L(lp)  ->  weights w = -dL/dlp    With these weights cross_entropy, sum(-w lp), has the gradient of L.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tinker
import torch
from numpy.typing import NDArray

from tinkerloop.clients import CustomLoss
from tinkerloop.local.unsupported import unsupported_error


def custom_weights(
    function: CustomLoss, data: Sequence[tinker.Datum], logprobs: Sequence[tinker.TensorData]
) -> tuple[float, dict[str, float], list[NDArray[np.float32]]]:
    """Call the caller's loss function. Return the loss, its metrics, and the cross_entropy weights of each datum.

    The weights are minus the gradient of the loss with respect to the log-probabilities.

    Raises:
        ValueError: the loss does not depend on the log-probabilities of some datum.
    """
    leaves = [values.to_torch().clone().requires_grad_() for values in logprobs]
    with torch.enable_grad():
        loss, metrics = function(list(data), leaves)
        loss.backward()
    weights = []
    for leaf in leaves:
        if leaf.grad is None:
            raise ValueError(
                "No gradient computed for logprob tensor: the loss must depend on the log-probabilities of every datum"
            )
        weights.append((-leaf.grad).numpy())
    return float(loss.detach().sum()), dict(metrics), weights


def loss_handles() -> Any:
    """Return the module of tinker that traces custom losses.

    Raises:
        NotImplementedError: the installed tinker is older than 0.36 and has no such module.
    """
    try:
        from tinker.lib.public_interfaces import custom_loss
    except ImportError:
        raise unsupported_error("create_custom_loss with tinker < 0.36") from None
    return custom_loss


def as_function(loss_fn: Any, data: Sequence[tinker.Datum], session: str) -> CustomLoss:
    """Return `loss_fn` as a function of (data, logprobs). A function is returned unchanged.

    A LossHandle is first checked: `data` must contain its inputs, and the ServiceClient with id `session` must have
    created it.

    Raises:
        ValueError: another ServiceClient has created the LossHandle.
    """
    if not hasattr(loss_fn, "graph"):
        return loss_fn
    handles = loss_handles()
    if loss_fn.session_id != session:
        raise ValueError(
            f"LossHandle {loss_fn.name!r} was created by another ServiceClient; "
            "create it with the ServiceClient that created this TrainingClient"
        )
    handles.check_loss_inputs(loss_fn, list(data))
    return lambda data, logprobs: handles.run_loss_handle(loss_fn, data, logprobs)

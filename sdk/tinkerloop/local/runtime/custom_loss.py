"""Custom losses: a function of log-probabilities, written by the caller, is differentiated and applied as weights.

L(lp)  ->  weights w = -dL/dlp    because then cross_entropy, sum(-w lp), has the gradient of L
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
    """Return the loss, its metrics and each datum's weights.

    Raises:
        ValueError: the loss does not depend on a datum.
    """
    leaves = [values.to_torch().clone().requires_grad_() for values in logprobs]
    with torch.enable_grad():
        loss, metrics = function(list(data), leaves)
        loss.backward()
    weights = []
    for leaf in leaves:
        if leaf.grad is None:
            raise ValueError("No gradient computed for logprob tensor: the loss must depend on every datum")
        weights.append((-leaf.grad).numpy())
    return float(loss.detach().sum()), dict(metrics), weights


def loss_handles() -> Any:
    """Return tinker's module of traced losses.

    Raises:
        NotImplementedError: a tinker older than 0.36 does not have it.
    """
    try:
        from tinker.lib.public_interfaces import custom_loss
    except ImportError:
        raise unsupported_error("create_custom_loss with tinker < 0.36") from None
    return custom_loss


def as_function(loss_fn: Any, data: Sequence[tinker.Datum], session: str) -> CustomLoss:
    """Return a traced LossHandle as a plain function, after checking its inputs in `data`; return a function as is."""
    if not hasattr(loss_fn, "graph"):
        return loss_fn
    handles = loss_handles()
    if loss_fn.session_id != session:
        raise ValueError(f"loss {loss_fn.name!r} was created by another ServiceClient")
    handles.check_loss_inputs(loss_fn, list(data))
    return lambda data, logprobs: handles.run_loss_handle(loss_fn, data, logprobs)

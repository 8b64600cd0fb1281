"""The weights, gradient and Adam moments of one client. Each is one flat vector with a view per named tensor.

Weights and moments are float32; gradients are float64, or float32 in full-parameter training. Because each is one
vector, an optimizer step takes few operations for any number of tensors, and a snapshot is one copy.

A failed forward_backward does not change the gradient. It writes only to scratch vectors, which are added to the
gradient after all work has succeeded. A gradient that is zero is used as a scratch vector itself, and is set to zero
again after a failure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

ALIGNMENT = 16  # in elements: every view starts at a cache line; the gaps between views stay zero


def norm_of(flat: torch.Tensor) -> float:
    """Return the L2 norm of a vector. It is finite if the elements are, although their squares may overflow float32."""
    norm = float(torch.linalg.vector_norm(flat))
    return float(torch.linalg.vector_norm(flat, dtype=torch.float64)) if math.isinf(norm) else norm


class ParameterLayout:
    """The shape of each named tensor, and its offset in a flat vector."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]):
        self.shapes = dict(shapes)
        self._starts: dict[str, int] = {}
        end = 0
        for name, shape in self.shapes.items():
            self._starts[name] = end
            size = 1
            for dimension in shape:
                size *= dimension
            end += -(-size // ALIGNMENT) * ALIGNMENT
        self.size = end

    def zeros(self, device: torch.device, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Return a new flat vector of zeros."""
        return torch.zeros(self.size, device=device, dtype=dtype)

    def views(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the named tensors as views of the vector `flat`."""
        return {
            name: flat[start : start + torch.Size(shape).numel()].view(shape)
            for (name, start), shape in zip(self._starts.items(), self.shapes.values(), strict=True)
        }


class Weights:
    """Named weights in one flat vector.

    A new `version` object is set whenever the values change, so results computed from them can be cached by version.
    """

    def __init__(self, layout: ParameterLayout, flat: torch.Tensor):
        self.layout, self.flat = layout, flat
        self.named = layout.views(flat)
        self.version = object()

    def snapshot(self) -> Weights:
        """Return a copy that later training does not change."""
        copy = Weights(self.layout, self.flat.clone())
        copy.version = self.version
        return copy

    def touch(self) -> None:
        """Mark the values as changed by setting a new `version`."""
        self.version = object()


class TrainState:
    """Weights, their accumulated gradient (a plain sum over datums) and Adam's moments."""

    def __init__(self, weights: Weights, gradient_dtype: torch.dtype = torch.float64):
        layout, device = weights.layout, weights.flat.device
        self.weights = weights
        # In full-parameter training (rank 0), torch requires that a gradient has the dtype of its parameter. An
        # adapter's gradient is summed in float64 (see lora.py).
        self.gradient = layout.zeros(device, gradient_dtype)
        self.exp_avg = layout.zeros(device)
        self.exp_avg_sq = layout.zeros(device)
        self.step = 0
        self.pending = 0
        """The number of forward_backward calls whose gradients have been added since the gradient was last cleared."""
        self.pending_tokens = 0
        """The number of tokens of these calls."""
        self.step_tokens: int | None = None
        """The number of tokens of the last optimizer step. None: not known."""
        self.norm: float | None = 0.0
        """The L2 norm of the gradient. None: not known, because several buffers were added or the user changed it."""
        self._buffers = [self.gradient]  # the gradient, and the scratch buffers created so far
        self._views = [self.gradients]
        self._used: list[torch.Tensor] = []

    @property
    def gradients(self) -> dict[str, torch.Tensor]:
        """The accumulated gradient of each named tensor, as views. An optimizer step sets it to zero."""
        return self.weights.layout.views(self.gradient)

    @property
    def moments(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Adam's first and second moment of each named tensor, as views."""
        first, second = (self.weights.layout.views(flat) for flat in (self.exp_avg, self.exp_avg_sq))
        return {name: (first[name], second[name]) for name in first}

    @property
    def gradient_is_zero(self) -> bool:
        """True if every element of the gradient is 0."""
        return not self.gradient.any() if self.norm is None else self.norm == 0

    def touch(self) -> None:
        """Mark weights, gradient and moments as changed by code outside this class."""
        self.weights.touch()
        self.norm = None

    def scratch(self, count: int) -> list[dict[str, torch.Tensor]]:
        """Return `count` sets of gradient buffers by tensor name, all zero, for one forward_backward.

        The caller must then call `commit_scratch` or `discard_scratch`. While the gradient is zero, it serves as one
        of the buffers, because a failure could not destroy anything in it.
        """
        first = int(not self.gradient_is_zero)
        while len(self._buffers) < first + count:
            self._buffers.append(torch.zeros_like(self.gradient))
            self._views.append(self.weights.layout.views(self._buffers[-1]))
        self._used = self._buffers[first : first + count]
        for flat in self._used:
            if flat is not self.gradient:
                flat.zero_()
        return self._views[first : first + count]

    def commit_scratch(self, tokens: int) -> bool:
        """Add the scratch buffers, with the gradient of this number of tokens, to the gradient, and return True.

        If they hold a value that is not finite, discard them and return False.
        """
        norms = [norm_of(flat) for flat in self._used]
        if not all(map(math.isfinite, norms)):
            self.discard_scratch()
            return False
        for flat in self._used:
            if flat is not self.gradient:
                self.gradient += flat
        alone = len(self._used) == 1 and self._used[0] is self.gradient
        self.norm = norms[0] if alone and norms[0] > 0 else None  # 0 may be an underflow
        self._used = []
        self.pending += 1
        self.pending_tokens += tokens
        return True

    def discard_scratch(self) -> None:
        """Set the scratch buffers to zero after a forward_backward that failed."""
        for flat in self._used:
            flat.zero_()
        self._used = []

    def clear_gradient(self) -> None:
        """Set the gradient, and the number of pending forward_backward calls and of their tokens, to zero."""
        self.gradient.zero_()
        self.norm, self.pending, self.pending_tokens = 0.0, 0, 0

"""The numbers one client trains, each kind in one flat vector.

Weights and moments are float32 vectors, gradients float64 ones, with a view per named tensor. One vector makes the
optimizer a handful of operations whatever the number of tensors, a snapshot one copy, and a failed request harmless:
it only ever wrote to scratch vectors, which are added to the gradient when everything has succeeded (or to a gradient
that was zero and becomes so again).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

ALIGNMENT = 16  # floats: every view starts on a cache line; the gaps hold zeros for ever


class ParameterLayout:
    """Where each named tensor lies in a flat vector."""

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
        return torch.zeros(self.size, device=device, dtype=dtype)

    def views(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """Named views of `flat`, which they share memory with."""
        return {
            name: flat[start : start + torch.Size(shape).numel()].view(shape)
            for (name, start), shape in zip(self._starts.items(), self.shapes.values(), strict=True)
        }


class Weights:
    """A set of named weights. Equal `version` objects mean equal numbers, so that derived values can be kept."""

    def __init__(self, layout: ParameterLayout, flat: torch.Tensor):
        self.layout, self.flat = layout, flat
        self.named = layout.views(flat)
        self.version = object()

    def snapshot(self) -> Weights:
        """A copy that later training does not change."""
        copy = Weights(self.layout, self.flat.clone())
        copy.version = self.version
        return copy

    def touch(self) -> None:
        """The numbers have changed."""
        self.version = object()


class TrainState:
    """Weights with their accumulated gradient (a plain sum) and Adam's moments."""

    def __init__(self, weights: Weights, gradient_dtype: torch.dtype = torch.float64):
        layout, device = weights.layout, weights.flat.device
        self.weights = weights
        # A parameter's own gradient (rank 0) must have its dtype; an adapter's is summed in float64 (see lora.py).
        self.gradient = layout.zeros(device, gradient_dtype)
        self.exp_avg = layout.zeros(device)
        self.exp_avg_sq = layout.zeros(device)
        self.step = 0
        self.pending = 0
        """How many forward_backward calls the gradient holds."""
        self._buffers = [self.gradient]  # and such as were needed beside it
        self._views = [self.gradients]
        self._used: list[torch.Tensor] = []

    @property
    def gradients(self) -> dict[str, torch.Tensor]:
        """The accumulated gradient of each named tensor: live views, zero after an optimizer step."""
        return self.weights.layout.views(self.gradient)

    @property
    def moments(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Adam's first and second moment of each named tensor, live views."""
        first, second = (self.weights.layout.views(flat) for flat in (self.exp_avg, self.exp_avg_sq))
        return {name: (first[name], second[name]) for name in first}

    def scratch(self, count: int) -> list[dict[str, torch.Tensor]]:
        """`count` sets of zeros, by name, for one forward_backward to add gradients to; then commit or discard them.

        The gradient is one of them while it is zero: there is nothing in it to lose.
        """
        first = int(self.gradient.any())
        while len(self._buffers) < first + count:
            self._buffers.append(torch.zeros_like(self.gradient))
            self._views.append(self.weights.layout.views(self._buffers[-1]))
        self._used = self._buffers[first : first + count]
        for flat in self._used:
            flat.zero_()
        return self._views[first : first + count]

    def commit_scratch(self) -> bool:
        """Add what one forward_backward computed to the gradient; False, and nothing added, if it is not finite."""
        if not all(torch.isfinite(torch.linalg.vector_norm(flat)) for flat in self._used):
            self.discard_scratch()
            return False
        for flat in self._used:
            if flat is not self.gradient:
                self.gradient += flat
        self._used = []
        self.pending += 1
        return True

    def discard_scratch(self) -> None:
        """Forget what a forward_backward that failed has computed."""
        for flat in self._used:
            flat.zero_()
        self._used = []

    def clear_gradient(self) -> None:
        self.gradient.zero_()
        self.pending = 0

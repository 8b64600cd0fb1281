"""The weights, gradient and moments that one client trains, each in one flat vector with a view per named tensor.

Weights and moments are float32, gradients float64. With one vector, the optimizer takes a few operations whatever the
number of tensors, and a snapshot is one copy. A failed request does no harm: it only wrote to scratch vectors, which
are added to the gradient after everything has succeeded (or to a gradient that was zero and is set to zero again).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

ALIGNMENT = 16  # in elements: every view starts on a cache line; the gaps stay zero


class ParameterLayout:
    """The place of each named tensor in a flat vector."""

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
        """Make a flat vector of zeros."""
        return torch.zeros(self.size, device=device, dtype=dtype)

    def views(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the named tensors in `flat`, as views."""
        return {
            name: flat[start : start + torch.Size(shape).numel()].view(shape)
            for (name, start), shape in zip(self._starts.items(), self.shapes.values(), strict=True)
        }


class Weights:
    """Named weights. The same `version` object means the same values, so values derived from them can be cached."""

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
        """Mark the values as changed."""
        self.version = object()


class TrainState:
    """Weights with their accumulated gradient (a plain sum) and Adam's moments."""

    def __init__(self, weights: Weights, gradient_dtype: torch.dtype = torch.float64):
        layout, device = weights.layout, weights.flat.device
        self.weights = weights
        # With rank 0 a gradient must have its parameter's dtype; an adapter's is summed in float64 (see lora.py).
        self.gradient = layout.zeros(device, gradient_dtype)
        self.exp_avg = layout.zeros(device)
        self.exp_avg_sq = layout.zeros(device)
        self.step = 0
        self.pending = 0
        """The number of forward_backward calls whose gradients have been added."""
        self._buffers = [self.gradient]  # and the scratch buffers that were needed so far
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
        """Return `count` sets of zeroed buffers, by name, for one forward_backward; then commit or discard them.

        While the gradient is zero, it is one of these buffers: it holds nothing that a failure could destroy.
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
        """Add the scratch buffers to the gradient; return False, and add nothing, if they are not finite."""
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
        """Zero the scratch buffers of a forward_backward that failed."""
        for flat in self._used:
            flat.zero_()
        self._used = []

    def clear_gradient(self) -> None:
        """Set the gradient to zero."""
        self.gradient.zero_()
        self.pending = 0

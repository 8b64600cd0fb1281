"""The numbers one client trains, each kind in one flat vector.

Weights and moments are float32 vectors, gradients float64 ones, with a view per named tensor. One vector makes the
optimizer a handful of operations whatever the number of tensors, a snapshot one copy, and a failed request harmless:
it only ever wrote to a scratch vector, which is added to the gradient when everything has succeeded (or to a gradient
that was zero and becomes so again).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

ALIGNMENT = 16  # floats: every view starts on a cache line; the gaps hold zeros for ever


class Layout:
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

    def __init__(self, layout: Layout, flat: torch.Tensor):
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
        self.gradients = layout.views(self.gradient)
        """The accumulated gradient of each named tensor: live views, zero after an optimizer step."""
        self._scratch: torch.Tensor | None = None  # what the pass under way adds to
        self._spare: tuple[torch.Tensor, dict[str, torch.Tensor]] | None = None  # where the gradient will not do

    @property
    def moments(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Adam's first and second moment of each named tensor, live views."""
        first, second = (self.weights.layout.views(flat) for flat in (self.exp_avg, self.exp_avg_sq))
        return {name: (first[name], second[name]) for name in first}

    def scratch(self) -> dict[str, torch.Tensor]:
        """Zeros, by name, for one forward_backward to add gradients to; then commit or discard them.

        They are the gradient's own while that is zero: there is nothing in it to lose.
        """
        if not self.gradient.any():
            self._scratch = self.gradient
            return self.gradients
        if self._spare is None:
            spare = torch.empty_like(self.gradient)
            self._spare = spare, self.weights.layout.views(spare)
        self._scratch, views = self._spare
        self._scratch.zero_()
        return views

    def commit_scratch(self) -> bool:
        """Add what one forward_backward computed to the gradient; False, and nothing added, if it is not finite."""
        scratch = self._scratch
        assert scratch is not None, "scratch comes first"
        if not torch.isfinite(torch.linalg.vector_norm(scratch)):
            self.discard_scratch()
            return False
        if scratch is not self.gradient:
            self.gradient += scratch
        self._scratch = None
        self.pending += 1
        return True

    def discard_scratch(self) -> None:
        """Forget what a forward_backward that failed has computed."""
        if self._scratch is not None:
            self._scratch.zero_()
        self._scratch = None

    def clear_gradient(self) -> None:
        self.gradient.zero_()
        self.pending = 0

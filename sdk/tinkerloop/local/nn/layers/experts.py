"""LoRA for the experts of a mixture-of-experts block, whose weight matrices are stacked in one 3-D parameter.

    W'_e = W_e + (alpha / rank) B_e A_e        for every expert e

A and B have the shapes that PEFT uses for its `target_parameters`. A is stored as (experts * rank, in) and viewed as
(experts, rank, in). B is stored as (out, rank * experts) and viewed as (out, rank, experts). W' is always computed in
the base's dtype, even in bf16, because the grouped kernels for experts need complete weight matrices.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from tinkerloop.local.nn.layers.lora import BoundAdapter, Fold


class ExpertWeights:
    """The stacked 3-D weights of an experts module, with the adapter that is attached to them."""

    def __init__(self, module: nn.Module, attribute: str):
        self.module, self.attribute = module, attribute
        self.weight: torch.Tensor = module._parameters[attribute]  # type: ignore[assignment]
        self.transposed = bool(getattr(module, "is_transposed", False))  # (experts, in, out) instead of (.., out, in)
        self.experts, first, second = self.weight.shape
        self.out_features, self.in_features = (second, first) if self.transposed else (first, second)
        self.segments: Sequence[int] = ()
        self.fold_buffer: torch.Tensor | None = None
        self.fold_version: object = None
        self._adapter: BoundAdapter | None = None
        module.register_forward_pre_hook(self._before_forward)

    @property
    def adapter(self) -> BoundAdapter | None:
        return self._adapter

    @adapter.setter
    def adapter(self, adapter: BoundAdapter | None) -> None:
        self._adapter = adapter
        if adapter is None:
            self.module.__dict__.pop(self.attribute, None)

    def shapes(self, rank: int) -> tuple[tuple[int, int], tuple[int, int]]:
        return (self.experts * rank, self.in_features), (self.out_features, rank * self.experts)

    def bind(
        self,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
        gradients: tuple[torch.Tensor, torch.Tensor] | None,
        fold: Fold,
        version: object,
    ) -> None:
        """Attach an adapter. It is always folded, whatever `fold` is, because the kernels need whole matrices."""
        if self.fold_buffer is None:
            self.fold_buffer = torch.empty_like(self.weight, requires_grad=False)
        grad_a, grad_b = gradients if gradients is not None else (None, None)
        self.adapter = BoundAdapter(
            a.detach().requires_grad_(), b, (a.detach(), b), scale, grad_a, grad_b, self.fold_buffer
        )
        self.update(version)

    def update(self, version: object) -> None:
        """Compute W' in the buffer, if the buffer has not this version of A and B."""
        adapter = self._adapter
        if adapter is not None and adapter.folded is not None and self.fold_version is not version:
            a, b = self._a(adapter.a.detach()), self._b(adapter.b)
            delta = torch.einsum(f"ore,eri->{'eio' if self.transposed else 'eoi'}", b, a)
            adapter.folded.copy_(self.weight.detach() + adapter.scale * delta)
            self.fold_version = version

    def _before_forward(self, module: nn.Module, args: object) -> None:
        # An instance attribute hides the parameter of the same name. To autograd, W' is computed from A.
        if self._adapter is not None:
            module.__dict__[self.attribute] = _FoldedWeights.apply(self._adapter.a, self)

    def add_gradient(self, grad: torch.Tensor) -> None:
        adapter = self._adapter
        if adapter is None or adapter.grad_a is None or adapter.grad_b is None:
            return
        grad = grad.to(adapter.b.dtype)
        if self.transposed:
            grad = grad.transpose(1, 2)  # (experts, out, in)
        a, b = self._a(adapter.a.detach()), self._b(adapter.b)
        adapter.grad_b += torch.einsum("eoi,eri->ore", grad, a).flatten(1) * adapter.scale
        adapter.grad_a += torch.einsum("eoi,ore->eri", grad, b).flatten(0, 1) * adapter.scale

    def _a(self, a: torch.Tensor) -> torch.Tensor:
        return a.view(self.experts, -1, self.in_features)  # (experts, rank, in)

    def _b(self, b: torch.Tensor) -> torch.Tensor:
        return b.view(self.out_features, -1, self.experts)  # (out, rank, experts)


class _FoldedWeights(torch.autograd.Function):
    """Return W' as a function of A. The backward pass adds the gradients of A and B to the adapter's buffers."""

    @staticmethod
    def forward(ctx, _a: torch.Tensor, weights: ExpertWeights) -> torch.Tensor:
        ctx.weights = weights
        assert weights.adapter is not None
        assert weights.adapter.folded is not None
        return weights.adapter.folded.view_as(weights.adapter.folded)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):  # type: ignore[override]
        ctx.weights.add_gradient(grad)
        return None, None

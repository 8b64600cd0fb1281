"""RMSNorm layers (Zhang and Sennrich 2019, arXiv:1910.07467) with one forward and one backward operation.

The norm layers of transformers consist of six operations, and autograd stores the results between them. On the CPU,
their backward pass takes three to six times as long as the one in this module (more than 5 % of a small model's step).
On a GPU, they take nine times as long as torch's fused kernel (a third of a step with 0.6 billion weights).
"""

from __future__ import annotations

import inspect

import torch
from torch import nn
from torch.nn import functional as F


class RMSNorm(nn.Module):
    """A norm layer that computes x / sqrt(mean(x^2) + eps) * (offset + weight) over the last axis."""

    def __init__(self, weight: nn.Parameter, eps: float, offset: float):
        super().__init__()
        self.weight, self.eps, self.offset = weight, eps, offset

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight + self.offset if self.offset else self.weight
        if x.device.type == "cuda":
            return F.rms_norm(x, weight.shape, weight, self.eps)
        return _Normalised.apply(x, weight, self.eps)  # type: ignore[return-value]


def use_own_norms(module: nn.Module) -> None:
    """Replace every norm layer that computes the same as `RMSNorm`.

    On the CPU only float32 and bfloat16 layers are replaced; on a GPU, layers of any dtype.
    """
    dtype = next(module.parameters()).dtype
    for name, part in list(module.named_modules()):
        if type(part).__name__.endswith("RMSNorm") and (ours := _equal(part, dtype)) is not None:
            module.set_submodule(name, ours)


@torch.no_grad()
def _equal(norm: nn.Module, dtype: torch.dtype) -> RMSNorm | None:
    """Return an `RMSNorm` that shares the weight of `norm`, if both compute the same; else None."""
    weight = getattr(norm, "weight", None)
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    arguments = inspect.signature(norm.forward).parameters
    if not isinstance(weight, nn.Parameter) or not isinstance(eps, float) or len(arguments) != 1:
        return None
    is_float32 = dtype == torch.float32
    on_cpu = weight.is_cpu and dtype in (torch.float32, torch.bfloat16)
    if weight.ndim != 1 or weight.dtype != dtype or not (weight.device.type == "cuda" or on_cpu):
        return None
    # The values of the last row are so small that eps affects the result.
    x = torch.linspace(-2, 3, 3 * len(weight)).view(3, -1) * torch.tensor([[1.0], [30.0], [eps**0.5]])
    x = x.to(weight)
    expected = norm(x)
    # In a 16-bit dtype, models round twice, and this layer once; 1 + weight is not exact, so offset 1 is not tried.
    tolerance, offsets = (1e-5, (0.0, 1.0)) if is_float32 else (2 * torch.finfo(dtype).eps, (0.0,))
    for offset in offsets:
        ours = RMSNorm(weight, eps, offset)
        if torch.allclose(ours(x), expected, rtol=tolerance, atol=1e-6):
            return ours
    return None


def normalise(x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x / sqrt(mean(x^2) + eps) * weight, and the factor 1 / sqrt(mean(x^2) + eps) in float32.

    Autograd cannot differentiate this function, because it works in place; use `normalise_backward`.
    """
    square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square_()
    inverse = square.div_(x.shape[-1]).add_(eps).rsqrt_()
    return apply_factor(x, weight, inverse), inverse


def apply_factor(x: torch.Tensor, weight: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """Return the result of `normalise` again, given the factor that it returned."""
    return torch.mul(x, inverse).mul_(weight).to(x.dtype)


def normalise_backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, inverse: torch.Tensor
) -> torch.Tensor:
    """Return the gradient with respect to x, given the gradient with respect to the result of `normalise`.

    `inverse` is the factor that `normalise` returned.
    """
    scaled = grad.float() * weight
    along = (scaled * x).sum(-1, keepdim=True).mul_(inverse**3).div_(-x.shape[-1])
    return scaled.mul_(inverse).addcmul_(x.float(), along).to(x.dtype)


class _Normalised(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        y, inverse = normalise(x, weight, eps)
        ctx.save_for_backward(x, weight, inverse)
        return y

    @staticmethod
    def backward(ctx, grad: torch.Tensor):  # type: ignore[override]
        x, weight, inverse = ctx.saved_tensors
        grad_weight = (grad * x).mul_(inverse).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        return normalise_backward(grad, x, weight, inverse), grad_weight, None

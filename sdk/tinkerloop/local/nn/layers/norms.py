"""RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467) in one step forward and one back.

Autograd goes back through the six operations of a norm one by one and keeps what lies between them. On the CPU that
takes three to six times the time of the backward pass here, in a small model more than a twentieth of a step; on a GPU
nine times that of torch's own kernel, in a model of 0.6 billion weights a third of a step.
"""

from __future__ import annotations

import inspect

import torch
from torch import nn
from torch.nn import functional as F


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * (offset + weight) over the last axis."""

    def __init__(self, weight: nn.Parameter, eps: float, offset: float):
        super().__init__()
        self.weight, self.eps, self.offset = weight, eps, offset

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight + self.offset if self.offset else self.weight
        if x.device.type == "cuda":
            return F.rms_norm(x, weight.shape, weight, self.eps)
        return _Normalised.apply(x, weight, self.eps)  # type: ignore[return-value]


def use_own_norms(module: nn.Module) -> None:
    """Replace every RMSNorm that gives the numbers of ours, whatever its class: of float32 on the CPU, or on a GPU."""
    dtype = next(module.parameters()).dtype
    for name, part in list(module.named_modules()):
        if type(part).__name__.endswith("RMSNorm") and (ours := _equal(part, dtype)) is not None:
            module.set_submodule(name, ours)


@torch.no_grad()
def _equal(norm: nn.Module, dtype: torch.dtype) -> RMSNorm | None:
    """Our norm on the same weight, if the two agree on numbers of this type."""
    weight = getattr(norm, "weight", None)
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    arguments = inspect.signature(norm.forward).parameters
    if not isinstance(weight, nn.Parameter) or not isinstance(eps, float) or len(arguments) != 1:
        return None
    wide = dtype == torch.float32
    if weight.ndim != 1 or weight.dtype != dtype or not (weight.device.type == "cuda" or (wide and weight.is_cpu)):
        return None
    # The last row is so small that eps counts.
    x = torch.linspace(-2, 3, 3 * len(weight)).view(3, -1) * torch.tensor([[1.0], [30.0], [eps**0.5]])
    x = x.to(weight)
    expected = norm(x)
    # Models round narrow numbers twice, the kernel once; and 1 + weight such numbers do not hold.
    tolerance, offsets = (1e-5, (0.0, 1.0)) if wide else (2 * torch.finfo(dtype).eps, (0.0,))
    for offset in offsets:
        ours = RMSNorm(weight, eps, offset)
        if torch.allclose(ours(x), expected, rtol=tolerance, atol=1e-6):
            return ours
    return None


def normalise(x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """x / sqrt(mean(x^2) + eps) * weight, and the factor 1 / sqrt(mean(x^2) + eps), outside autograd."""
    square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
    inverse = square.div_(x.shape[-1]).add_(eps).rsqrt_()
    return (x * inverse).mul_(weight), inverse


def normalise_back(grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """The gradient of x, given that of the normalised one."""
    scaled = grad * weight
    along = (scaled * x).sum(-1, keepdim=True).mul_(inverse**3).div_(-x.shape[-1])
    return scaled.mul_(inverse).addcmul_(x, along)


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
        return normalise_back(grad, x, weight, inverse), grad_weight, None

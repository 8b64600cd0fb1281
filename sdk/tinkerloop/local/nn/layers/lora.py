"""LoRA for a frozen linear layer: W' = W + (alpha / rank) B A (Hu et al. 2021, arXiv:2106.09685).

If the base is float32 and small enough, and steps have enough tokens (see `worth_folding`), W' is computed once after
each change of the adapter ("folded"). The forward pass is then one matrix product, and only the gradients of A and B
are computed. Otherwise the products with W and with A and B are computed separately, in the dtype of W. For a bf16
base, A and B are rounded to bf16 in these products. The stored A and B stay float32, and their gradients are float32 or
wider. Rounding W' to bf16 instead would lose updates that are small relative to W.

Splitting a batch into several requests must not change the update. Adam can turn rounding noise in a near-zero gradient
into a full step, so even rounding must not depend on the split. Therefore, on the CPU, each datum's gradient is a
separate product of fixed shape, and the gradients of datums are summed in float64. The same numbers are then added,
however the batch is split.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto

import torch
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from tinkerloop.local.nn.layers.precision import product_dtype

MIN_ROWS = 16
"""The minimum number of rows in a product. For fewer, BLAS sums in another order, so rows of zeros are appended."""

MAX_DECODED_ROWS = 64
"""In sampling, products of at most this many rows are computed in the dtype of W: converting W would take longer."""

ALPHA = 32
"""Tinker's fixed LoRA alpha. The scale of an adapter is ALPHA / rank."""


@dataclass(frozen=True)
class LoraSpec:
    """Which layers get an adapter, and its rank. Rank 0 means no adapter: all weights of the model are trained."""

    rank: int = 32
    seed: int = 0
    train_mlp: bool = True
    train_attn: bool = True
    train_unembed: bool = True
    train_vision: bool = False

    @property
    def scale(self) -> float:
        return ALPHA / self.rank

    def covers(self, kind: str) -> bool:
        return bool(getattr(self, f"train_{kind}"))


class Fold(Enum):
    """The way in which a layer is computed with its adapter."""

    NO = auto()
    """The products with W and with A and B are separate."""
    WHOLE = auto()
    """W' is computed once for all requests with the same adapter."""
    PARTS = auto()
    """W' is computed for a part of the outputs when the part is used."""


def worth_folding(layers: Sequence[LoRALinear], tokens: int) -> bool:
    """Return True if folding the adapters of these layers takes fewer multiplications than it saves in a step.

    Folding takes rank * in * out multiplications for each layer. Without it, each token of a step takes
    rank * (in + out) more: rank * out in the forward pass, and rank * in in the backward pass.
    """
    saved = tokens * sum(layer.in_features + layer.out_features for layer in layers)
    return saved >= sum(layer.in_features * layer.out_features for layer in layers)


@dataclass
class BoundAdapter:
    """The adapter attached to a layer: A and B, their gradient buffers (None for sampling), and W' if it is folded."""

    a: torch.Tensor  # (rank, in); requires a gradient, so that autograd calls `backward`
    b: torch.Tensor  # (out, rank)
    rounded: tuple[torch.Tensor, torch.Tensor]  # A and B in the dtype of W, for matrix products
    scale: float
    grad_a: torch.Tensor | None  # float64
    grad_b: torch.Tensor | None
    folded: torch.Tensor | None  # (out, in)
    fold_parts: bool = False
    """True if each part of the adapter is folded when it is used."""

    def part(self, outputs: slice, weight: torch.Tensor) -> BoundAdapter:
        """Return the part of the adapter for a slice of the outputs, whose base weights are `weight`."""
        b = self.b[outputs]
        folded = None
        if self.folded is not None:
            folded = self.folded[outputs]
        elif self.fold_parts:
            folded = torch.addmm(weight.detach(), b, self.a.detach(), alpha=self.scale)
        rounded = (self.rounded[0], self.rounded[1][outputs])
        grad_b = None if self.grad_b is None else self.grad_b[outputs]
        return BoundAdapter(self.a, b, rounded, self.scale, self.grad_a, grad_b, folded)

    def add_gradient(
        self, x: torch.Tensor, x_a: torch.Tensor, grad_y: torch.Tensor, grad_y_b: torch.Tensor, segments: Sequence[int]
    ) -> None:
        """Add the gradients of A and B to their buffers.

        Args:
            x: (T, in), the layer's input.
            x_a: (T, rank), the product x A^T.
            grad_y: (T, out), the gradient with respect to the layer's output.
            grad_y_b: (T, rank), the product grad_y B.
            segments: the number of rows of each datum, which gets a product of its own. If the numbers do not add up
                to T (as in an expert), one product covers all rows.
        """
        if self.grad_a is None or self.grad_b is None:
            return
        if sum(segments) != len(x):
            segments = [len(x)]
        parts = [(x, x_a, grad_y, grad_y_b)]
        if len(segments) > 1:
            parts = zip(*(rows.split(list(segments)) for rows in (x, x_a, grad_y, grad_y_b)), strict=True)
        for x_part, x_a_part, grad_part, grad_b_part in parts:
            grad_a, grad_b = _over_rows(grad_b_part, x_part), _over_rows(grad_part, x_a_part)
            # Scale in float32, before the sum. Summing float32 values in float64 is exact except in extreme cases, so
            # the result does not depend on the order of the datums.
            if self.scale != 1:
                grad_a, grad_b = grad_a.mul_(self.scale), grad_b.mul_(self.scale)
            self.grad_a += grad_a
            self.grad_b += grad_b


def _part(parameter: torch.Tensor, part: slice) -> nn.Parameter:
    """Return a slice of `parameter` along its first axis, with the same slice of its gradient."""
    some = nn.Parameter(parameter.data[part], requires_grad=parameter.requires_grad)
    some.grad = None if parameter.grad is None else parameter.grad[part]
    return some


def _with_min_rows(x: torch.Tensor) -> torch.Tensor:
    """Return x (T, n), with rows of zeros appended if T < MIN_ROWS."""
    return x if len(x) >= MIN_ROWS else torch.cat([x, x.new_zeros(MIN_ROWS - len(x), x.shape[1])])


def _multiply(a: torch.Tensor, b: torch.Tensor, onto: torch.Tensor | None) -> torch.Tensor:
    return a @ b if onto is None else onto.addmm_(a, b)


def _over_rows(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Compute a^T b (m, n) for a (T, m) and b (T, n), with a float32 result for any input dtype."""
    if a.dtype == torch.float32:
        return _aligned(a).T @ _aligned(b)
    if a.device.type == "cuda":
        return torch.mm(a.T, b, out_dtype=torch.float32)
    return a.T.float() @ b.float()


def _aligned(rows: torch.Tensor) -> torch.Tensor:
    """Return `rows`, copied unless they start at a cache line. At other addresses BLAS may round differently."""
    return rows if rows.data_ptr() % 64 == 0 else rows.clone()


class LoRALinear(nn.Linear):
    """A frozen `nn.Linear` that applies its LoRA adapter, if one is attached."""

    adapter: BoundAdapter | None = None
    segments: Sequence[int] = ()
    """The number of rows (positions) of each datum in the current packed batch."""
    sampling: bool = False
    """True in passes for sampling. These use any number of rows, and the packed weights."""
    packed: torch.Tensor | None = None
    """W, or W' if it is folded, in the layout of oneDNN. See `pack`."""
    fold_buffer: torch.Tensor | None = None
    fold_version: object = None
    """The `Weights.version` of the adapter from which `fold_buffer` was computed."""

    @classmethod
    def wrap(cls, linear: nn.Linear) -> LoRALinear:
        """Return a `LoRALinear` that shares the weight and bias tensors of `linear`."""
        wrapped = cls.__new__(cls)
        nn.Module.__init__(wrapped)
        wrapped.in_features, wrapped.out_features = linear.in_features, linear.out_features
        wrapped.weight, wrapped.bias = linear.weight, linear.bias
        return wrapped

    @property
    def matrix(self) -> torch.Tensor:
        """The matrix W (out, in): the weight, or a view of it if the layer stores it in another order."""
        return self.weight

    def shapes(self, rank: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the shapes of A and B for an adapter of this rank."""
        return (rank, self.in_features), (self.out_features, rank)

    def bind(
        self,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
        gradients: tuple[torch.Tensor, torch.Tensor] | None,
        fold: Fold,
        version: object,
    ) -> None:
        """Attach an adapter, whose A and B have this version, to the layer."""
        if fold is Fold.WHOLE and self.fold_buffer is None:
            self.fold_buffer = torch.empty_like(self.matrix, requires_grad=False)
        folded = self.fold_buffer if fold is Fold.WHOLE else None
        grad_a, grad_b = gradients if gradients is not None else (None, None)
        rounded = a.detach().to(self.weight.dtype), b.to(self.weight.dtype)
        self.adapter = BoundAdapter(
            a.detach().requires_grad_(), b, rounded, scale, grad_a, grad_b, folded, fold is Fold.PARTS
        )
        self.update(version)

    def update(self, version: object) -> None:
        """Compute W' in the layer's buffer, if the adapter is folded and the buffer has not this version of A and B."""
        adapter = self.adapter
        if adapter is not None and adapter.folded is not None and self.fold_version is not version:
            a = adapter.a.detach()
            torch.addmm(self.matrix.detach(), adapter.b, a, alpha=adapter.scale, out=adapter.folded)
            self.fold_version = version

    def tiles(self, size: int) -> Iterator[tuple[int, LoRALinear]]:
        """Split the layer into tiles, each a layer of at most `size` outputs that shares its tensors and buffers.

        Yields: for each tile, the index of its first output, and the tile.
        """
        for start in range(0, self.out_features, size):
            part = slice(start, start + size)
            tile = LoRALinear.__new__(LoRALinear)
            nn.Module.__init__(tile)
            tile.weight, tile.bias = _part(self.weight, part), None if self.bias is None else _part(self.bias, part)
            tile.out_features, tile.in_features = tile.weight.shape
            if self.adapter is not None:
                tile.adapter = self.adapter.part(part, tile.weight)
            yield start, tile

    @property
    def _summed(self) -> torch.Tensor:
        """The matrix W' if an adapter is attached and folded, otherwise W."""
        return self.matrix if self.adapter is None or self.adapter.folded is None else self.adapter.folded

    def pack(self) -> None:
        """Copy the float32 weights, with a folded adapter, to the layout of oneDNN, if torch was built with it.

        oneDNN's products with such weights take almost the least time for any number of rows. On the processors that
        were tried, they also round a row in the same way for every number of rows.
        """
        if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self._summed.detach().contiguous(), None)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.sampling and self.packed is not None:
            return self.product(input.flatten(0, -2))[0].unflatten(0, input.shape[:-1])
        if self.adapter is None and product_dtype(input) == input.dtype:
            return F.linear(input, self.matrix, self.bias)
        y = _Adapted.apply(input.flatten(0, -2), None if self.adapter is None else self.adapter.a, self)
        assert y is not None
        return y.unflatten(0, input.shape[:-1])

    def product(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Compute y = x W'^T + bias for x (T, in), without support for autograd.

        Returns: y (T, out), and x A^T (T, rank). The latter is None without an adapter or if W' is folded.
        """
        rows = len(x)
        if rows < MIN_ROWS and not self.sampling:
            y, x_a = self.product(_with_min_rows(x))
            return y[:rows], None if x_a is None else x_a[:rows]
        adapter = self.adapter
        dtype = x.dtype
        computed = dtype if self.sampling and rows <= MAX_DECODED_ROWS else product_dtype(x)
        x = x.to(computed)
        if self.sampling and self.packed is not None:
            y = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        else:
            y = F.linear(x, self._summed.to(computed), None if self.bias is None else self.bias.to(computed))
        if adapter is None or adapter.folded is not None:
            return y.to(dtype), None
        a, b = (factor.to(computed) for factor in adapter.rounded)
        x_a = x @ a.T
        return y.addmm_(x_a, b.T, alpha=adapter.scale).to(dtype), x_a

    def product_backward(
        self,
        grad_y: torch.Tensor,
        x: torch.Tensor,
        x_a: torch.Tensor | None,
        segments: Sequence[int],
        need_x: bool = True,
        onto: torch.Tensor | None = None,
    ) -> torch.Tensor | None:
        """Return the gradient with respect to x, given `grad_y`, the gradient with respect to y = product(x).

        The gradients of A and B are added to their buffers. In full-parameter training, the gradients of W and of the
        bias are added to theirs.

        Args:
            x_a: x A^T if `product` returned it; None: it is computed here.
            segments: the number of rows of each datum.
            need_x: if False, the gradient with respect to x is not computed, and the result is None.
            onto: a tensor to which the gradient with respect to x is added, and which is then returned.
        """
        rows, adapter = len(x), self.adapter
        dtype, computed = grad_y.dtype, product_dtype(grad_y)
        x, grad_y = x.to(computed), grad_y.to(computed)
        tall = _with_min_rows(grad_y)  # (T', out), T' >= T
        in_place = len(tall) == rows and computed == dtype
        # Added in the same order for any number of rows, because the order changes the rounding.
        target = None if onto is None else _with_min_rows(onto.to(computed))
        if adapter is None:
            if self.weight.grad is not None:  # full-parameter training
                self.weight.grad.addmm_(tall.T, _with_min_rows(x))
                if self.bias is not None and self.bias.grad is not None:
                    self.bias.grad += tall.sum(0)
            if not need_x:
                return None
            grad_x = _multiply(tall, self.weight.detach().to(computed), target)
        else:
            a, b = (factor.to(computed) for factor in adapter.rounded)
            grad_y_b = tall @ b  # (T', rank)
            if x_a is None:
                x_a = (_with_min_rows(x) @ a.T)[:rows]
            adapter.add_gradient(x, x_a, grad_y, grad_y_b[:rows], segments)
            if not need_x:
                return None
            grad_x = _multiply(tall, self._summed.detach().to(computed), target)
            if adapter.folded is None:
                grad_x = grad_x.addmm_(grad_y_b, a, alpha=adapter.scale)
        if in_place:
            return grad_x
        return grad_x[:rows].to(dtype) if onto is None else onto.copy_(grad_x[:rows])


class LoRAConv1D(LoRALinear):
    """A frozen `Conv1D` of transformers (in GPT-2's blocks): a linear layer whose weight is stored as (in, out)."""

    @classmethod
    def wrap(cls, linear: Conv1D) -> LoRAConv1D:  # type: ignore[override]
        """Make the same layer with the same weight and bias tensors."""
        wrapped = cls.__new__(cls)
        nn.Module.__init__(wrapped)
        wrapped.in_features, wrapped.out_features = linear.weight.shape
        wrapped.weight, wrapped.bias = linear.weight, linear.bias
        return wrapped

    @property
    def matrix(self) -> torch.Tensor:
        return self.weight.T


class _Adapted(torch.autograd.Function):
    """Compute `product` for x (T, in). The backward pass adds the gradients of A and B to the adapter's buffers."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, _a: torch.Tensor, layer: LoRALinear) -> torch.Tensor:
        y, x_a = layer.product(x)
        ctx.layer, ctx.segments = layer, layer.segments
        ctx.save_for_backward(x, x_a)
        return y

    @staticmethod
    def backward(ctx, grad_y: torch.Tensor):  # type: ignore[override]
        x, x_a = ctx.saved_tensors
        grad_x = ctx.layer.product_backward(grad_y, x, x_a, ctx.segments, need_x=ctx.needs_input_grad[0])
        return grad_x, None, None


def initialise(named: Mapping[str, torch.Tensor], seed: int) -> None:
    """Initialise an adapter: A ~ U(-1/sqrt(in), 1/sqrt(in)), PEFT's Kaiming-uniform initialisation, and B = 0.

    Because B is 0, a new adapter does not change the model's outputs. Each tensor is drawn from a separate random
    generator, so its values depend only on the seed and the tensor's name.
    """
    for name, tensor in named.items():
        if name.endswith("lora_B"):
            tensor.zero_()
            continue
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        bound = 1 / math.sqrt(tensor.shape[-1])
        tensor.copy_(torch.empty(tensor.shape).uniform_(-bound, bound, generator=generator))

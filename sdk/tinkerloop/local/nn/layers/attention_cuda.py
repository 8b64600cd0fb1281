"""Causal attention of all packed sequences in one GPU kernel, with a deterministic gradient.

By default, the backward passes of torch's attention kernels add the parts of a gradient in the order in which the GPU
finishes them. Two equal runs would then give different results, and a resumed run would differ from an uninterrupted
one. This module uses the kernels' mode with a fixed order.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

_CAUSAL = 1  # custom_mask_type of the memory-efficient kernel


def varlen_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: Sequence[int],
    scale: float,
    window: int | None = None,
) -> torch.Tensor:
    """Compute softmax(scale * Q K^T) V separately for each sequence. A position sees itself and earlier positions.

    Args:
        query: (T, H, D), the concatenated sequences.
        key, value: (T, heads, D), where `heads` divides H. The width of the values may differ from D.
        lengths: the lengths of the sequences.
        window: the number of positions that a position sees, itself included; None: all earlier ones.

    Returns: (T, H, width of the values).
    """
    kernel = _Flash if _suits_flash(query, value) else _Efficient
    return kernel.apply(query, key, value, tuple(lengths), scale, window)  # type: ignore[return-value]


def _suits_flash(query: torch.Tensor, value: torch.Tensor) -> bool:
    """Return True if the flash-attention kernel supports these dtypes and widths on this GPU (Ampere or later)."""
    width = query.shape[-1]
    return (
        query.dtype in (torch.bfloat16, torch.float16)
        and value.shape[-1] == width <= 256
        and width % 8 == 0
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


@functools.lru_cache(maxsize=8)
def _bounds(lengths: tuple[int, ...], device: torch.device) -> tuple[torch.Tensor, int]:
    """Return the cumulative lengths of the sequences, starting with 0, and the longest length.

    The result is cached, because every layer needs the same values.
    """
    ends = torch.tensor((0, *lengths)).cumsum(0, dtype=torch.int32)
    return ends.to(device), max(lengths)


class _Flash(torch.autograd.Function):
    """Attention with the flash-attention kernel, for bfloat16 and float16. Query heads may share keys and values."""

    @staticmethod
    def forward(ctx, q, k, v, lengths, scale, window):
        bounds, longest = _bounds(lengths, q.device)
        sides = {} if window is None else {"window_size_left": window - 1, "window_size_right": 0}
        # Arguments of both passes: bounds and longest length of queries and keys, dropout, causal.
        ctx.fixed = (bounds, bounds, longest, longest, 0.0, True)
        ctx.options = {"scale": scale, **sides}
        out, log_sum, seed, unused, _ = torch.ops.aten._flash_attention_forward(
            q, k, v, *ctx.fixed, False, **ctx.options
        )
        ctx.save_for_backward(q, k, v, out, log_sum, seed, unused)
        return out

    @staticmethod
    def backward(ctx, grad: torch.Tensor):  # type: ignore[override]
        q, k, v, out, log_sum, seed, unused = ctx.saved_tensors
        with _deterministic():
            grads = torch.ops.aten._flash_attention_backward(
                grad.contiguous(), q, k, v, out, log_sum, *ctx.fixed, seed, unused, **ctx.options
            )
        return *grads, None, None, None


class _Efficient(torch.autograd.Function):
    """Attention with the memory-efficient kernel, for float32 and any width. Copies keys and values for each head."""

    @staticmethod
    def forward(ctx, q, k, v, lengths, scale, window):
        bounds, longest = _bounds(lengths, q.device)
        ctx.group = q.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(ctx.group, 1) if ctx.group > 1 else x for x in (k, v))
        ctx.options = {"scale": scale, "window_size": window}
        out, log_sum, seed, offset, *ctx.longest = torch.ops.aten._efficient_attention_forward(
            q[None], k[None], v[None], None, bounds, bounds, longest, longest, 0.0, _CAUSAL, True, **ctx.options
        )
        ctx.bounds = bounds
        ctx.save_for_backward(q, k, v, out, log_sum, seed, offset)
        return out[0]

    @staticmethod
    def backward(ctx, grad: torch.Tensor):  # type: ignore[override]
        q, k, v, out, log_sum, seed, offset = ctx.saved_tensors
        grads = torch.ops.aten._efficient_attention_backward(
            grad[None].contiguous(),
            *(x[None] for x in (q, k, v)),
            None,
            out,
            ctx.bounds,
            ctx.bounds,
            *ctx.longest,
            log_sum,
            0.0,
            seed,
            offset,
            _CAUSAL,
            False,
            num_splits_key=1,  # with more splits, a query's gradient is summed in a varying order
            **ctx.options,
        )
        grad_q, grad_k, grad_v = (x[0] for x in grads[:3])
        if ctx.group > 1:
            grad_k, grad_v = (x.unflatten(1, (-1, ctx.group)).sum(2) for x in (grad_k, grad_v))
        return grad_q, grad_k, grad_v, None, None, None


@contextmanager
def _deterministic() -> Iterator[None]:
    """Turn on torch's global deterministic mode for one operation that has no argument for it."""
    before: dict[str, Any] = {
        "mode": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
    }
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(**before)

"""Causal attention of one float32 sequence on the CPU, in blocks and only at the positions whose result is needed.

torch's kernel computes every position. This module skips positions whose result is not needed. It computes the scores
of a block in one matrix product for all heads that share keys, and its memory grows linearly with the sequence length.
If all positions are needed, it takes about as long as torch's kernel.

Scores are multiplied by log2(e), because exp2 takes a third of the time of exp. In the backward pass, two matrix
products get one more column in both factors. With it, the product that recomputes the scores also subtracts the
log-sum of each row, and the product that computes dP also subtracts dO.O. The formula dS = P (dP - dO.O) is from
Dao et al. 2022 (arXiv:2205.14135), appendix B.2.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

BLOCK = 64
"""The number of positions in a block. The scores of a block, for one group of heads and 1,024 keys, take about 1 MB."""

LOG2_E = math.log2(math.e)


def causal_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, wanted: NDArray[np.int64]
) -> torch.Tensor:
    """Compute softmax(scale * Q K^T) V, where position i sees the keys 0 to i. Autograd is supported.

    Args:
        query: (1, H, T, D).
        key, value: (1, heads, T, D), where `heads` divides H. The width of the values may differ from D.
        wanted: the positions whose result is needed, in ascending order.

    Returns: (1, H, T, width of the values), zero at positions that are not in `wanted`.
    """
    return _Causal.apply(query, key, value, scale, wanted)  # type: ignore[return-value]


class _Causal(torch.autograd.Function):
    """The autograd function of `causal_attention`.

    Inside it, queries have shape (heads, m * G, D): m is the number of wanted positions, and G query heads share the
    keys of one head.
    """

    @staticmethod
    def forward(
        ctx, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, wanted: NDArray[np.int64]
    ) -> torch.Tensor:
        heads = key.shape[1]
        q, k, v = _rows(query, wanted, heads).mul_(scale * LOG2_E), key[0].contiguous(), value[0].contiguous()
        group = query.shape[1] // heads
        out, log_sum = (q.new_empty(*q.shape[:2], width) for width in (v.shape[-1], 1))
        positions, keys = torch.from_numpy(wanted), torch.arange(k.shape[1])
        room = q.new_empty(heads * BLOCK * group * k.shape[1])
        for start in range(0, len(wanted), BLOCK):
            stop = min(start + BLOCK, len(wanted))
            first, end = int(wanted[start]) + 1, int(wanted[stop - 1]) + 1  # all positions see the keys before `first`
            rows = slice(start * group, stop * group)
            scores = _product(q[:, rows], k[:, :end], room)
            hidden = (keys[first:end] > positions[start:stop, None])[:, None]
            scores.view(heads, stop - start, group, end)[..., first:].masked_fill_(hidden, -math.inf)
            top = scores.amax(-1, keepdim=True)
            weights = scores.sub_(top).exp2_()
            total = weights.sum(-1, keepdim=True)
            torch.div(torch.bmm(weights, v[:, :end]), total, out=out[:, rows])
            torch.add(top, total.log2_(), out=log_sum[:, rows])
        ctx.save_for_backward(q, k, v, out, log_sum)
        ctx.scale, ctx.wanted = scale, wanted
        return _spread(out, wanted, query.shape[2])

    @staticmethod
    def backward(ctx, grad: torch.Tensor):  # type: ignore[override]
        q, k, v, out, log_sum = ctx.saved_tensors
        wanted: NDArray[np.int64] = ctx.wanted
        heads, length = k.shape[:2]
        group = q.shape[1] // len(wanted)
        grad_out = _rows(grad, wanted, heads)
        q1, k1 = torch.cat([q, -log_sum], -1), _with_ones(k)
        g1, v1 = torch.cat([grad_out, -(grad_out * out).sum(-1, keepdim=True)], -1), _with_ones(v)
        grad_q, grad_k, grad_v = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        positions, keys = torch.from_numpy(wanted), torch.arange(length)
        room, more_room = q.new_empty(2, heads * BLOCK * q.shape[1])
        for start in range(0, length, BLOCK):  # by blocks of keys, because that makes three of the five products faster
            stop = min(start + BLOCK, length)
            some, every = np.searchsorted(
                wanted, [start, stop - 1]
            )  # the first query that sees at least one of these keys, and the first that sees all
            if some == len(wanted):
                break
            rows = slice(int(some) * group, None)
            weights = _product(k1[:, start:stop], q1[:, rows], room).exp2_()
            hidden = (keys[start:stop, None] > positions[some:every])[..., None]
            weights.view(heads, stop - start, -1, group)[:, :, : every - some].masked_fill_(hidden, 0)
            grad_scores = _product(v1[:, start:stop], g1[:, rows], more_room).mul_(weights)
            torch.bmm(weights, grad_out[:, rows], out=grad_v[:, start:stop])
            torch.bmm(grad_scores, q[:, rows], out=grad_k[:, start:stop])
            grad_q[:, rows].baddbmm_(grad_scores.transpose(1, 2), k[:, start:stop])
        return (
            _spread(grad_q.mul_(ctx.scale), wanted, grad.shape[2]),
            grad_k.mul_(1 / LOG2_E)[None],
            grad_v[None],
            None,
            None,
        )


def _rows(x: torch.Tensor, wanted: NDArray[np.int64], heads: int) -> torch.Tensor:
    """Copy the rows at the wanted positions: (1, H, T, D) -> (heads, m * G, D)."""
    rows = x[0] if len(wanted) == x.shape[2] else x[0].index_select(1, torch.from_numpy(wanted))
    grouped = rows.unflatten(0, (heads, -1)).transpose(1, 2)
    return grouped.clone(memory_format=torch.contiguous_format).flatten(1, 2)


def _spread(rows: torch.Tensor, wanted: NDArray[np.int64], length: int) -> torch.Tensor:
    """Place rows at the wanted positions, with zeros at all others: (heads, m * G, D) -> (1, H, T, D)."""
    output = rows.unflatten(1, (len(wanted), -1)).transpose(1, 2).flatten(0, 1)
    if len(wanted) < length:
        zeros = output.new_zeros(len(output), length, output.shape[-1])
        output = zeros.index_copy_(1, torch.from_numpy(wanted), output)
    return output[None]


def _with_ones(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x, x.new_ones(*x.shape[:2], 1)], -1)


def _product(a: torch.Tensor, b: torch.Tensor, room: torch.Tensor) -> torch.Tensor:
    """Compute A B^T for each head into the buffer `room`. Allocating new memory would take as long as the product."""
    shape = (len(a), a.shape[1], b.shape[1])
    return torch.bmm(a, b.transpose(1, 2), out=room[: math.prod(shape)].view(shape))

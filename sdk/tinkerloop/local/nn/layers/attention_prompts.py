"""Attention of prompts in sampling, whose first keys may be known from an earlier pass.

Queries are computed in blocks that begin at multiples of `BLOCK` in their prompt, each with the keys up to its end. So
the bits of a block depend on the tokens up to its end alone, and not on where a pass began. A block whose keys and
values are kept can therefore be left out of a later pass.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch.nn.functional import scaled_dot_product_attention

BLOCK = 64
"""The number of positions in a block."""


def prompt_mask(lengths: list[int], key_lengths: list[int]) -> torch.Tensor:
    """Return the `attention_mask` of prompts that are packed into one row, with keys of earlier passes.

    Args:
        lengths: the number of new tokens of each prompt.
        key_lengths: the number of keys of each prompt, those of the new tokens included.
    """
    return torch.tensor([lengths, key_lengths], dtype=torch.int32)[None, None]


def prompt_attention(
    query: torch.Tensor,  # (1, heads, T, D)
    key: torch.Tensor,  # (1, key-value heads, S, D)
    value: torch.Tensor,
    lengths: list[int],
    key_lengths: list[int],
    scale: float,
    window: int | None,
    eager: Callable[..., torch.Tensor] | None = None,
) -> torch.Tensor:
    """Return the attention output (1, T, heads, D) of the new tokens, which are the last ones of their prompts.

    Args:
        lengths, key_lengths: see `prompt_mask`. They add up to T and S, and their differences are multiples of `BLOCK`.
        window: a token sees itself and `window` - 1 earlier ones; None: all earlier ones.
        eager: a function (query, key, value, boolean mask, scale) for kinds of attention without a fused kernel.
    """
    grouped = query.shape[1] != key.shape[1]
    outputs = []
    parts = zip(query.split(lengths, 2), key.split(key_lengths, 2), value.split(key_lengths, 2), strict=True)
    for q, k, v in parts:
        if query.shape[3] % 4:
            # At addresses that are no multiples of 16 bytes, BLAS may round differently. So the addresses must not
            # depend on the place of a prompt in the row.
            q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        start = k.shape[2] - q.shape[2]
        for block in q.split(BLOCK, 2):
            end = start + block.shape[2]
            visible, hidden = _masks(start, end, window, query.dtype)
            seen = k[:, :, :end], v[:, :, :end]
            if eager is None:
                output = scaled_dot_product_attention(block, *seen, attn_mask=hidden, scale=scale, enable_gqa=grouped)
            else:
                output = eager(block, *seen, visible, scale)
            outputs.append(output)
            start = end
    return torch.cat(outputs, 2).transpose(1, 2)


@lru_cache(maxsize=32)
def _masks(start: int, end: int, window: int | None, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which of the keys 0 to `end` the queries `start` to `end` see, as True and as 0 instead of -inf."""
    query, key = torch.arange(start, end)[:, None], torch.arange(end)
    visible = key <= query
    if window is not None:
        visible &= key > query - window
    return visible, torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, -torch.inf)

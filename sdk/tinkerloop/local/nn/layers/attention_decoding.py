"""Attention of a decoding step: one new token of each sequence attends to the cached keys of its own sequence.

The bits of a sequence's result depend on its own tokens alone, not on the other sequences of the step. Therefore the
number of keys in a product is a function of the sequence's length: it is rounded up to a multiple of `KEYS`, and the
keys after the end are masked. Neighbouring sequences with equal rounded lengths share one call of torch's kernel, which
computes each sequence and head separately.

Torch's kernel gives each thread a buffer, with a size proportional to the number of queries. With an odd number, the
buffers of some threads begin at addresses that are no multiples of 16 bytes, where BLAS may round differently. Then the
bits would depend on which thread computes a head, so the number of queries is rounded up to an even one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import groupby

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

KEYS = 128
"""The numbers of keys in the products are multiples of this. A smaller number would give more, smaller calls."""


def decoding_mask(lengths: list[int]) -> torch.Tensor:
    """Return the `attention_mask` of a decoding step: the lengths of the sequences, with the new tokens."""
    return torch.tensor(lengths, dtype=torch.int64).view(1, 1, 1, -1)


def rounded_length(length: int) -> int:
    """Return the number of keys with which a sequence of `length` tokens is computed."""
    return -(-length // KEYS) * KEYS


def decoding_attention(
    query: torch.Tensor,  # (1, heads, sequences, D)
    key: torch.Tensor,  # (sequences, key-value heads, capacity, D)
    value: torch.Tensor,
    mask: torch.Tensor,
    scale: float,
    window: int | None,
    eager: Callable[..., torch.Tensor] | None = None,
) -> torch.Tensor:
    """Return the attention output (1, sequences, heads, D) of the new tokens.

    Args:
        mask: see `decoding_mask`.
        window: a token sees itself and `window` - 1 earlier ones; None: all earlier ones.
        eager: a function (query, key, value, boolean mask, scale) for kinds of attention without a fused kernel. It is
            called for each sequence alone.
    """
    heads = key.shape[1]
    q = query[0].transpose(0, 1).unflatten(1, (heads, -1))  # (sequences, key-value heads, queries of a head, D)
    queries = q.shape[2]
    if eager is None and queries % 2:
        q = pad(q, (0, 0, 0, 1))
    outputs = []
    for rows, keys, hidden in _groups(tuple(mask.flatten().tolist()), window, query.dtype, eager is not None):
        k, v = key[rows, :, :keys], value[rows, :, :keys]
        if eager is None:
            outputs.append(scaled_dot_product_attention(q[rows], k, v, attn_mask=hidden, scale=scale))
        else:
            outputs.append(eager(query[:, :, rows], k, v, hidden, scale).view(-1, *q.shape[1:3], value.shape[3]))
    return torch.cat(outputs)[:, :, :queries].flatten(1, 2)[None]


@lru_cache(maxsize=4)
def _groups(
    lengths: tuple[int, ...], window: int | None, dtype: torch.dtype, single: bool
) -> list[tuple[slice, int, torch.Tensor]]:
    """Split the sequences into groups that are computed together. All layers of a step use the same groups.

    Args:
        single: if True, each sequence is a group of its own, and the masks are boolean.

    Returns: for each group, the slice of its sequences, the number of keys, and the mask (sequences, 1, 1, keys).
    """
    groups, start = [], 0
    for keys, some in groupby(lengths, rounded_length):
        count = len(list(some))
        size = 1 if single else count
        for first in range(start, start + count, size):
            rows = slice(first, first + size)
            length = torch.tensor(lengths[rows])[:, None]
            position = torch.arange(keys)
            visible = position < length
            if window is not None:
                visible &= position >= length - window
            visible = visible[:, None, None]
            hidden = visible if single else torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, -torch.inf)
            groups.append((rows, keys, hidden))
        start += count
    return groups

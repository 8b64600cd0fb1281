"""Attention for packed sequences (several sequences concatenated into one row), registered with transformers.

A packed batch has shape (1, T) and needs block-diagonal attention. transformers passes a 4-D mask to the attention
function unchanged. Therefore the mask of a packed batch is an int32 tensor of shape (1, 1, 1, sequences) that holds the
lengths of the sequences. An int32 mask (1, 1, 2, sequences) marks prompts in sampling, see `attention_prompts.py`, and
an int64 mask a decoding step, see `attention_decoding.py`. Any other mask has its usual meaning: a boolean mask for a
padded batch, None for one causal sequence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tinkerloop.local.nn.layers.attention_cpu import causal_attention
from tinkerloop.local.nn.layers.attention_cuda import varlen_attention
from tinkerloop.local.nn.layers.attention_decoding import decoding_attention
from tinkerloop.local.nn.layers.attention_prompts import prompt_attention

NAME = "tinkerloop"

MIN_WANTED = 128
"""The sequence length from which `causal_attention` is faster, if about half of the positions are needed."""

BLOCK = 64
"""The number of queries in a block of `_by_blocks`. Sequences of at most two blocks are not split."""
MAX_BLOCKED = 1024
"""The length of the longest sequence for which `_by_blocks` is used."""

_LATER = torch.full((BLOCK, MAX_BLOCKED + BLOCK), -math.inf).triu_(MAX_BLOCKED + 1)
"""The causal mask of all blocks, added to their attention scores to mask later keys.

A block whose first query is at position s uses the columns from MAX_BLOCKED - s on.
"""


def packed_mask(lengths: list[int]) -> torch.Tensor:
    """Return the `attention_mask` of a packed batch: the lengths of its sequences. The tensor stays on the CPU."""
    return torch.tensor(lengths, dtype=torch.int32).view(1, 1, 1, -1)


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # (B, heads, T, D)
    key: torch.Tensor,  # (B, key-value heads, S, D)
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    wanted: Sequence[NDArray[np.int64]] | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """Compute causal attention. All parameters but `wanted` are those that transformers passes to such a function.

    Dropout is never applied, because Tinker trains without it.

    Args:
        wanted: for each packed sequence, the positions whose result is needed; None: all. The results at other
            positions are undefined. It is used only on the CPU.

    Returns: the attention output (B, T, heads, D), and None in place of the attention weights.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    special = softcap is not None or s_aux is not None
    eager = partial(_eager, softcap=softcap, sinks=s_aux) if special else None
    if attention_mask is not None and attention_mask.dtype == torch.int64:
        return decoding_attention(query, key, value, attention_mask, scale, sliding_window, eager), None
    if attention_mask is None or attention_mask.dtype != torch.int32:
        if special:
            return _eager(query, key, value, attention_mask, scale, softcap, s_aux).transpose(1, 2), None
        return sdpa_attention_forward(module, query, key, value, attention_mask, 0.0, scaling, **kwargs)
    grouped = query.shape[1] != key.shape[1]
    rows: list[list[int]] = attention_mask[0, 0].tolist()
    lengths = rows[0]
    if query.device.type == "cuda" and not special:
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        return varlen_attention(q, k, v, lengths, scale, sliding_window)[None], None
    # On a CPU, attention in blocks with float32 takes half the time of torch's kernel with 16-bit numbers.
    dtype, exact = query.dtype, query.is_cpu
    if exact:
        query, key, value = (x.float() for x in (query, key, value))
    if len(rows) == 2:
        return prompt_attention(query, key, value, lengths, rows[1], scale, sliding_window, eager).to(dtype), None
    # Split along positions, the first axis in memory, so that splitting and joining copy at most contiguous rows.
    parts = zip(*(x.transpose(1, 2).split(lengths, 1) for x in (query, key, value)), strict=True)
    outputs = []
    for i, part in enumerate(parts):
        q, k, v = (tensor.transpose(1, 2) for tensor in part)
        length = q.shape[2]
        positions = wanted[i] if wanted is not None and query.requires_grad else None
        band = None
        if sliding_window is not None and length > sliding_window:
            band = _band(length, sliding_window, q.device)
        if special:
            outputs.append(_eager(q, k, v, band, scale, softcap, s_aux))
        elif exact and positions is not None and band is None and length >= MIN_WANTED:
            outputs.append(causal_attention(q, k, v, scale, positions))
        elif exact and band is None and 2 * BLOCK < length <= MAX_BLOCKED:
            outputs.append(_by_blocks(q, k, v, scale))
        else:
            outputs.append(
                scaled_dot_product_attention(
                    q, k, v, attn_mask=band, is_causal=band is None, scale=scale, enable_gqa=grouped
                )
            )
    return torch.cat([output.transpose(1, 2) for output in outputs], dim=1).to(dtype), None


def _band(length: int, window: int, device: torch.device) -> torch.Tensor:
    """Return the mask (1, 1, T, T) of a sliding window: a position sees itself and `window` - 1 earlier ones."""
    i = torch.arange(length, device=device)
    distance = i[:, None] - i[None, :]
    return ((distance >= 0) & (distance < window))[None, None]


def _by_blocks(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    """Compute causal attention one block of queries at a time, with only the keys up to the end of the block.

    This saves work: torch's CPU kernel computes the scores of 512 keys at a time, including masked ones.
    """
    grouped = query.shape[1] != key.shape[1]
    outputs, start = [], 0
    for block in query.split(BLOCK, 2):
        end = start + block.shape[2]
        later = _LATER[: end - start, MAX_BLOCKED - start :][:, :end]
        visible = key[:, :, :end], value[:, :, :end]
        outputs.append(scaled_dot_product_attention(block, *visible, attn_mask=later, scale=scale, enable_gqa=grouped))
        start = end
    return torch.cat(outputs, 2)


def _eager(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Compute attention without a fused kernel, as soft-capped scores (Gemma) and attention sinks (gpt-oss) require."""
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = (query @ key.transpose(2, 3)) * scale  # (B, heads, T, S)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is None:
        rows, columns = scores.shape[-2:]
        mask = torch.ones(rows, columns, dtype=torch.bool, device=scores.device).tril(columns - rows)
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if sinks is not None:  # a learned score per head: part of the softmax, but without a value
        column = sinks.reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1).to(scores.dtype)
        weights = torch.cat([scores, column], dim=-1).softmax(-1, dtype=torch.float32)[..., :-1]
    else:
        weights = scores.softmax(-1, dtype=torch.float32)
    return weights.to(value.dtype) @ value


def register() -> None:
    """Register `attention` with transformers under the name `NAME`. A second call changes nothing."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)

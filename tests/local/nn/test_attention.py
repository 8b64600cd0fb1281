"""Packed attention: a sequence attends only to itself, whichever code path is used for its length."""

from __future__ import annotations

import torch

from tinkerloop.local.nn.layers.attention import BLOCK, MAX_BLOCKED, attention, packed_mask


def test_sequences_of_any_length_get_causal_attention_of_their_own():
    lengths = [1, 2 * BLOCK, 2 * BLOCK + 1, 300, MAX_BLOCKED, MAX_BLOCKED + 1]
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, heads, sum(lengths), 16) for heads in (4, 2, 2)]
    wide = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    narrow = [tensor.detach().float().requires_grad_() for tensor in wide]
    grad = torch.randn(1, sum(lengths), 4, 16, generator=generator, dtype=torch.float64)

    found, _ = attention(torch.nn.Module(), narrow[0], narrow[1], narrow[2], packed_mask(lengths))
    expected = []
    for q, k, v in zip(*(tensor.split(lengths, 2) for tensor in wide), strict=True):
        scores = 16**-0.5 * q @ k.repeat_interleave(2, 1).transpose(2, 3)
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        expected.append(scores.masked_fill(future, -torch.inf).softmax(-1) @ v.repeat_interleave(2, 1))
    exact = torch.cat(expected, 2).transpose(1, 2)
    pairs = zip(
        [found, *torch.autograd.grad(found, narrow, grad.float())],
        [exact, *torch.autograd.grad(exact, wide, grad)],
        strict=True,
    )
    for ours, theirs in pairs:
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)

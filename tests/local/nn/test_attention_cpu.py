"""Attention in blocks equals causal attention, forward and backward, for any choice of wanted positions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinkerloop.local.nn.layers import attention_cpu as causal
from tinkerloop.local.nn.layers.attention_cpu import causal_attention


def written_out(query, key, value, scale: float, at: np.ndarray) -> torch.Tensor:
    """Compute attention in float64 from the whole matrix of scores. Rows that are not wanted are 0."""
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = scale * query @ key.transpose(2, 3)
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    asked = torch.zeros(len(future), 1, dtype=torch.float64).index_fill_(0, torch.from_numpy(at), 1.0)
    return scores.masked_fill(future, -torch.inf).softmax(-1) @ value * asked


def there_and_back(attend, tensors, grad: torch.Tensor) -> list[torch.Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    out = attend(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


@given(
    st.integers(1, 150),
    st.sampled_from([(1, 1), (4, 2), (3, 1)]),
    st.sampled_from([16, 40]),
    st.sampled_from(["all", "some", "one", "last"]),
    st.integers(0, 2**31),
)
def test_it_is_attention_written_out(length, heads, width, who, seed):
    generator = torch.Generator().manual_seed(seed)
    h, shared = heads
    shapes = [(1, h, length, width), (1, shared, length, width), (1, shared, length, 24), (1, h, length, 24)]
    *tensors, grad = (4 * torch.randn(shape, generator=generator) for shape in shapes)
    some = np.union1d(np.flatnonzero(np.random.default_rng(seed).random(length) < 0.4), [length // 2])
    at = {"all": np.arange(length), "some": some, "one": some[:1], "last": np.array([length - 1])}[who]
    scale = width**-0.5
    found = there_and_back(lambda q, k, v: causal_attention(q, k, v, scale, at), tensors, grad)
    wide = [tensor.double() for tensor in tensors]
    expected = there_and_back(lambda q, k, v: written_out(q, k, v, scale, at), wide, grad.double())
    for ours, theirs in zip(found, expected, strict=True):
        # A gradient can be a small difference of dP and dO.O, which are in the hundreds and rounded separately.
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-3 * (1 + float(theirs.abs().max())))


@pytest.mark.parametrize("size", [30.0, 300.0])
def test_scores_too_large_for_exp_are_no_trouble(size):
    q, k, v, grad = (
        torch.randn(1, 2, causal.BLOCK + 9, 16, generator=torch.Generator().manual_seed(0)) for _ in "qkvg"
    )
    found = there_and_back(
        lambda q, k, v: causal_attention(size * q, k, v, 1.0, np.arange(q.shape[2])), (q, k, v), grad
    )
    assert all(tensor.isfinite().all() for tensor in found)

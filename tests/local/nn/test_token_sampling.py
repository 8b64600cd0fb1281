"""The tokens that top-k and top-p leave, and drawing one of them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tinkerloop.local.nn.inputs import Input
from tinkerloop.local.nn.token_sampling import (
    VOCABULARY_BLOCK,
    Continuation,
    SampleRequest,
    _draw,
    _truncated,
    sample_tokens,
)


def kept(probabilities: list[float], top_p: float, top_k: int = -1) -> list[int]:
    """Return the tokens that are left of this distribution."""
    logits = torch.tensor([probabilities]).log()
    left = _truncated(logits, [SimpleNamespace(top_k=top_k, top_p=top_p)])  # type: ignore[list-item]
    return torch.isfinite(left[0]).nonzero().flatten().tolist()


@pytest.mark.parametrize(("top_p", "count"), [(0.2, 1), (0.25, 1), (0.26, 2), (0.5, 2), (0.75, 3), (0.76, 4), (1.0, 4)])
def test_of_equally_probable_tokens_top_p_keeps_the_fewest_that_reach_it(top_p, count):
    assert len(kept([0.25, 0.25, 0.25, 0.25], top_p)) == count


def test_a_tie_below_the_most_probable_token_is_cut_where_the_sum_is_reached():
    assert kept([0.125, 0.5, 0.125, 0.25], 0.75) == [1, 3]
    tied = kept([0.125, 0.5, 0.125, 0.25], 0.875)
    assert tied in ([0, 1, 3], [1, 2, 3])


def test_top_p_counts_what_top_k_leaves():
    assert kept([0.125, 0.5, 0.125, 0.25], 0.6, top_k=2) == [1]
    assert kept([0.125, 0.5, 0.125, 0.25], 0.7, top_k=2) == [1, 3]


@pytest.mark.parametrize("size", [1, 5, VOCABULARY_BLOCK, 3 * VOCABULARY_BLOCK + 7])
def test_each_token_is_drawn_as_often_as_its_probability_says(size):
    """Of evenly spaced numbers u, each token gets its share, with at most one more or one less for each of its ends."""
    logits = torch.randn(size, generator=torch.Generator().manual_seed(size)) * 3
    logits[size // 2 :: 3] = logits[size // 2 :: 3] - 40 if size > 1 else 0.0
    count = 20_000
    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    drawn = torch.bincount(_draw(logits.expand(count, size), u), minlength=size)
    expected = logits.double().softmax(0) * count
    assert float((drawn - expected).abs().max()) <= 1.01


@pytest.mark.parametrize("excluded", [slice(0, 300), slice(-300, None), slice(100, 700)])
def test_a_token_of_no_probability_is_never_drawn(excluded):
    logits = torch.zeros(800)
    logits[excluded] = -torch.inf
    u = torch.tensor([0.0, 1e-17, 0.25, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert torch.isfinite(logits[_draw(logits.expand(len(u), 800), u)]).all()


def test_a_draw_does_not_depend_on_the_other_rows():
    generator = torch.Generator().manual_seed(0)
    logits, u = torch.randn(7, 1000, generator=generator), torch.rand(7, generator=generator, dtype=torch.float64)
    alone = [int(_draw(logits[i : i + 1], u[i : i + 1])) for i in range(7)]
    assert _draw(logits, u).tolist() == alone


def test_the_most_likely_tokens_do_not_depend_on_how_many_other_rows_report():
    """In 16 bits many logits are equal."""
    logits = torch.randn(2, 300, generator=torch.Generator().manual_seed(0)).mul(2).round()

    def most_likely(*numbers: int) -> list[int]:
        """Return the most likely tokens of the first row, when the rows report these numbers of tokens."""
        rows = []
        for topk in numbers:
            request = SampleRequest(Input(np.ones(1, np.int64)), 1, 1, 1.0, -1, 1.0, 0, frozenset(), topk=topk)
            rows.append(Continuation(request, 0, np.random.default_rng(0)))
        sample_tokens(logits[: len(rows)], rows)
        return rows[0].topk[0][0]

    assert all(most_likely(k, 20) == most_likely(k) for k in range(1, 20))

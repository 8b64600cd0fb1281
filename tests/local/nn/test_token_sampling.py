"""The tokens that top-k and top-p leave."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tinkerloop.local.nn.token_sampling import _truncated


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

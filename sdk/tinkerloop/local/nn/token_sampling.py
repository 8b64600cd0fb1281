"""Sampling of the next token with temperature, top-k and top-p, and the classes for requests and continuations.

Reported log-probabilities are those of the full softmax at temperature 1, for any sampling parameters. So they are the
same as in training on the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from tinkerloop.local.nn.inputs import Input

COLDEST = 1e-30
"""Positive temperatures below this are raised to it, because float32 would divide by 0.

Only the most likely token is drawn at such temperatures, so this does not change the result.
"""


VOCABULARY_BLOCK = 256
"""The number of tokens in a block of the vocabulary, of which one is drawn before the token."""


@dataclass(frozen=True)
class SampleRequest:
    """The arguments of one `sample` call, which generates `num_samples` independent continuations of one prompt."""

    prompt: Input
    num_samples: int
    max_tokens: int
    temperature: float
    top_k: int  # -1: off
    top_p: float  # 1: off
    seed: int
    stop_ids: frozenset[int]
    stop_strings: tuple[str, ...] = ()
    topk: int = 0
    """The number of most likely tokens to report for every sampled token; 0: none."""
    seeded: bool = False
    """True if the caller chose the seed. The result then has the same bits whatever else is sampled."""
    on_token: Callable[[int, int], None] | None = None
    """A function that is called with (index of the continuation, token) as soon as a token is drawn."""


@dataclass
class Continuation:
    """One continuation of a prompt: the tokens generated so far, and why it stopped (None: it is still generated)."""

    request: SampleRequest
    sample: int
    draws: np.random.Generator
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    topk: list[tuple[list[int], list[float]]] = field(default_factory=list)
    stop_reason: str | None = None


def sample_tokens(logits: torch.Tensor, rows: Sequence[Continuation]) -> list[int]:
    """Draw and return the next token of every continuation, given the logits (rows, vocabulary).

    The log-probability of each token, and the most likely tokens if requested, are appended to the continuation.
    """
    device = logits.device
    # Every operation on a whole row must treat each row separately, or the bits would depend on the number of rows.
    # `logsumexp` does not: torch divides the sum over threads if there is only one row.
    log_p = logits.log_softmax(1)
    chosen = torch.empty(len(rows), dtype=torch.int64, device=device)
    random = [i for i, row in enumerate(rows) if row.request.temperature > 0]
    if len(random) < len(rows):
        greedy = [i for i, row in enumerate(rows) if row.request.temperature <= 0]
        chosen[greedy] = logits[greedy].argmax(1)
    if random:
        requests = [rows[i].request for i in random]
        temperature = torch.tensor([max(request.temperature, COLDEST) for request in requests], device=device)
        scaled = logits if len(random) == len(rows) else logits[random]
        scaled = scaled / temperature[:, None]
        if any(request.top_k > 0 or request.top_p < 1 for request in requests):
            scaled = _truncated(scaled, requests)
        u = torch.tensor([rows[i].draws.random() for i in random], dtype=torch.float64, device=device)
        chosen[random] = _draw(scaled, u)
    logprobs = log_p.gather(1, chosen[:, None])[:, 0].tolist()
    for i, row in enumerate(rows):
        row.logprobs.append(logprobs[i])
        if row.request.topk:  # for each row alone, because the order of equal values depends on their number
            best = log_p[i].topk(row.request.topk)
            row.topk.append((best.indices.tolist(), best.values.tolist()))
    return chosen.tolist()


def _draw(logits: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Return for each row of logits (rows, vocabulary) a token, by the inverse of the cumulative distribution at u.

    The vocabulary is divided into blocks. First a block is drawn by its total probability, then a token of it, with
    what u leaves. This takes a tenth of the time of a cumulative sum over the whole vocabulary.

    Args:
        u: (rows,), float64, a random number in [0, 1) for each row.
    """
    rows, size = logits.shape
    p = logits.new_empty(rows, -(-size // VOCABULARY_BLOCK) * VOCABULARY_BLOCK)
    p[:, size:] = -torch.inf
    torch.sub(logits, logits.amax(1, keepdim=True), out=p[:, :size])
    p = p.exp_().view(rows, -1, VOCABULARY_BLOCK)
    block, rest = _inverse_cdf(p.sum(2).double(), u)
    inside, _ = _inverse_cdf(p[torch.arange(rows, device=p.device), block].double(), rest)
    return block * VOCABULARY_BLOCK + inside


def _inverse_cdf(p: torch.Tensor, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return for each row of p (rows, n) the first index whose cumulative probability exceeds u.

    p need not add up to 1. The second result is the share of the index's own probability that u reaches, in [0, 1).
    """
    cumulative = p.cumsum(1)
    target = (u * cumulative[:, -1])[:, None]
    # Rounding could select an index after the last one that has a probability above 0.
    last = p.shape[1] - 1 - (p > 0).flip(1).int().argmax(1, keepdim=True)
    index = torch.minimum(torch.searchsorted(cumulative, target, right=True), last)
    mass = p.gather(1, index)
    share = (target - (cumulative.gather(1, index) - mass)) / mass
    return index[:, 0], share[:, 0].clamp(0, 1 - 2**-53)


def _truncated(logits: torch.Tensor, requests: Sequence[SampleRequest]) -> torch.Tensor:
    """Return the logits with -inf for the tokens that top-k and top-p exclude.

    In each row, top-k keeps the `top_k` most likely tokens. Of these, top-p keeps the smallest number of most likely
    tokens whose total probability is at least `top_p`.
    """
    ordered, order = logits.sort(1, descending=True)
    rank = torch.arange(logits.shape[1], device=logits.device)
    k = torch.tensor([r.top_k if r.top_k > 0 else logits.shape[1] for r in requests], device=logits.device)
    ordered = ordered.masked_fill(rank[None] >= k[:, None], -torch.inf)
    p = ordered.softmax(1, dtype=torch.float64)
    before = p.cumsum(1) - p
    top_p = torch.tensor([request.top_p for request in requests], dtype=torch.float64, device=logits.device)
    outside = (before >= top_p[:, None]) & (top_p < 1)[:, None]
    outside[:, 0] = False
    return torch.full_like(logits, -torch.inf).scatter_(1, order, ordered.masked_fill(outside, -torch.inf))

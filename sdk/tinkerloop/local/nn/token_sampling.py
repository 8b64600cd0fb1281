"""Sampling of the next token with temperature, top-k and top-p, and the requests and continuations it works on.

Reported log-probabilities are of the full softmax at temperature 1, whatever the sampling parameters: the same numbers
as the trainer's for the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from tinkerloop.local.nn.inputs import Input

COLDEST = 1e-30
"""The lowest temperature used: below it float32 would divide by 0, and only the likeliest token is drawn anyway."""


@dataclass(frozen=True)
class SampleRequest:
    """One `sample` call: `num_samples` independent continuations of one prompt."""

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
    """The number of alternatives to report for every sampled token."""
    on_token: Callable[[int, int], None] | None = None
    """A function that is called with (sample, token) for each token as it is drawn."""


@dataclass
class Continuation:
    """One continuation, while it is generated and after."""

    request: SampleRequest
    sample: int
    draws: np.random.Generator
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    topk: list[tuple[list[int], list[float]]] = field(default_factory=list)
    stop_reason: str | None = None


def sample_tokens(logits: torch.Tensor, rows: Sequence[Continuation]) -> list[int]:
    """Draw the next token of every row from logits (rows, vocabulary), and append its log-probability to the row."""
    device = logits.device
    log_z = logits.logsumexp(1)
    chosen = logits.argmax(1)
    random = [i for i, row in enumerate(rows) if row.request.temperature > 0]
    if random:
        requests = [rows[i].request for i in random]
        temperature = torch.tensor([max(request.temperature, COLDEST) for request in requests], device=device)
        scaled = logits if len(random) == len(rows) else logits[random]
        scaled = scaled / temperature[:, None]
        if any(request.top_k > 0 or request.top_p < 1 for request in requests):
            scaled = _truncated(scaled, requests)
        u = torch.tensor([rows[i].draws.random() for i in random], dtype=torch.float64, device=device)
        chosen[random] = _inverse_cdf(scaled.softmax(1, dtype=torch.float64), u)
    logprobs = (logits.gather(1, chosen[:, None])[:, 0] - log_z).tolist()
    width = max(row.request.topk for row in rows)
    best = (logits - log_z[:, None]).topk(width, dim=1) if width else None
    for i, row in enumerate(rows):
        row.logprobs.append(logprobs[i])
        if best is not None and row.request.topk:
            k = row.request.topk
            row.topk.append((best.indices[i, :k].tolist(), best.values[i, :k].tolist()))
    return chosen.tolist()


def _inverse_cdf(p: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Return the first token whose cumulative probability exceeds u, a uniform number in [0, 1)."""
    cumulative = p.cumsum(1)
    chosen = torch.searchsorted(cumulative, (u * cumulative[:, -1])[:, None], right=True)[:, 0]
    # Rounding could lead past the last token with a probability above 0.
    last = p.shape[1] - 1 - (p > 0).flip(1).int().argmax(1)
    return torch.minimum(chosen, last)


def _truncated(logits: torch.Tensor, requests: Sequence[SampleRequest]) -> torch.Tensor:
    """Set logits to -inf outside each row's top k, then outside its fewest tokens with probability >= top_p."""
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

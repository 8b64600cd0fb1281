"""Batched generation with a key-value cache, and the scoring of prompts.

All requests that wait for the same weights decode together, each with its own length, temperature and stop rules.
Log-probabilities are always those of the full softmax at temperature 1, whatever the draw was made from: the numbers
the trainer computes for the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from tinkerloop.local.inputs import Batch, Input
from tinkerloop.local.vision import images_of

if TYPE_CHECKING:
    from tinkerloop.local.model import Model

MAX_ROWS = 256
"""Sequences decoded at once."""
COLDEST = 1e-30
"""Below this temperature only the likeliest token has any probability, and float32 would divide by 0."""
MAX_PREFILL = 16384
"""Prompt tokens (padding included) in one prefill."""


@dataclass(frozen=True)
class Request:
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
    """How many alternatives to report at every sampled token."""
    on_token: Callable[[int, int], None] | None = None
    """Called with (sample, token) as soon as it is drawn."""


@dataclass
class Continuation:
    """One continuation under way, and its answer when done."""

    request: Request
    sample: int
    draws: np.random.Generator
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    topk: list[tuple[list[int], list[float]]] = field(default_factory=list)
    stop_reason: str | None = None


def generate(model: Model, requests: Sequence[Request]) -> list[list[Continuation]]:
    """The continuations of every request, with whatever weights are bound."""
    answers = [
        [Continuation(request, j, np.random.default_rng([request.seed, j])) for j in range(request.num_samples)]
        for request in requests
    ]
    # Prompts of similar length share a batch, for little padding.
    waiting = sorted((s for answer in answers for s in answer), key=lambda s: len(s.request.prompt))
    while waiting:
        longest = len(waiting[min(MAX_ROWS, len(waiting)) - 1].request.prompt)
        rows = min(MAX_ROWS, max(1, MAX_PREFILL // longest))
        with torch.no_grad():
            _decode(model, waiting[:rows])
        waiting = waiting[rows:]
    return answers


def _decode(model: Model, rows: list[Continuation]) -> None:
    """Run these sequences to their ends."""
    cache, mask, hidden = prefill(model, [row.request.prompt for row in rows])
    while True:
        tokens = _draw(model.head.logits(hidden), rows)
        done = [_advance(row, token, model) for row, token in zip(rows, tokens, strict=True)]
        if all(done):
            return
        alive = [i for i, ended in enumerate(done) if not ended]
        if len(alive) < len(rows):
            index = _select(cache, alive, model.device)
            mask = mask[index]
            rows, tokens = [rows[i] for i in alive], [tokens[i] for i in alive]
        mask, hidden = step(model, cache, mask, tokens, [row.request.prompt.shift for row in rows])


def step(
    model: Model, cache: DynamicCache, mask: torch.Tensor, tokens: Sequence[int], shifts: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Append one token to every sequence: the longer mask, and the states (sequences, H) at those tokens.

    `shifts` are the prompts' (see `Input.shift`).
    """
    mask = torch.cat([mask, mask.new_ones(len(tokens), 1)], dim=1)
    output = model.trunk(
        input_ids=torch.tensor(tokens, device=model.device)[:, None],
        attention_mask=mask,
        position_ids=mask.sum(1, keepdim=True) - 1 + torch.tensor(shifts, device=model.device)[:, None],
        past_key_values=cache,
        use_cache=True,
    )
    return mask, output.last_hidden_state[:, -1]


def prefill(model: Model, wanted: Sequence[Input]) -> tuple[DynamicCache, torch.Tensor, torch.Tensor]:
    """Run each distinct prompt once, padded on the left; then one cache row, mask row and state per wanted prompt."""
    prompts: list[Input] = []
    which: list[int] = []
    for prompt in wanted:
        if not prompts or prompt is not prompts[-1]:
            prompts.append(prompt)
        which.append(len(prompts) - 1)
    width = max(len(prompt) for prompt in prompts)
    tokens = np.zeros((len(prompts), width), dtype=np.int64)
    mask = np.zeros((len(prompts), width), dtype=np.int64)
    for i, prompt in enumerate(prompts):
        tokens[i, width - len(prompt) :] = prompt.tokens
        mask[i, width - len(prompt) :] = 1
    attention_mask = torch.from_numpy(mask).to(model.device)
    positions = (mask.cumsum(1) - 1).clip(min=0)  # (prompts, width)
    if any(prompt.positions is not None for prompt in prompts):
        positions = np.repeat(positions[None], 3, axis=0)
        for i, prompt in enumerate(prompts):
            if prompt.positions is not None:
                positions[:, i, width - len(prompt) :] = prompt.positions
    cache = DynamicCache(config=model.module.config.get_text_config())
    output = model.trunk(
        input_ids=torch.from_numpy(tokens).to(model.device),
        attention_mask=attention_mask,
        position_ids=torch.from_numpy(positions).to(model.device),
        past_key_values=cache,
        use_cache=True,
        **images_of([picture for prompt in prompts for picture in prompt.pictures], model.device),
    )
    hidden = output.last_hidden_state[:, -1]
    if len(prompts) < len(wanted):
        index = _select(cache, which, model.device)
        attention_mask, hidden = attention_mask[index], hidden[index]
    return cache, attention_mask, hidden


def _select(cache: DynamicCache, rows: Sequence[int], device: torch.device) -> torch.Tensor:
    """Make these rows the cache's, in this order; returns them as an index."""
    index = torch.tensor(rows, device=device)
    # batch_select_indices would say what is meant, but layers with a recurrent state lack it
    cache.reorder_cache(cast(torch.LongTensor, index))
    return index


def _draw(logits: torch.Tensor, rows: Sequence[Continuation]) -> list[int]:
    """The next token of every row; appends its log-probability (and alternatives) to the row."""
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
    found = (logits.gather(1, chosen[:, None])[:, 0] - log_z).tolist()
    width = max(row.request.topk for row in rows)
    best = (logits - log_z[:, None]).topk(width, dim=1) if width else None
    for i, row in enumerate(rows):
        row.logprobs.append(found[i])
        if best is not None and row.request.topk:
            k = row.request.topk
            row.topk.append((best.indices[i, :k].tolist(), best.values[i, :k].tolist()))
    return chosen.tolist()


def _inverse_cdf(p: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """The first token whose cumulative probability exceeds u in [0, 1): one uniform number is one draw."""
    cumulative = p.cumsum(1)
    chosen = torch.searchsorted(cumulative, (u * cumulative[:, -1])[:, None], right=True)[:, 0]
    # Rounding at the very end could step past the last token that has any probability.
    last = p.shape[1] - 1 - (p > 0).flip(1).int().argmax(1)
    return torch.minimum(chosen, last)


def _truncated(logits: torch.Tensor, requests: Sequence[Request]) -> torch.Tensor:
    """-inf outside each row's top k, then outside its nucleus: the fewest tokens with probability >= top_p."""
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


def _advance(row: Continuation, token: int, model: Model) -> bool:
    """Append the token; True if that ends the sequence. What stopped it is kept."""
    row.tokens.append(token)
    request = row.request
    if request.on_token is not None:
        request.on_token(row.sample, token)
    if token in request.stop_ids or (request.stop_strings and _ends_in_stop(row, model)):
        row.stop_reason = "stop"
    elif len(row.tokens) >= request.max_tokens:
        row.stop_reason = "length"
    return row.stop_reason is not None


def _ends_in_stop(row: Continuation, model: Model) -> bool:
    strings = row.request.stop_strings
    # A character takes at most 4 tokens (its bytes); earlier text was searched when it was last.
    tail = 4 * max(len(string) for string in strings) + 8
    text = model.tokenizer.decode(row.tokens[-tail:])
    return any(string in text for string in strings)


def score_prompt(
    model: Model,
    prompt: Input,
    targets: NDArray[np.int64],
    topk: int = 0,
) -> tuple[NDArray[np.float32], NDArray[np.int32] | None, NDArray[np.float32] | None]:
    """Log-probabilities of `targets` (N-1, K), row i given prompt[: i + 1], with whatever weights are bound.

    With `topk`, also the ids and log-probabilities (N-1, topk) of the likeliest next tokens.
    """
    rows = torch.arange(len(targets), device=model.device)
    target = torch.from_numpy(targets).to(model.device)
    with torch.no_grad():
        hidden = model.hidden(Batch.of([prompt], model.device))
        found = model.head.logprobs(hidden, target, rows).cpu().numpy()
        if not topk:
            return found, None, None
        ids, values = [], []
        for chunk, _ in model.head.chunks([len(rows)]):
            logits = model.head.logits(hidden[chunk])
            best = logits.topk(topk, dim=1)
            ids.append(best.indices.int().cpu())
            values.append((best.values - logits.logsumexp(1, keepdim=True)).cpu())
    return found, torch.cat(ids).numpy(), torch.cat(values).numpy()

"""Batched generation with a key-value cache, and the scoring of prompts.

All requests that wait for the same weights decode together, each with its own length, temperature and stop rules.
Log-probabilities are always those of the full softmax at temperature 1, whatever the draw was made from: the numbers
the trainer computes for the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from tinkerloop.local.nn.inputs import Input, PackedBatch
from tinkerloop.local.nn.token_sampling import Continuation, SampleRequest, sample_tokens
from tinkerloop.local.nn.vision import image_tensors

if TYPE_CHECKING:
    from tinkerloop.local.nn.model import Model

MAX_ROWS = 256
"""Sequences decoded at once."""
MAX_PREFILL = 16384
"""Prompt tokens (padding included) in one prefill."""


def generate(model: Model, requests: Sequence[SampleRequest]) -> list[list[Continuation]]:
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
        tokens = sample_tokens(model.head.logits(hidden), rows)
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
        **image_tensors([image for prompt in prompts for image in prompt.images], model.device),
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
        hidden = model.hidden(PackedBatch.of([prompt], model.device))
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

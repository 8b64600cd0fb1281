"""Batched generation with a key-value cache, and log-probabilities of prompt tokens.

Requests that use the same weights are decoded together. Each has its own length, temperature and stop conditions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from tinkerloop.local.nn.inputs import Input, PackedBatch
from tinkerloop.local.nn.prompt_passes import Prompt, compute_prompts
from tinkerloop.local.nn.row_blocks import block_sizes, decode, smallest
from tinkerloop.local.nn.sequence_cache import SequenceCache
from tinkerloop.local.nn.stop_strings import ends_in_stop
from tinkerloop.local.nn.token_sampling import Continuation, SampleRequest, sample_tokens
from tinkerloop.local.nn.vision import image_tensors

if TYPE_CHECKING:
    from tinkerloop.local.nn.model import Model

MAX_ROWS = 256
"""The maximum number of sequences that are decoded together."""
MAX_PREFILL = 16384
"""The maximum number of prompt tokens in one prefill batch, padding included."""


def generate(model: Model, requests: Sequence[SampleRequest]) -> list[list[Continuation]]:
    """Return the continuations of each request, generated with the model's active weights (see `Model.bind`).

    On the CPU, the result of a request with `seeded` has the same bits whatever the other requests are.
    """
    answers = [
        [Continuation(request, j, np.random.default_rng([request.seed, j])) for j in range(request.num_samples)]
        for request in requests
    ]
    if not requests:  # calls that only score prompts
        return []
    with torch.no_grad():
        if sizes := block_sizes(model):
            _in_blocks(model, [row for answer in answers for row in answer], sizes)
            return answers
        together: list[Continuation] = []
        for request, answer in zip(requests, answers, strict=True):
            if request.seeded and model.device.type == "cpu":
                _padded(model, answer)
            else:
                together += answer
        _padded(model, together)
    return answers


def _in_blocks(model: Model, rows: list[Continuation], sizes: tuple[int, ...]) -> None:
    """Generate the continuations in blocks of these numbers of rows.

    When a continuation is complete, the next one takes its place.
    """
    if not any(row.request.seeded for row in rows):
        sizes = tuple(sorted({1, *sizes}))  # one row alone takes the least time, even if its bits differ
    # Sorted by length, because neighbours of similar length share a call in `decoding_attention`. Equal prompts become
    # neighbours, too.
    waiting = deque(sorted(rows, key=lambda row: (len(row.request.prompt), _prompt_key(row))))
    size = smallest(sizes, len(waiting))
    cache, places = SequenceCache(size), cast(list[Continuation | None], [None] * size)
    hidden = torch.zeros(size, model.head.layer.in_features, dtype=model.dtype)
    while True:
        if waiting and None in places:
            _fill(model, cache, places, waiting, hidden, sizes)
        alive = [i for i, row in enumerate(places) if row is not None]
        logits = model.head.logits(hidden)
        active = [row for row in places if row is not None]
        drawn = sample_tokens(logits if len(alive) == len(logits) else logits[alive], active)
        tokens = torch.zeros(len(places), dtype=torch.int64)
        for i, row, token in zip(alive, active, drawn, strict=True):
            tokens[i] = token
            if _advance(row, token, model):
                places[i] = None
        alive = [i for i in alive if places[i] is not None]
        if not alive and not waiting:
            return
        size = smallest(sizes, len(alive) + len(waiting))
        if size < len(places):
            cache.select(alive, size)
            unused = [None] * (size - len(alive))
            tokens = torch.cat([tokens[alive], tokens.new_zeros(len(unused))])
            places, alive = [*(places[i] for i in alive), *unused], list(range(len(alive)))
        shifts = [0 if row is None else row.request.prompt.shift for row in places]
        hidden = decode(model, cache, alive, tokens, shifts) if alive else hidden[:size]


def _fill(
    model: Model,
    cache: SequenceCache,
    places: list[Continuation | None],
    waiting: deque[Continuation],
    hidden: torch.Tensor,
    sizes: tuple[int, ...],
) -> None:
    """Give the unused places to the next continuations, and compute their prompts, equal ones once.

    The hidden states at the last tokens of the prompts are written to `hidden` (places, H).
    """
    unused = deque(i for i, row in enumerate(places) if row is None)
    prompts: list[Prompt] = []
    key = None
    while unused and waiting:
        row = places[unused[0]] = waiting.popleft()
        if prompts and _prompt_key(row) == key:
            prompts[-1].rows.append(unused.popleft())
        else:
            prompts.append(Prompt(row.request.prompt, [unused.popleft()]))
            key = _prompt_key(row)
    compute_prompts(model, cache, prompts, hidden, sizes)


def _prompt_key(row: Continuation) -> tuple[bytes, int]:
    """Return a key that is equal for continuations of the same prompt."""
    prompt = row.request.prompt
    return prompt.tokens.tobytes(), id(prompt) if prompt.images else 0


def _padded(model: Model, rows: list[Continuation]) -> None:
    """Generate the continuations together, with prompts padded to equal lengths.

    Used where `block_sizes` finds no size. The bits of each continuation depend on the others.
    """
    # Sorted by prompt length: prompts of similar length share a batch, so there is little padding.
    waiting = sorted(rows, key=lambda row: len(row.request.prompt))
    while waiting:
        longest = len(waiting[min(MAX_ROWS, len(waiting)) - 1].request.prompt)
        count = min(MAX_ROWS, max(1, MAX_PREFILL // longest))
        _decode(model, waiting[:count])
        waiting = waiting[count:]


def _decode(model: Model, rows: list[Continuation]) -> None:
    """Generate tokens until each of these continuations has met one of its stop conditions."""
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
    """Append one token to every sequence and run the model on these tokens.

    Args:
        tokens: the token to append to each sequence.
        shifts: the `Input.shift` of each sequence's prompt.

    Returns: the mask with one more column, and the hidden states (sequences, H) at the appended tokens.
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


def prefill(model: Model, requested: Sequence[Input]) -> tuple[DynamicCache, torch.Tensor, torch.Tensor]:
    """Run the model on the requested prompts, padded on the left.

    If the same prompt is requested several times in succession, the model runs on it only once.

    Returns: the key-value cache, the attention mask and the hidden states at the last token of each prompt. Each has
    one row for every requested prompt.
    """
    prompts: list[Input] = []
    row_of_request: list[int] = []
    for prompt in requested:
        if not prompts or prompt is not prompts[-1]:
            prompts.append(prompt)
        row_of_request.append(len(prompts) - 1)
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
    if len(prompts) < len(requested):
        index = _select(cache, row_of_request, model.device)
        attention_mask, hidden = attention_mask[index], hidden[index]
    return cache, attention_mask, hidden


def _select(cache: DynamicCache, rows: Sequence[int], device: torch.device) -> torch.Tensor:
    """Reorder the cache so that it holds exactly these rows, in this order. Return `rows` as a tensor."""
    index = torch.tensor(rows, device=device)
    # `batch_select_indices` would do the same, but cache layers with a recurrent state do not have it.
    cache.reorder_cache(cast(torch.LongTensor, index))
    return index


def _advance(row: Continuation, token: int, model: Model) -> bool:
    """Append `token` to the continuation and set its stop reason if it is complete. Return True if it is complete."""
    row.tokens.append(token)
    request = row.request
    if request.on_token is not None:
        request.on_token(row.sample, token)
    if token in request.stop_ids or (request.stop_strings and ends_in_stop(row, model.text_after)):
        row.stop_reason = "stop"
    elif len(row.tokens) >= request.max_tokens:
        row.stop_reason = "length"
    return row.stop_reason is not None


def score_prompt(
    model: Model,
    prompt: Input,
    targets: NDArray[np.int64],
    topk: int = 0,
) -> tuple[NDArray[np.float32], NDArray[np.int32] | None, NDArray[np.float32] | None]:
    """Compute log-probabilities of given tokens after every position of a prompt, with the model's active weights.

    Args:
        targets: token ids (N-1, K). Row i holds the tokens whose log-probabilities after prompt[: i + 1] are wanted.
        topk: the number of most likely next tokens to report for every row; 0: none.

    Returns: the log-probabilities of `targets` (N-1, K), then the ids and the log-probabilities (N-1, topk) of the
    most likely next tokens. The last two are None if `topk` is 0.
    """
    rows = torch.arange(len(targets), device=model.device)
    target = torch.from_numpy(targets).to(model.device)
    with torch.no_grad():
        hidden = model.hidden(PackedBatch.of([prompt], model.device))
        logprobs = model.head.logprobs(hidden, target, rows).cpu().numpy()
        if not topk:
            return logprobs, None, None
        ids, values = [], []
        for chunk, _ in model.head.chunks([len(rows)]):
            logits = model.head.logits(hidden[chunk])
            best = logits.topk(topk, dim=1)
            ids.append(best.indices.int().cpu())
            values.append((best.values - logits.logsumexp(1, keepdim=True)).cpu())
    return logprobs, torch.cat(ids).numpy(), torch.cat(values).numpy()

"""Computation of prompts before their continuations: several in one pass, and long ones in several passes.

Each pass has a number of tokens for which the bits of a prompt do not depend on the others (see
`row_blocks.prompt_sizes`), and begins inside a prompt only at a multiple of `BLOCK`. So the result is the same, bit for
bit, however prompts are divided over passes, and whether or not the start of a prompt is known from an earlier one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from tinkerloop.local.nn.inputs import Input, PackedBatch
from tinkerloop.local.nn.layers.attention_prompts import BLOCK
from tinkerloop.local.nn.row_blocks import prompt_sizes, smallest
from tinkerloop.local.nn.sequence_cache import SequenceCache

if TYPE_CHECKING:
    from tinkerloop.local.nn.model import Model


@dataclass
class Prompt:
    """A prompt, the rows of the cache that begin with it, and how many of its tokens are computed."""

    input: Input
    rows: list[int]
    done: int = 0

    def __len__(self) -> int:
        return len(self.input)


@dataclass(frozen=True)
class _Part:
    """The tokens `start` to `stop - 1` of a prompt."""

    prompt: Prompt
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def is_last(self) -> bool:
        return self.stop == len(self.prompt)


def compute_prompts(
    model: Model, cache: SequenceCache, prompts: Sequence[Prompt], hidden: torch.Tensor, sizes: tuple[int, ...]
) -> None:
    """Fill the rows of the cache with these prompts.

    Args:
        hidden: (rows of the cache, H), to which the hidden states at the last tokens of the prompts are written.
        sizes: the numbers of rows that the last layer may compute.
    """
    totals = prompt_sizes(model)
    waiting: deque[Prompt] = deque()
    for prompt in prompts:
        if totals and not prompt.input.images:
            waiting.append(prompt)
        else:  # alone, in one pass
            batch, active = PackedBatch.of([prompt.input], model.device), _mask([len(prompt) - 1], len(prompt))
            _compute(model, cache, [_Part(prompt, 0, len(prompt))], batch, active, hidden)
    while waiting:
        parts = _next_parts(model, cache, waiting, totals[-1], sizes[-1])
        ends = np.cumsum([len(part) for part in parts])
        last = [int(end) - 1 for part, end in zip(parts, ends, strict=True) if part.is_last]
        count = smallest(sizes, len(last))
        total = smallest(totals, max(int(ends[-1]), count))
        # The last layer computes `count` rows: those whose result is needed, and as many others as are missing.
        others = (i for i in range(total) if i not in last)
        active = _mask([*last, *(next(others) for _ in range(count - len(last)))], total)
        _compute(model, cache, parts, _packed(parts, total), active, hidden)
        for part in parts:
            if part.is_last:
                row = part.prompt.rows[0]
                model.prefixes.add(part.prompt.input.tokens, lambda start, row=row: cache.block(row, start))


def _next_parts(
    model: Model, cache: SequenceCache, waiting: deque[Prompt], most_tokens: int, most_parts: int
) -> list[_Part]:
    """Take the parts of the next pass from the prompts that wait."""
    parts: list[_Part] = []
    room = most_tokens
    while waiting and len(parts) < most_parts:
        prompt = waiting[0]
        if not prompt.done:
            for block in model.prefixes.find(prompt.input.tokens):
                cache.put(prompt.rows[0], prompt.done, block)
                prompt.done += BLOCK
        rest = len(prompt) - prompt.done
        count = rest if rest <= room else room // BLOCK * BLOCK
        if not count:
            break
        parts.append(_Part(prompt, prompt.done, prompt.done + count))
        prompt.done += count
        room -= count
        if prompt.done == len(prompt):
            waiting.popleft()
    return parts


def _packed(parts: Sequence[_Part], total: int) -> PackedBatch:
    """Pack parts into one row, filled up to `total` tokens with a sequence of zeros."""
    lengths = [len(part) for part in parts]
    tokens, positions = np.zeros((2, total), np.int64)
    end = 0
    for part in parts:
        place = slice(end, end + len(part))
        tokens[place] = part.prompt.input.tokens[part.start : part.stop]
        positions[place] = np.arange(part.start, part.stop)
        end += len(part)
    if end < total:
        lengths.append(total - end)
    return PackedBatch(lengths, torch.from_numpy(tokens)[None], torch.from_numpy(positions)[None])


def _compute(
    model: Model,
    cache: SequenceCache,
    parts: Sequence[_Part],
    batch: PackedBatch,
    active: torch.Tensor,
    hidden: torch.Tensor,
) -> None:
    """Run the model on parts of prompts. Copy the prompts that it completes to their rows."""
    places = [(part.prompt.rows[0], part.start, len(part)) for part in parts]
    mask = cache.fill(places, padding=sum(batch.lengths[len(parts) :]))
    with model.replicas[0].restrict_to(active):
        states = model.replicas[0].hidden(batch, cache, mask)
    end = 0
    for part in parts:
        end += len(part)
        if part.is_last:
            hidden[part.prompt.rows] = states[end - 1]
            cache.copy(part.prompt.rows[0], part.prompt.rows[1:])


def _mask(places: Sequence[int], length: int) -> torch.Tensor:
    mask = torch.zeros(length, dtype=torch.bool)
    mask[list(places)] = True
    return mask

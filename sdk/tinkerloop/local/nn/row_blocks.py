"""The numbers of rows with which a model samples, so that the bits of a row do not depend on the other rows.

BLAS chooses its kernel by the shape of a product, and kernels sum in different orders. A pass over 3 rows and a pass
over 30 may therefore give one row different bits. But the bits of a row do not depend on the contents of other rows,
and most processors have kernels in which they do not depend on the row's place either. Which numbers of rows have
equal bits is measured, because it depends on the processor, the number of threads and the shapes of the weights.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from tinkerloop.local.nn.inputs import Input, PackedBatch
from tinkerloop.local.nn.layers.attention_prompts import BLOCK
from tinkerloop.local.nn.layers.experts import ExpertWeights
from tinkerloop.local.nn.sequence_cache import SequenceCache

if TYPE_CHECKING:
    from tinkerloop.local.nn.model import Model

STANDARD = 16
"""Every usable number of rows must give the same bits as this one."""
SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
"""The numbers of rows that are tried."""
TOKENS = 3
"""The number of tokens that the trial appends to each sequence, one after another.

The sequences have a common start of `BLOCK` tokens: with few keys, hardly any sum of attention depends on its order.
"""

PROMPT_TOKENS = tuple(range(32, 257, 32))
"""The numbers of tokens that are tried for a pass over several prompts. All must give the same bits as the first."""
TRIED_PROMPT = 13
"""The length of a prompt. Each of these passes computes copies of it, one after another."""


def block_sizes(model: Model) -> tuple[int, ...]:
    """Return the numbers of rows, ascending, in which every row has the same bits at any place and beside any others.

    The result is empty if there are none: on a GPU, in a model with experts (whose products depend on how many rows
    choose the same expert), and in a model whose sequences cannot be packed. It is measured once for each kind of
    adapter and number of threads, with the active weights.
    """
    if model.device.type != "cpu" or not model.packs or _has_experts(model):
        return ()
    key = (torch.get_num_threads(), model.trained)
    if model.block_sizes.get(key) == ():
        model.unpack()  # they are packed if there are sizes for another number of threads, with which it sampled before
        return ()
    model.pack()
    if key not in model.block_sizes:
        with _one_layer_of_each_kind(model):
            model.block_sizes[key] = _measure(model)
        if not model.block_sizes[key]:
            model.unpack()
    return model.block_sizes[key]


def prompt_sizes(model: Model) -> tuple[int, ...]:
    """Return the numbers of tokens, ascending, with which short prompts can be computed in one pass.

    In a pass of such a length, a prompt has the same bits at any place and beside any others. The result is empty if
    there are none, and where `block_sizes` is empty. It is measured once for each kind of adapter and number of
    threads, with the active weights.
    """
    if not block_sizes(model):
        return ()
    key = (torch.get_num_threads(), model.trained)
    if key not in model.prompt_sizes:
        with _one_layer_of_each_kind(model):
            model.prompt_sizes[key] = _measure_prompts(model)
    return model.prompt_sizes[key]


@contextmanager
def _one_layer_of_each_kind(model: Model) -> Iterator[None]:
    """Run a model with packed weights only up to the layer with which every kind of decoder layer has occurred.

    The other layers have products of the same shapes, with weights of the same layout, so they round in the same way.
    In a real model, trying all layers would take most of the time of the first samples. Weights that are not packed can
    begin anywhere in memory, which may change the kernel: there, all layers run.
    """
    config = model.module.config.get_text_config()
    stacks = [
        (parent, name, child)
        for parent in model.trunk.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == config.num_hidden_layers
    ]
    if not model.weights_packed or len(stacks) != 1:
        yield
        return
    parent, name, layers = stacks[0]
    types = getattr(config, "layer_types", None) or [None] * len(layers)
    kinds = [
        (of_attention, *(parameter.shape for parameter in layer.parameters()))
        for of_attention, layer in zip(types, layers, strict=True)
    ]
    setattr(parent, name, layers[: 1 + max(kinds.index(kind) for kind in kinds)])
    try:
        yield
    finally:
        setattr(parent, name, layers)


@torch.no_grad()
def _measure(model: Model) -> tuple[int, ...]:
    tokens = torch.arange(1, TOKENS * STANDARD + 1).view(TOKENS, STANDARD) * 31 % model.vocab_size
    start = _start(model)
    standard = _logits(model, start, tokens)
    equal = []
    # A single row often has a kernel of its own. Rounding to 16 bits hides most of the differences from the trial.
    for size in SIZES if model.dtype.itemsize > 2 else SIZES[1:]:
        # Each row is computed at several places of a block, beside other rows.
        shifts = range(0, STANDARD, min(size, 5)) if size <= STANDARD else (0, 5)
        rows = [(torch.arange(size) + shift) % STANDARD for shift in shifts]
        if all(torch.equal(_logits(model, start, tokens[:, some]), standard[some]) for some in rows):
            equal.append(size)
    return tuple(equal) if STANDARD in equal else ()


@torch.no_grad()
def _measure_prompts(model: Model) -> tuple[int, ...]:
    prompt = _prompt(model, TRIED_PROMPT)
    standard, equal = None, []
    for total in PROMPT_TOKENS:
        copies, rest = divmod(total, TRIED_PROMPT)
        sequences = [prompt] * copies
        if rest:
            sequences.insert(1, prompt.until(rest))
        cache, lengths = SequenceCache(len(sequences)), [len(sequence) for sequence in sequences]
        mask = cache.fill([(i, 0, length) for i, length in enumerate(lengths)])
        hidden = model.replicas[0].hidden(PackedBatch.of(sequences, model.device), cache, mask)
        whole = [states for states in hidden.split(lengths) if len(states) == TRIED_PROMPT]
        standard = whole[0] if standard is None else standard
        if all(torch.equal(states, standard) for states in whole):
            equal.append(total)
    return tuple(equal) if equal and equal[-1] >= BLOCK else ()  # a long prompt is divided at multiples of BLOCK


def _prompt(model: Model, length: int) -> Input:
    return Input(np.arange(1, length + 1) * 31 % model.vocab_size)


def _start(model: Model) -> SequenceCache:
    """Return a cache with one row, the common start of the sequences in `_measure`."""
    prompt, cache = _prompt(model, min(BLOCK, model.max_length - TOKENS)), SequenceCache(1)
    mask = cache.fill([(0, 0, len(prompt))])
    model.replicas[0].hidden(PackedBatch.of([prompt], model.device), cache, mask)
    return cache


def _logits(model: Model, start: SequenceCache, tokens: torch.Tensor) -> torch.Tensor:
    """Return the logits (rows, vocabulary) after decoding tokens (T, rows), one token of each row at a time.

    Each row begins with the only row of `start`.
    """
    cache = copy.copy(start)
    cache.select([0] * tokens.shape[1], tokens.shape[1])
    hidden = torch.empty(0)
    for step in tokens:
        hidden = decode(model, cache, range(len(step)), step, [0] * len(step))
    return model.head.logits(hidden)


def decode(
    model: Model, cache: SequenceCache, rows: list[int] | range, tokens: torch.Tensor, shifts: list[int]
) -> torch.Tensor:
    """Append one token to every row of the cache, and return the hidden states (rows, H) at these tokens.

    Args:
        rows: the rows whose results are needed.
        tokens: (rows,), one for every row of the cache.
        shifts: the `Input.shift` of each row's prompt.
    """
    mask = cache.append(rows)
    positions = mask.flatten() - 1 + torch.tensor(shifts)
    batch = PackedBatch([1] * len(tokens), tokens[None].to(model.device), positions[None].to(model.device))
    return model.replicas[0].hidden(batch, cache, mask)


def smallest(sizes: tuple[int, ...], rows: int) -> int:
    """Return the smallest size that holds this number of rows, or the largest size if none does."""
    return next((size for size in sizes if size >= rows), sizes[-1])


def _has_experts(model: Model) -> bool:
    config = model.module.config.get_text_config().to_dict()
    return any("expert" in name for name in config) or any(
        isinstance(layer, ExpertWeights) for layer in model.layers.values()
    )

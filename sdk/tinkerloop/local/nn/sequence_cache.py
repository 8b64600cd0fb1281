"""The keys and values of sequences that are decoded together. They are written in place, each row from its start on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Cache

from tinkerloop.local.nn.layers.attention_decoding import decoding_mask, rounded_length
from tinkerloop.local.nn.layers.attention_prompts import BLOCK, prompt_mask

KeyValueBlock = list[tuple[torch.Tensor, torch.Tensor]]
"""For each layer, the keys and values (key-value heads, BLOCK, D) of `BLOCK` tokens of a sequence."""


class SequenceCache(Cache):
    """Keys and values of `rows` sequences, in one tensor (rows, key-value heads, capacity, D) for each layer.

    Before a pass of the model, call `fill` if the pass computes prompts, or `append` if it computes one new token of
    every sequence. The model's attention layers then call `update`. The tokens of a pass form one packed row.
    """

    def __init__(self, rows: int):
        super().__init__(layers=[])
        self.lengths = [0] * rows
        self._capacity = 0
        self._keys: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []
        self._filled: list[tuple[int, int, slice]] | None = None
        self._index = self._last = torch.empty(0, dtype=torch.int64)

    def fill(self, parts: Sequence[tuple[int, int, int]], padding: int = 0) -> torch.Tensor:
        """Prepare a pass over parts of prompts, which are packed into one row. Return the attention mask.

        Args:
            parts: for each part, its row, the index of its first token in the prompt, and its number of tokens. The
                keys and values of earlier tokens are in the row.
            padding: the number of tokens after the last part, which are not stored.
        """
        self._filled, total = [], 0
        self._reserve(max(start + length for _, start, length in parts))
        for row, start, length in parts:
            self._filled.append((row, start, slice(total, total + length)))
            self.lengths[row] = start + length
            total += length
        lengths, key_lengths = [length for *_, length in parts], [start + length for _, start, length in parts]
        if padding:
            lengths, key_lengths = [*lengths, padding], [*key_lengths, padding]
        return prompt_mask(lengths, key_lengths)

    def copy(self, row: int, others: Sequence[int]) -> None:
        """Make other rows equal to a row."""
        length = self.lengths[row]
        for other in others:
            self.lengths[other] = length
            for stored in (*self._keys, *self._values):
                stored[other, :, :length] = stored[row, :, :length]

    def block(self, row: int, start: int) -> KeyValueBlock:
        """Return a copy of the keys and values of the `BLOCK` tokens of a row from index `start` on."""
        part = slice(start, start + BLOCK)
        return [
            (k[row, :, part].clone(), v[row, :, part].clone()) for k, v in zip(self._keys, self._values, strict=True)
        ]

    def put(self, row: int, start: int, block: KeyValueBlock) -> None:
        """Write the keys and values of `BLOCK` tokens into a row, from index `start` on."""
        self._reserve(start + BLOCK)
        for layer, pair in enumerate(block):
            for stored, states in zip((self._keys, self._values), pair, strict=True):
                self._add_layer(stored, layer, states)
                stored[layer][row, :, start : start + BLOCK] = states

    def append(self, rows: Sequence[int]) -> torch.Tensor:
        """Prepare a pass over one token of every row, new only in these rows. Return the attention mask.

        In the other rows, whose results are not needed, the last token is replaced.
        """
        self._filled = None
        for row in rows:
            self.lengths[row] += 1
        lengths = [max(length, 1) for length in self.lengths]
        self._reserve(max(lengths))
        self._index, self._last = torch.arange(len(lengths)), torch.tensor(lengths) - 1
        return decoding_mask(lengths)

    def select(self, rows: Sequence[int], count: int) -> None:
        """Keep only these rows, in this order, and add unused rows up to `count`."""
        index = torch.tensor([*rows, *[0] * (count - len(rows))])
        self.lengths = [self.lengths[row] for row in index.tolist()]
        self._keys = [keys[index] for keys in self._keys]
        self._values = [values[index] for values in self._values]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store keys and values (1, key-value heads, T, D) of a layer, and return those that the new tokens may see."""
        self._add_layer(self._keys, layer_idx, key_states[0])
        self._add_layer(self._values, layer_idx, value_states[0])
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        if self._filled is not None:
            return self._fill(keys, key_states[0]), self._fill(values, value_states[0])
        keys[self._index, :, self._last] = key_states[0].transpose(0, 1)
        values[self._index, :, self._last] = value_states[0].transpose(0, 1)
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the length of the longest sequence. transformers calls this; the engine passes all positions."""
        return max(self.lengths)

    def _fill(self, stored: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """Store the states (key-value heads, T, D) of a pass, and return them with those of earlier passes."""
        seen, total = [], 0
        for row, start, part in self._filled or ():
            total, end = part.stop, start + part.stop - part.start
            stored[row, :, start:end] = states[:, part]
            seen.append(stored[row, :, :end])
        return torch.cat([*seen, states[:, total:]], 1)[None]

    def _add_layer(self, stored: list[torch.Tensor], layer: int, states: torch.Tensor) -> None:
        """Allocate the tensor of a layer that is not stored yet, for states (key-value heads, any, D)."""
        if layer == len(stored):
            shape = (len(self.lengths), states.shape[0], self._capacity, states.shape[2])
            stored.append(states.new_zeros(shape))  # a masked value must be finite

    def _reserve(self, length: int) -> None:
        """Make room for sequences of this length. Growing by half each time copies every key a few times at most."""
        if length <= self._capacity:
            return
        self._capacity = rounded_length(max(length, self._capacity * 3 // 2))
        for stored in (self._keys, self._values):
            for layer, old in enumerate(stored):
                stored[layer] = old.new_zeros(*old.shape[:2], self._capacity, old.shape[3])
                stored[layer][:, :, : old.shape[2]] = old

"""The keys and values of sequences that are decoded together. They are written in place, each row from its start on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Cache

from tinkerloop.local.nn.layers.attention import packed_mask
from tinkerloop.local.nn.layers.attention_decoding import decoding_mask, rounded_length


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
        self._filled: list[tuple[Sequence[int], slice]] | None = None
        self._index = self._last = torch.empty(0, dtype=torch.int64)

    def fill(self, prompts: Sequence[tuple[Sequence[int], int]], padding: int = 0) -> torch.Tensor:
        """Prepare a pass over prompts that are packed into one row. Return the attention mask.

        Args:
            prompts: for each prompt, the rows that begin with it, and its length.
            padding: the number of tokens after the last prompt, which are not stored.
        """
        self._filled, end = [], 0
        self._reserve(max(length for _, length in prompts))
        for rows, length in prompts:
            end += length
            self._filled.append((rows, slice(end - length, end)))
            for row in rows:
                self.lengths[row] = length
        lengths = [length for _, length in prompts]
        return packed_mask([*lengths, padding] if padding else lengths)

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
        if layer_idx == len(self._keys):
            for stored, states in ((self._keys, key_states), (self._values, value_states)):
                shape = (len(self.lengths), states.shape[1], self._capacity, states.shape[3])
                stored.append(states.new_zeros(shape))  # a masked value must be finite
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        if self._filled is not None:
            for rows, part in self._filled:
                for stored, states in ((keys, key_states), (values, value_states)):
                    prompt = states[0, :, part]
                    for row in rows:
                        stored[row, :, : prompt.shape[1]] = prompt
            return key_states, value_states
        keys[self._index, :, self._last] = key_states[0].transpose(0, 1)
        values[self._index, :, self._last] = value_states[0].transpose(0, 1)
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the length of the longest sequence. transformers calls this; the engine passes all positions."""
        return max(self.lengths)

    def _reserve(self, length: int) -> None:
        """Make room for sequences of this length. Growing by half each time copies every key a few times at most."""
        if length <= self._capacity:
            return
        self._capacity = rounded_length(max(length, self._capacity * 3 // 2))
        for stored in (self._keys, self._values):
            for layer, old in enumerate(stored):
                stored[layer] = old.new_zeros(*old.shape[:2], self._capacity, old.shape[3])
                stored[layer][:, :, : old.shape[2]] = old

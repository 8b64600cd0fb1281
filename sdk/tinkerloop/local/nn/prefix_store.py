"""The keys and values of the starts of earlier prompts, so that a prompt that begins alike is not computed again.

The turns of an episode begin alike, and so do prompts with the same system message and tools.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import takewhile

import numpy as np
import torch
from numpy.typing import NDArray

from tinkerloop.local.nn.layers.attention_prompts import BLOCK
from tinkerloop.local.nn.sequence_cache import KeyValueBlock


class PrefixStore:
    """Blocks of keys and values by the tokens up to their end, for one state of the weights.

    The least recently used blocks are dropped when all together take more than `limit` bytes.
    """

    def __init__(self, limit: int):
        self.limit, self.size = limit, 0
        self._blocks: OrderedDict[bytes, KeyValueBlock] = OrderedDict()

    def find(self, tokens: NDArray[np.int64]) -> list[KeyValueBlock]:
        """Return the longest known start of a prompt as blocks, without the prompt's last token."""
        known = list(takewhile(self._blocks.__contains__, _keys(tokens[:-1])))
        for key in reversed(known):  # so that the start of a prompt is dropped after its end
            self._blocks.move_to_end(key)
        return [self._blocks[key] for key in known]

    def add(self, tokens: NDArray[np.int64], block: Callable[[int], KeyValueBlock]) -> None:
        """Keep all whole blocks of a prompt. `block` returns the block that begins at an index of the prompt."""
        # Known blocks, too: without the start of a prompt, its end would never be found.
        for i, key in reversed(list(enumerate(_keys(tokens)))):
            if key not in self._blocks:
                self._blocks[key] = block(i * BLOCK)
                self.size += _size(self._blocks[key])
            self._blocks.move_to_end(key)
            while self.size > self.limit:
                _, oldest = self._blocks.popitem(last=False)
                self.size -= _size(oldest)

    def clear(self) -> None:
        """Forget all blocks, because other weights became active."""
        self._blocks.clear()
        self.size = 0


def _keys(tokens: NDArray[np.int64]) -> Iterator[bytes]:
    """Yield a key for each whole block of tokens: a hash of all tokens up to its end, and of the number of threads.

    The number of threads may change the rounding.
    """
    digest = hashlib.blake2b(str(torch.get_num_threads()).encode(), digest_size=16)
    for start in range(0, len(tokens) - BLOCK + 1, BLOCK):
        digest.update(tokens[start : start + BLOCK].tobytes())
        yield digest.digest()


def _size(block: KeyValueBlock) -> int:
    return sum(states.nbytes for pair in block for states in pair)

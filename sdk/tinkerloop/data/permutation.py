"""A shuffled order that is computed, not stored: the row at position i of epoch e, in O(1) time and memory.

The swap-or-not shuffle of Hoang, Morris and Rogaway ("An Enciphering Scheme Based on a Card Shuffle", CRYPTO 2012):
in each round every position x is paired with (k - x) mod n, and one hashed bit per pair decides whether the two
are exchanged. It is a permutation for any n, so no row is drawn twice and none is left out, and seeking to the middle
of a later epoch costs as much as reading the next row. The order depends on `key` and `n` alone: not on the platform,
the numpy version or a generator's state.
"""

from __future__ import annotations

import hashlib

import numpy as np


def shuffled_positions(key: str, n: int, start: int, stop: int) -> np.ndarray:
    """Return entries [start, stop) of the permutation of range(n) given by `key`: int64, shape (stop - start,).

    >>> shuffled_positions("0/shuffle/0", 6, 0, 6).tolist()
    [1, 5, 0, 4, 2, 3]
    """
    x = np.arange(start, stop, dtype=np.int64)
    # About 6 log2(n) rounds bring the order close to uniform; the constant covers the smallest n.
    rounds = 16 + 6 * max(n - 1, 1).bit_length()
    stream = hashlib.shake_128(key.encode()).digest(16 * rounds)
    secrets = np.frombuffer(stream, dtype="<u8").reshape(rounds, 2)
    for shift, salt in secrets:
        partner = (int(shift % np.uint64(n)) - x) % n
        pair = np.maximum(x, partner)  # both members of a pair see the same bit
        x = np.where(_bit(pair, salt), partner, x)
    return x


def _bit(x: np.ndarray, salt: np.uint64) -> np.ndarray:
    """One well-mixed bit per entry: the finalizer of splitmix64 (Steele, Lea and Flood 2014)."""
    with np.errstate(over="ignore"):
        z = x.astype(np.uint64) + salt
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) & np.uint64(1)).astype(bool)

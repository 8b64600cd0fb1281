"""A shuffled order that is computed instead of stored: the row number at any position, in O(1) time and memory.

This is the swap-or-not shuffle of Hoang, Morris and Rogaway ("An Enciphering Scheme Based on a Card Shuffle", CRYPTO
2012). In each round, every position x is paired with (k - x) mod n, and one hashed bit per pair decides whether the
two are exchanged. The result is a permutation for any n, so each row occurs exactly once. Seeking to the middle of a
later epoch costs no more than reading the next row. The order depends only on `key` and `n`: not on the platform, the
numpy version or the state of a random generator.
"""

from __future__ import annotations

import hashlib

import numpy as np


def shuffled_positions(key: str, n: int, start: int, stop: int) -> np.ndarray:
    """Return entries `start` to `stop` - 1 of the permutation of range(n) that `key` selects.

    The result has dtype int64 and shape (stop - start,).

    >>> shuffled_positions("0/shuffle/0", 6, 0, 6).tolist()
    [1, 5, 0, 4, 2, 3]
    """
    x = np.arange(start, stop, dtype=np.int64)
    # About 6 log2(n) rounds make the order nearly uniform; the constant 16 is needed for the smallest n.
    rounds = 16 + 6 * max(n - 1, 1).bit_length()
    stream = hashlib.shake_128(key.encode()).digest(16 * rounds)
    secrets = np.frombuffer(stream, dtype="<u8").reshape(rounds, 2)
    for shift, salt in secrets:
        partner = (int(shift % np.uint64(n)) - x) % n
        pair = np.maximum(x, partner)  # the same number for both positions of a pair, so that they get the same bit
        x = np.where(_bit(pair, salt), partner, x)
    return x


def _bit(x: np.ndarray, salt: np.uint64) -> np.ndarray:
    """Return one hashed bit per entry of `x`, with the finalizer of splitmix64 (Steele, Lea and Flood 2014)."""
    with np.errstate(over="ignore"):
        z = x.astype(np.uint64) + salt
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) & np.uint64(1)).astype(bool)

"""Training and test rows, told apart by what they say and not by where they stand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from tinkerloop.errors import DataError


class Subset(Sequence[Any]):
    """Some rows of a sequence, read from it when they are asked for."""

    def __init__(self, rows: Sequence[Any], numbers: Sequence[int]):
        self.rows, self.numbers = rows, list(numbers)
        digest = hashlib.blake2b(repr((getattr(rows, "fingerprint", None), self.numbers)).encode(), digest_size=8)
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Subset(self.rows, self.numbers[index])
        return self.rows[self.numbers[index]]


def train_test_split(
    rows: Sequence[Any], test: int | float, *, seed: int = 0, key: Callable[[Any], str] | None = None
) -> tuple[Subset, Subset]:
    """(train, test): `test` rows if it is a whole number, that part of all rows if it is between 0 and 1.

    Rows with the same `key` (by default: the same content) fall on the same side, so that nothing tested has been
    trained on; where a group does not fit, the test set stays a little smaller. Which side a row falls on follows from
    the seed and its content, not from its place: adding or reordering rows moves few others. Both keep the order.
    """
    total = len(rows)
    if isinstance(test, bool) or not isinstance(test, int | float) or test <= 0:
        raise DataError(f"test must be a number of rows or a fraction between 0 and 1, got {test!r}")
    if isinstance(test, float) and test >= 1:
        raise DataError(f"a fraction must be below 1, got {test}", remedy="a number of rows is written without a point")
    wanted = test if isinstance(test, int) else max(1, round(test * total))
    if wanted >= total:
        raise DataError(f"{wanted} of {total} rows for the test leave none to train on")
    groups: dict[bytes, list[int]] = {}
    for number in range(total):
        said = (key or _content)(rows[number])
        groups.setdefault(hashlib.blake2b(f"{seed}/{said}".encode()).digest(), []).append(number)
    drawn: list[int] = []
    for _, group in sorted(groups.items()):  # in the order of their hashes
        if len(drawn) + len(group) <= wanted:
            drawn += group
    if not drawn:
        raise DataError(
            f"every group of equal rows is larger than the {wanted} test rows wanted", remedy="remove duplicates"
        )
    chosen = set(drawn)
    return Subset(rows, [n for n in range(total) if n not in chosen]), Subset(rows, sorted(chosen))


def _content(row: Any) -> str:
    own = getattr(row, "key", None)
    return own if isinstance(own, str) else json.dumps(row, sort_keys=True, default=repr)

"""Training and test rows, divided by their content and not by their position.

>>> train, test = train_test_split(["a", "b", "b", "c", "d"], 2, seed=0)
>>> sorted([*train, *test]), set(train) & set(test)
(['a', 'b', 'b', 'c', 'd'], set())
"""

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

    def __repr__(self) -> str:
        return f"Subset({len(self):,} of {len(self.rows):,} rows)"

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Subset(self.rows, self.numbers[index])
        return self.rows[self.numbers[index]]


def train_test_split(
    rows: Sequence[Any], test: int | float, *, seed: int = 0, key: Callable[[Any], str] | None = None
) -> tuple[Subset, Subset]:
    """Split rows into training and test rows; both keep the order of the rows.

    Equal rows fall on the same side, so that no test row was trained on; if a group of equal rows does not fit, the
    test set is a little smaller. The side of a row depends on the seed and on its content, not on its position: adding
    or reordering rows moves few others.

    Args:
        rows: the rows.
        test: the number of test rows, or a fraction between 0 and 1.
        seed: the random seed of the choice.
        key: rows with the same key fall on the same side; by default the key is the content.

    Returns:
        (training rows, test rows).

    Raises:
        DataError: no row would be left on one of the sides.
    """
    total = len(rows)
    if isinstance(test, bool) or not isinstance(test, int | float) or test <= 0:
        raise DataError(f"test must be a number of rows or a fraction between 0 and 1, got {test!r}")
    if isinstance(test, float) and test >= 1:
        raise DataError(
            f"a fraction must be below 1, got {test}", remedy="write a number of rows without a decimal point"
        )
    test_rows = test if isinstance(test, int) else max(1, round(test * total))
    if test_rows >= total:
        raise DataError(f"{test_rows} test rows of {total} leave no rows to train on")
    groups: dict[bytes, list[int]] = {}
    for number in range(total):
        row_key = (key or _content)(rows[number])
        groups.setdefault(hashlib.blake2b(f"{seed}/{row_key}".encode()).digest(), []).append(number)
    test_numbers: list[int] = []
    for _, group in sorted(groups.items()):  # in the order of their hashes
        if len(test_numbers) + len(group) <= test_rows:
            test_numbers += group
    if not test_numbers:
        raise DataError(
            f"every group of equal rows is larger than the {test_rows} test rows asked for", remedy="remove duplicates"
        )
    chosen = set(test_numbers)
    return Subset(rows, [n for n in range(total) if n not in chosen]), Subset(rows, sorted(chosen))


def _content(row: Any) -> str:
    row_key = getattr(row, "key", None)
    return row_key if isinstance(row_key, str) else json.dumps(row, sort_keys=True, default=repr)

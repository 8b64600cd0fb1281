"""Split rows into training and test rows by their content, not by their position.

>>> train, test = train_test_split(["a", "b", "b", "c", "d"], 2, seed=0)
>>> sorted([*train, *test]), set(train) & set(test)
(['a', 'b', 'b', 'c', 'd'], set())
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from tinkerloop.data.batches import fingerprint_of
from tinkerloop.data.content import content_text
from tinkerloop.errors import DataError


class Subset(Sequence[Any]):
    """A sequence of some rows of another sequence. A row is read from the other sequence when it is accessed."""

    def __init__(self, rows: Sequence[Any], numbers: Sequence[int]):
        self.rows, self.numbers = rows, list(numbers)
        digest = hashlib.blake2b(repr((fingerprint_of(rows), self.numbers)).encode(), digest_size=8)
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
    """Split rows into training rows and test rows. Both keep the order of `rows`.

    Equal rows are never split between training and test, so no test row is also trained on. If a group of equal rows
    is too large for the test set, the test set has a few rows less. The choice depends on the seed and on the content
    of a row, not on its position. Adding or reordering rows therefore changes the choice for few other rows.

    Args:
        rows: the rows.
        test: the number of test rows (an int), or a fraction between 0 and 1 (a float).
        seed: the random seed for the choice of the test rows.
        key: a function that returns the key of a row. Rows with equal keys are kept together. By default the key is
            the content of the row.

    Returns:
        (training rows, test rows).

    Raises:
        DataError: there would be no training rows or no test rows, or `test` is invalid.
    """
    total = len(rows)
    if isinstance(test, bool) or not isinstance(test, int | float) or not test > 0:
        raise DataError(f"test must be a number of rows or a fraction between 0 and 1, got {test!r}")
    if isinstance(test, float) and test >= 1:
        raise DataError(f"test as a fraction must be below 1, got {test}", remedy="for a number of rows, pass an int")
    test_rows = test if isinstance(test, int) else max(1, round(test * total))
    if test_rows >= total:
        raise DataError(
            f"{test_rows} test rows of {total} rows leave no rows to train on", remedy="pass a smaller value of test"
        )
    groups: dict[bytes, list[int]] = {}
    for number in range(total):
        row_key = (key or _content)(rows[number])
        groups.setdefault(hashlib.blake2b(f"{seed}/{row_key}".encode()).digest(), []).append(number)
    test_numbers: list[int] = []
    for _, group in sorted(groups.items()):  # in the order of the hashes, which is a random order
        if len(test_numbers) + len(group) <= test_rows:
            test_numbers += group
    if not test_numbers:
        raise DataError(
            f"every group of equal rows is larger than the requested test set of {test_rows} rows",
            remedy="remove duplicates, or pass a larger `test`",
        )
    chosen = set(test_numbers)
    return Subset(rows, [n for n in range(total) if n not in chosen]), Subset(rows, sorted(chosen))


def _content(row: Any) -> str:
    row_key = getattr(row, "key", None)
    return row_key if isinstance(row_key, str) else content_text(row)

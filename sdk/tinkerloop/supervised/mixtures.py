"""Mixtures of supervised datasets, with fixed proportions in every batch."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import TYPE_CHECKING

import chz

from tinkerloop.data import MixedBatches, mix
from tinkerloop.data.content import input_text
from tinkerloop.data.mixing import check_weights
from tinkerloop.data.streams import checked_length
from tinkerloop.errors import DataError
from tinkerloop.number_checks import check_whole
from tinkerloop.supervised.types import SupervisedDataset, SupervisedDatasetBuilder
from tinkerloop.terminal import printable

if TYPE_CHECKING:
    import tinker


class InterleavedDataset(SupervisedDataset):
    """A mixture of several datasets, with fixed proportions in every batch.

    When all rows of a dataset were used, its rows are used again in a different order.

    Args:
        parts: the datasets by name. Their order decides the order of their rows; a run is resumed with the same one.
        weights: a positive number for each dataset. The share of a dataset is its weight divided by the sum of all
            weights.
        batch_size: the number of rows in a batch, of all datasets together.
        length: the number of rows in an epoch, of all datasets together. By default it is large enough to use every
            row of every dataset.

    Raises:
        DataError: `parts` and `weights` have different names, a number is invalid, or `length` is not given and a
            dataset has no length.
    """

    def __init__(
        self,
        parts: Mapping[str, SupervisedDataset],
        weights: Mapping[str, float],
        batch_size: int,
        *,
        length: int | None = None,
    ):
        check_weights(parts, weights)
        self.parts, self.weights = dict(parts), dict(weights)
        self.batch_size: int = batch_size
        self._given_length = checked_length(length)
        self.length: int = self._all_rows() if self._given_length is None else self._given_length

    def batches(self, *, epochs: int | None = 1, batch_size: int | None = None, seed: int | None = 0) -> MixedBatches:
        if epochs is not None:
            check_whole("epochs", epochs, 1, error=DataError)
        parts = {
            name: part.batches(epochs=None, batch_size=1, seed=None if seed is None else seed + number)
            for number, (name, part) in enumerate(self.parts.items())
        }
        length = None if epochs is None else epochs * self.length
        size = self.batch_size if batch_size is None else batch_size
        return mix(parts, self.weights, size, length=length)

    def __len__(self) -> int:
        return len(self.batches())

    def without(self, held_out: Set[str]) -> tuple[InterleavedDataset, int]:
        parts, left_out = _without(self.parts, held_out)
        if not left_out:
            return self, 0
        return InterleavedDataset(parts, self.weights, self.batch_size, length=self._given_length), left_out

    def _all_rows(self) -> int:
        total = sum(self.weights.values())
        try:
            rows = {name: len(part.batches(batch_size=1)) for name, part in self.parts.items()}  # type: ignore[arg-type]
        except TypeError as error:
            raise DataError(
                "a dataset of the mixture has no length", remedy="pass length=N, the number of rows in an epoch"
            ) from error
        return max(math.ceil(count * total / self.weights[name]) for name, count in rows.items())


class _Joined(SupervisedDataset):
    """Several datasets, one after another; used for the test data of a mixture."""

    def __init__(self, parts: Sequence[SupervisedDataset], batch_size: int):
        self.parts, self.batch_size = parts, batch_size

    def __iter__(self) -> Iterator[tinker.Datum]:
        for part in self.parts:
            yield from part.all_datums()


def _without(parts: Mapping[str, SupervisedDataset], held_out: Set[str]) -> tuple[dict[str, SupervisedDataset], int]:
    """Return the datasets without their held-out rows, and the number of these. Print the number of each dataset."""
    kept: dict[str, SupervisedDataset] = {}
    total = 0
    for name, part in parts.items():
        try:
            kept[name], left_out = part.without(held_out)
        except DataError as error:
            error.add_note(f"in the part {name!r} of the mixture")
            raise
        total += left_out
        if left_out and not isinstance(part, InterleavedDataset):  # which has printed the numbers of its parts
            reason = "rows left out of training because they are test data of the mixture"
            print(f"{printable(name)}: {reason}: {left_out:,}", file=sys.stderr)
    return kept, total


@chz.chz
class InterleavedDatasetBuilder(SupervisedDatasetBuilder):
    """Builder of a mixture of the training data of several builders. Their test data is joined, one after another.

    Each builder chooses its own test data. A row that is test data of one builder is left out of the training data of
    all; the number of these rows is printed. For this, all rows are read once.
    """

    builders: dict[str, SupervisedDatasetBuilder] = chz.field(doc="Dataset builders by name.")
    weights: dict[str, float] = chz.field(
        doc="Weight of each dataset by name; its share of every batch is its weight divided by the sum."
    )
    batch_size: int = chz.field(default=32, doc="Rows in a batch, of all datasets together.")

    length: int | None = chz.field(
        default=None, doc="Number of rows in an epoch; None uses every row of every dataset at least once."
    )

    def __call__(self) -> tuple[SupervisedDataset, SupervisedDataset | None]:
        """Build all datasets.

        Returns:
            (training data, test data or None).

        Raises:
            DataError: there is test data, and a training dataset cannot be compared with it, such as a stream.
        """
        built = {name: builder() for name, builder in self.builders.items()}
        train = {name: datasets[0] for name, datasets in built.items()}
        tests = [datasets[1] for datasets in built.values() if datasets[1] is not None]
        if tests:
            train, _ = _without(train, {input_text(datum) for test in tests for datum in test.all_datums()})
        return (
            InterleavedDataset(train, self.weights, self.batch_size, length=self.length),
            _Joined(tests, self.batch_size) if tests else None,
        )

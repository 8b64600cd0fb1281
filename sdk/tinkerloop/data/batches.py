"""Batches with a cursor: a small JSON-serializable value that records the position in the data.

Reading can continue at any position, in O(1) time.

    >>> train = batches(["a", "b", "c", "d"], 2, epochs=2, shuffle=0)
    >>> next(train)
    ['d', 'c']
    >>> cursor = train.cursor  # the position after the last batch that was returned
    >>> cursor
    {'kind': 'rows', 'rows': 4, 'batch_size': 2, 'shuffle': 0, 'epoch': 0, 'row': 2}
    >>> rest = list(train)
    >>> train.seek(cursor)  # the same batches follow again
    >>> list(train) == rest
    True

The cursor also identifies the data that it belongs to: by the number of rows, the batch size, the random seed and, if
the rows have one, their fingerprint. `seek` raises DataError for a cursor of other data. The cursor does not contain
`epochs`, which is only a limit: to extend a finished run, pass a larger number of epochs.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from tinkerloop.data.permutation import shuffled_positions
from tinkerloop.errors import DataError
from tinkerloop.number_checks import check_whole, is_whole

if TYPE_CHECKING:
    import tinker

Cursor = dict[str, Any]
"""A JSON-serializable position in the data. It is valid only for the same kind of batches over the same data."""

_BLOCK = 4096  # positions of the shuffled order that are computed at once: 1 us per row instead of 20


@runtime_checkable
class Batches(Protocol):
    """The interface of batches that the loop can train on and resume: an iterator with `cursor` and `seek`."""

    def __next__(self) -> Sequence[tinker.Datum]:
        """Return the next batch.

        Raises:
            StopIteration: after the last batch.
        """
        ...

    @property
    def cursor(self) -> Any:
        """The JSON-serializable position after the last batch that was returned."""
        ...

    def seek(self, cursor: Any) -> None:
        """Move to the position `cursor`, so that the next batch is the one after it.

        Raises:
            DataError: the cursor was taken from other data.
        """
        ...


@runtime_checkable
class SampledBatches(Batches, Protocol):
    """Batches that are sampled from the weights in training, so that they need to know the boundaries of the loop.

    A boundary is the point between two optimizer steps: at boundary s, exactly steps 0 to s - 1 have been applied to
    the weights.
    """

    def at_boundary(self, step: int) -> None:
        """Note that the next batches are requested at boundary `step`. Called before the first of them."""
        ...

    def settle(self, cursor: Any) -> None:
        """Finish and store what was begun before `cursor`. Called before a record with this cursor is written.

        The weights that it is sampled from do not exist any more when a run is resumed from the record.
        """
        ...


def refuse_sampled(batches: object, name: str) -> None:
    """Raise DataError if `batches` are sampled from the weights: the function `name` does not pass on boundaries."""
    if isinstance(batches, SampledBatches):
        raise DataError(
            f"{name} cannot take {type(batches).__name__}, whose batches are sampled from the weights of a boundary",
            remedy="pass it to the loop itself; its option `staleness` samples ahead of training",
        )


def batches(
    examples: Sequence[Any],
    batch_size: int,
    *,
    epochs: int | None = 1,
    shuffle: int | None = None,
    map_fn: Callable[[Any], Any] | None = None,
    flatmap_fn: Callable[[Any], Iterable[Any]] | None = None,
    drop_last: bool = False,
) -> RowBatches:
    """Return an iterator over batches of rows that support random access.

    Args:
        examples: the rows: any object with `len` and `[i]`, such as a list, a Hugging Face dataset or a `JsonlFile`.
        batch_size: the number of rows in a batch.
        epochs: the number of passes over the rows; None repeats them without end.
        shuffle: the random seed for the order of the rows, which differs in each epoch. 0 is a valid seed. None keeps
            the order of the rows.
        map_fn: a function that converts a row to a datum. It is called when the batch of the row is requested.
        flatmap_fn: a function that converts a row to any number of datums; `batch_size` still counts rows.
        drop_last: True drops the last batch of an epoch if it has fewer than `batch_size` rows.

    Returns:
        An iterator of batches with a cursor. A batch size beyond the number of rows gives a warning.

    Raises:
        DataError: there are no rows, `drop_last` leaves no batch, or an argument is invalid.
    """
    made = RowBatches(
        examples,
        batch_size,
        epochs=epochs,
        shuffle=shuffle,
        map_fn=map_fn,
        flatmap_fn=flatmap_fn,
        drop_last=drop_last,
    )
    if batch_size > made.rows:
        warnings.warn(
            f"batch_size={batch_size} is more than the {made.rows} rows that there are: each batch is an epoch of "
            f"{made.rows} rows; use a smaller batch_size, or batch_size={made.rows} if that is meant",
            stacklevel=2,
        )
    return made


class RowBatches:
    """Iterator over batches of rows, returned by `batches`. It reads a row only when its batch is requested."""

    def __init__(
        self,
        examples: Sequence[Any],
        batch_size: int,
        *,
        epochs: int | None = 1,
        shuffle: int | None = None,
        map_fn: Callable[[Any], Any] | None = None,
        flatmap_fn: Callable[[Any], Iterable[Any]] | None = None,
        drop_last: bool = False,
    ):
        check_batching(batch_size, epochs, shuffle, map_fn, flatmap_fn)
        refuse_path(examples)
        self.examples, self.rows, self.batch_size = examples, len(examples), int(batch_size)  # a number of numpy, too
        self.epochs, self.shuffle, self.drop_last = epochs, None if shuffle is None else int(shuffle), drop_last
        self._map = RowMap(map_fn, flatmap_fn)
        self._epoch = self._row = 0
        self._order: tuple[int, int, list[int]] | None = None  # (epoch, first position, row numbers from it on)
        if self.rows == 0:
            raise DataError(
                "there are no rows to train on: len(examples) is 0", remedy="check the file, the filter or the split"
            )
        if self.batches_per_epoch == 0:
            raise DataError(
                f"{self.rows} rows do not fill one batch of {batch_size}, and drop_last=True drops a partial batch",
                remedy="use a smaller batch_size or drop_last=False",
            )

    @property
    def batches_per_epoch(self) -> int:
        """The number of batches in one epoch."""
        full, rest = divmod(self.rows, self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __len__(self) -> int:
        """The number of batches in all epochs. With `epochs=None` there is none, and TypeError is raised."""
        if self.epochs is None:
            raise TypeError("batches with epochs=None have no length; pass epochs=N, or steps=N to the loop")
        return self.epochs * self.batches_per_epoch

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> list[Any]:
        if self.epochs is not None and self._epoch >= self.epochs:
            raise StopIteration
        epoch, start = self._epoch, self._row
        stop = min(start + self.batch_size, self.rows)
        numbers = self._numbers(epoch, start, stop)
        batch = self._map(self._fetch(numbers, epoch), numbers, epoch)
        self._move_to(epoch, stop)  # last, so that the position does not change if the batch could not be created
        return batch

    @property
    def cursor(self) -> Cursor:
        return {**self._identity(), "epoch": self._epoch, "row": self._row}

    def seek(self, cursor: Any) -> None:
        epoch, row = check_cursor(cursor, self._identity(), ("epoch", "row"))
        if row > self.rows:
            raise DataError(
                f"the cursor is at row {row}, but there are only {self.rows} rows",
                remedy="the checkpoint record is damaged: resume from another checkpoint",
            )
        self._move_to(epoch, row)

    def __repr__(self) -> str:
        done = self._epoch * self.batches_per_epoch + self._row // self.batch_size
        total = "" if self.epochs is None else f" of {len(self):,}"
        size = f"batch_size={self.batch_size}, epochs={self.epochs}"
        return f"RowBatches({self.rows:,} rows, {size}, at batch {done:,}{total})"

    def __str__(self) -> str:
        full, rest = divmod(self.rows, self.batch_size)
        last = "" if not rest else f", the last {rest} rows {'dropped' if self.drop_last else 'as one more'}"
        order = "in order" if self.shuffle is None else f"shuffled with seed {self.shuffle}"
        epochs = "endless epochs" if self.epochs is None else f"{self.epochs} epoch{'s'[: self.epochs != 1]}"
        return f"{self.rows} rows, {full} batches of {self.batch_size}{last}; {epochs}, {order}"

    def _identity(self) -> Cursor:
        identity: Cursor = {
            "kind": "rows", "rows": self.rows, "batch_size": self.batch_size, "shuffle": self.shuffle
        }  # fmt: skip
        fingerprint = fingerprint_of(self.examples)
        return identity if fingerprint is None else {**identity, "fingerprint": fingerprint}

    def _fetch(self, numbers: list[int], epoch: int) -> list[Any]:
        many = getattr(self.examples, "__getitems__", None)  # a Hugging Face dataset reads all rows in one call
        return [self.examples[number] for number in numbers] if many is None else list(many(numbers))

    def _move_to(self, epoch: int, row: int) -> None:
        left = self.rows - row
        done = left <= 0 or (self.drop_last and left < self.batch_size)
        self._epoch, self._row = (epoch + 1, 0) if done else (epoch, row)

    def _numbers(self, epoch: int, start: int, stop: int) -> list[int]:
        """Return the row numbers at positions `start` to `stop` - 1 of an epoch's order."""
        if self.shuffle is None:
            return list(range(start, stop))
        if (
            self._order is None
            or self._order[0] != epoch
            or not self._order[1] <= start <= stop <= self._order[1] + len(self._order[2])
        ):
            end = min(max(start + _BLOCK, stop), self.rows)
            order = shuffled_positions(f"{self.shuffle}/shuffle/{epoch}", self.rows, start, end)
            self._order = (epoch, start, order.tolist())
        _, first, numbers = self._order
        return numbers[start - first : stop - first]


class RowMap:
    """Function that converts rows to datums with `map_fn` or `flatmap_fn`.

    An error that `map_fn` or `flatmap_fn` raises gets a note with the row number and the epoch.
    """

    def __init__(self, map_fn: Callable[[Any], Any] | None, flatmap_fn: Callable[[Any], Iterable[Any]] | None):
        self._map_fn, self._flatmap_fn = map_fn, flatmap_fn

    def __call__(self, rows: Sequence[Any], numbers: Sequence[int], epoch: int) -> list[Any]:
        if self._map_fn is None and self._flatmap_fn is None:
            return list(rows)
        datums: list[Any] = []
        for row, number in zip(rows, numbers, strict=True):
            try:
                datums.extend(self._one(row))
            except StopIteration as error:  # a StopIteration of map_fn would otherwise look like the end of the data
                raise RuntimeError(f"StopIteration was raised while mapping row {number} (epoch {epoch})") from error
            except Exception as error:
                error.add_note(f"while mapping row {number} (epoch {epoch})")
                raise
        if not datums:
            raise DataError(
                f"flatmap_fn returned no datum for rows {list(numbers)}, so the batch is empty",
                remedy="remove rows without a datum before batching",
            )
        return datums

    def _one(self, row: Any) -> Iterable[Any]:
        if self._flatmap_fn is not None:
            return self._flatmap_fn(row)
        assert self._map_fn is not None
        datum = self._map_fn(row)
        if datum is None:
            raise DataError(
                "map_fn must return a datum, got None", remedy="to leave out rows, use flatmap_fn and return []"
            )
        return (datum,)


def check_batching(
    batch_size: int, epochs: int | None, shuffle: int | None, map_fn: object, flatmap_fn: object
) -> None:
    """Check the arguments that `batches` and `stream` share; raise DataError if one is invalid."""
    check_whole("batch_size", batch_size, 1, error=DataError)
    if epochs is not None:
        check_whole("epochs", epochs, 1, error=DataError)
    if shuffle is not None and not is_whole(shuffle):
        raise DataError(
            f"shuffle must be a random seed (a whole number) or None, got {shuffle!r}",
            remedy="pass shuffle=0 to shuffle with seed 0, or shuffle=None to keep the order of the rows",
        )
    if map_fn is not None and flatmap_fn is not None:
        raise DataError("map_fn and flatmap_fn were both given", remedy="pass only one of them")


def fingerprint_of(rows: Any) -> str | None:
    """Return the hash by which rows are recognised, or None if they have none. A Hugging Face dataset has one."""
    fingerprint = getattr(rows, "fingerprint", None)
    return getattr(rows, "_fingerprint", None) if fingerprint is None else fingerprint


def refuse_path(rows: Any) -> None:
    """Raise DataError if `rows` is a path. A string is a sequence too, so its characters would be used as rows."""
    if isinstance(rows, str | bytes | os.PathLike):
        raise DataError(
            f"expected rows to batch, but {rows!r} is a path",
            remedy="read it: load_conversations(path); for a stream, FileSource(path) or stream_conversations(path)",
        )


_REMEDIES = {
    "batch_size": "resume with the batch size of the run that saved the cursor, because the number of steps and the"
    " learning rates follow from it",
    "fingerprint": "resume with the data of the run that saved the cursor (the fingerprint of a Hugging Face dataset"
    " also changes with a map_fn that it cannot hash: pass map(..., new_fingerprint=NAME))",
}


def check_cursor(cursor: Any, identity: Cursor, counters: Sequence[str]) -> list[int]:
    """Return the values of `counters` in a cursor.

    Args:
        cursor: the value that `seek` was called with.
        identity: the entries by which the cursor identifies its data; those of the cursor must be equal.
        counters: the names of entries that must be whole numbers of at least 0.

    Raises:
        DataError: the cursor was taken from other data, or is damaged.
    """
    if not isinstance(cursor, dict):
        raise DataError(
            f"a cursor must be a dict, got {type(cursor).__name__}", remedy="pass a value of the property `cursor`"
        )
    for key, here in identity.items():
        if cursor.get(key) != here:
            raise DataError(
                f"the cursor was taken from other data: {key} was {cursor.get(key)!r} and is {here!r} now",
                remedy=_REMEDIES.get(key, "resume with the data and the seed of the run that saved the cursor")
                + ", or start a new run folder",
            )
    values = [cursor.get(name) for name in counters]
    for name, value in zip(counters, values, strict=True):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise DataError(
                f"the cursor has {name}={value!r}, expected a whole number of at least 0",
                remedy="the checkpoint record is damaged: resume from another checkpoint",
            )
    return [value for value in values if value is not None]

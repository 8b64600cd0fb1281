"""Batches with a cursor: the position in the data is a small JSON value, and any position is reached in O(1).

    >>> train = batches(["a", "b", "c", "d"], 2, epochs=2, shuffle=0)
    >>> next(train)
    ['d', 'c']
    >>> cursor = train.cursor  # the position after the batches that were handed out
    >>> cursor
    {'kind': 'rows', 'rows': 4, 'shuffle': 0, 'epoch': 0, 'row': 2}
    >>> rest = list(train)
    >>> train.seek(cursor)  # the same batches follow again
    >>> list(train) == rest
    True

The cursor names the data it was taken from (rows, seed, fingerprint if the rows have one), and `seek` refuses it for
other data. `epochs` is a limit and not part of the position: to extend a finished run, ask for more epochs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from tinkerloop.data.permutation import shuffled_positions
from tinkerloop.errors import DataError

if TYPE_CHECKING:
    import tinker

Cursor = dict[str, Any]
"""A position as JSON values. Only the batches that made it can read it."""

_BLOCK = 4096  # positions of the shuffled order are computed together: 1 us a row instead of 20


@runtime_checkable
class Batches(Protocol):
    """Batches that the loop can train on: an iterator that knows its position."""

    def __next__(self) -> Sequence[tinker.Datum]:
        """Return the next batch.

        Raises:
            StopIteration: after the last batch.
        """
        ...

    @property
    def cursor(self) -> Any:
        """The position after the batches that were handed out, as JSON values."""
        ...

    def seek(self, cursor: Any) -> None:
        """Continue at `cursor`.

        Raises:
            DataError: the cursor was taken from other data.
        """
        ...


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
    """Make batches of rows that can be read in any order.

    Args:
        examples: the rows: anything with `len` and `[i]`, such as a list, a Hugging Face dataset or a `JsonlFile`.
        batch_size: rows in a batch.
        epochs: how many times the rows are used; None repeats them without end.
        shuffle: the random seed of the order, which differs in each epoch; 0 is a seed like any other. None keeps the
            order of the rows.
        map_fn: makes a datum of a row, when its batch is asked for.
        flatmap_fn: makes any number of datums of a row; `batch_size` still counts rows.
        drop_last: leave out the last batch of an epoch if it is not full; by default it is kept.

    Returns:
        An iterator of batches with a cursor.

    Raises:
        DataError: there are no rows, no full batch with `drop_last`, or an argument is wrong.
    """
    return RowBatches(
        examples,
        batch_size,
        epochs=epochs,
        shuffle=shuffle,
        map_fn=map_fn,
        flatmap_fn=flatmap_fn,
        drop_last=drop_last,
    )


class RowBatches:
    """The batches that `batches` makes. Rows are fetched when their batch is asked for, never before."""

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
        self.examples, self.rows, self.batch_size = examples, len(examples), batch_size
        self.epochs, self.shuffle, self.drop_last = epochs, shuffle, drop_last
        self._map = RowMap(map_fn, flatmap_fn)
        self._epoch = self._row = 0
        self._order: tuple[int, int, list[int]] | None = None  # (epoch, first position, rows from there on)
        if self.rows == 0:
            raise DataError("there are no rows to train on", remedy="check the file, the filter or the split")
        if self.batches_per_epoch == 0:
            raise DataError(
                f"{self.rows} rows do not fill one batch of {batch_size}, and drop_last leaves out the rest",
                remedy="use a smaller batch_size or drop_last=False",
            )

    @property
    def batches_per_epoch(self) -> int:
        """The number of batches in one epoch."""
        full, rest = divmod(self.rows, self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __len__(self) -> int:
        """The number of batches in all epochs. Raise TypeError if they have no end."""
        if self.epochs is None:
            raise TypeError("batches with epochs=None have no length; say how many steps to run")
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
        self._move_to(epoch, stop)  # only now: a batch that failed has not been handed out
        return batch

    @property
    def cursor(self) -> Cursor:
        return {**self._identity(), "epoch": self._epoch, "row": self._row}

    def seek(self, cursor: Any) -> None:
        epoch, row = check_cursor(cursor, self._identity(), ("epoch", "row"))
        if row > self.rows:
            raise DataError(f"the cursor points at row {row} of {self.rows}", remedy="the record is damaged")
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
        identity: Cursor = {"kind": "rows", "rows": self.rows, "shuffle": self.shuffle}
        fingerprint = getattr(self.examples, "fingerprint", None)
        return identity if fingerprint is None else {**identity, "fingerprint": fingerprint}

    def _fetch(self, numbers: list[int], epoch: int) -> list[Any]:
        many = getattr(self.examples, "__getitems__", None)  # a Hugging Face dataset reads a batch in one go
        return [self.examples[number] for number in numbers] if many is None else list(many(numbers))

    def _move_to(self, epoch: int, row: int) -> None:
        left = self.rows - row
        done = left <= 0 or (self.drop_last and left < self.batch_size)
        self._epoch, self._row = (epoch + 1, 0) if done else (epoch, row)

    def _numbers(self, epoch: int, start: int, stop: int) -> list[int]:
        """Return the numbers of the rows at positions [start, stop) of an epoch."""
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
    """Turns rows into datums; an error gets a note that names the row."""

    def __init__(self, map_fn: Callable[[Any], Any] | None, flatmap_fn: Callable[[Any], Iterable[Any]] | None):
        self._map_fn, self._flatmap_fn = map_fn, flatmap_fn

    def __call__(self, rows: Sequence[Any], numbers: Sequence[int], epoch: int) -> list[Any]:
        if self._map_fn is None and self._flatmap_fn is None:
            return list(rows)
        datums: list[Any] = []
        for row, number in zip(rows, numbers, strict=True):
            try:
                datums.extend(self._one(row))
            except StopIteration as error:  # as it is, it would look like the end of the data
                raise RuntimeError(f"StopIteration was raised while mapping row {number} (epoch {epoch})") from error
            except Exception as error:
                error.add_note(f"while mapping row {number} (epoch {epoch})")
                raise
        if not datums:
            raise DataError(
                f"flatmap_fn made no datum from rows {list(numbers)}, so the batch is empty",
                remedy="filter such rows before batching",
            )
        return datums

    def _one(self, row: Any) -> Iterable[Any]:
        if self._flatmap_fn is not None:
            return self._flatmap_fn(row)
        assert self._map_fn is not None
        datum = self._map_fn(row)
        if datum is None:
            raise DataError("map_fn returned None", remedy="to leave out rows, use flatmap_fn and return []")
        return (datum,)


def check_batching(
    batch_size: int, epochs: int | None, shuffle: int | None, map_fn: object, flatmap_fn: object
) -> None:
    """Raise DataError for arguments that no batches can be made with."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise DataError(f"batch_size must be a whole number of at least 1, got {batch_size!r}")
    if epochs is not None and (isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1):
        raise DataError(f"epochs must be a whole number of at least 1 or None, got {epochs!r}")
    if isinstance(shuffle, bool) or not isinstance(shuffle, int | None):
        raise DataError(
            f"shuffle must be a random seed (a whole number) or None, got {shuffle!r}",
            remedy="write shuffle=0 to shuffle with seed 0, or shuffle=None to keep the order of the rows",
        )
    if map_fn is not None and flatmap_fn is not None:
        raise DataError("map_fn and flatmap_fn were both given", remedy="give one of them")


def refuse_path(rows: Any) -> None:
    """Raise DataError for a path: it is a sequence too, of characters, which nobody means."""
    if isinstance(rows, str | bytes | os.PathLike):
        raise DataError(
            f"batches are made of rows, and {rows!r} is a path",
            remedy="read it: load_conversations(path); for a stream, FileSource(path) or stream_conversations(path)",
        )


def check_cursor(cursor: Any, identity: Cursor, counters: Sequence[str]) -> list[int]:
    """Return the counters of a cursor; raise DataError if it was taken from other data."""
    if not isinstance(cursor, dict):
        raise DataError(f"a cursor of these batches is a dict, got {type(cursor).__name__}")
    for key, here in identity.items():
        if cursor.get(key) != here:
            raise DataError(
                f"the cursor was taken from other data: {key} was {cursor.get(key)!r} and is {here!r} now",
                remedy="resume with the data and the seed of that run, or start a new run folder",
            )
    values = [cursor.get(name) for name in counters]
    for name, value in zip(counters, values, strict=True):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise DataError(f"the cursor has {name}={value!r}, expected a count", remedy="the record is damaged")
    return [value for value in values if value is not None]

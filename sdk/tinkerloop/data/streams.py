"""Batches of rows that are read one after another, in constant memory, from which a run can resume exactly.

Rows are shuffled block by block: `buffer_size` rows are read, put in a computed order and returned; then the next block
is read. The position therefore consists of three small values: where the block starts in the source, how many rows
precede the block, and how many rows of the block have been returned. Resuming opens the source at the start of the
block and reads one block again. (Most libraries use a buffer that mixes old rows with new ones; resuming exactly would
require saving the buffer's contents.) In each epoch the first block has a different size, so that the same rows do not
share a block in every epoch.
"""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

from tinkerloop.data.batches import Cursor, RowMap, check_batching, check_cursor, refuse_path
from tinkerloop.data.permutation import shuffled_positions
from tinkerloop.errors import DataError
from tinkerloop.number_checks import check_whole


class OpenRows(Protocol):
    """The interface of opened rows: an iterator with a `position` from which it can be opened again."""

    def __next__(self) -> Any: ...

    @property
    def position(self) -> Any:
        """The JSON-serializable position of the next row. `open` of the same source accepts it."""
        ...


@runtime_checkable
class Source(Protocol):
    """The interface of a source of rows. It can be opened at any position that was read from its opened rows."""

    @property
    def fingerprint(self) -> str | None:
        """A hash that changes when the rows change, so that old positions are rejected; None if there is no hash."""
        ...

    def open(self, position: Any) -> OpenRows:
        """Return an iterator over the rows from `position` on. None means the first row."""
        ...


def stream(
    source: Source | Callable[[], Iterable[Any]] | Iterable[Any],
    batch_size: int,
    *,
    epochs: int | None = 1,
    shuffle: int | None = None,
    buffer_size: int = 4096,
    length: int | None = None,
    map_fn: Callable[[Any], Any] | None = None,
    flatmap_fn: Callable[[Any], Iterable[Any]] | None = None,
    drop_last: bool = False,
) -> StreamBatches:
    """Return an iterator over batches of rows that are too many to hold in memory.

    Args:
        source: a `FileSource`, a Hugging Face IterableDataset, or a function that returns a new iterator over the rows.
            With a function, resuming reads all rows before the position again.
        batch_size: the number of rows in a batch.
        epochs: the number of passes over the source; None repeats it without end.
        shuffle: the random seed for the order of the rows, which differs in each epoch. 0 is a valid seed. None keeps
            the order of the source.
        buffer_size: the number of rows that are held in memory and shuffled together.
        length: the number of rows to use in each epoch; None uses all.
        map_fn, flatmap_fn, drop_last: as for `batches`.

    Returns:
        An iterator of batches with a cursor.

    Raises:
        DataError: an argument is invalid. During iteration, also if the source ends before the first batch is full.
    """
    return StreamBatches(
        as_source(source),
        batch_size,
        epochs=epochs,
        shuffle=shuffle,
        buffer_size=buffer_size,
        length=length,
        map_fn=map_fn,
        flatmap_fn=flatmap_fn,
        drop_last=drop_last,
    )


class StreamBatches:
    """The iterator that `stream` returns: batches of rows, which are read one after another from a source."""

    def __init__(
        self,
        source: Source,
        batch_size: int,
        *,
        epochs: int | None = 1,
        shuffle: int | None = None,
        buffer_size: int = 4096,
        length: int | None = None,
        map_fn: Callable[[Any], Any] | None = None,
        flatmap_fn: Callable[[Any], Iterable[Any]] | None = None,
        drop_last: bool = False,
    ):
        check_batching(batch_size, epochs, shuffle, map_fn, flatmap_fn)
        check_whole("buffer_size", buffer_size, 1, error=DataError)
        self.source, self.batch_size, self.epochs = source, int(batch_size), epochs
        self.shuffle = None if shuffle is None else int(shuffle)
        self.buffer_size, self.length, self.drop_last = int(buffer_size), checked_length(length), drop_last
        self._map = RowMap(map_fn, flatmap_fn)
        self._rows: OpenRows | None = None
        self._start_epoch(0)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> list[Any]:
        before = self.cursor
        try:
            return self._next_batch()
        except StopIteration:
            raise
        except BaseException:  # also KeyboardInterrupt, after which a notebook goes on with this object
            self._go_to(**{name: before[name] for name in ("epoch", "position", "first", "offset")})
            raise

    @property
    def cursor(self) -> Cursor:
        return {
            **self._identity(),
            "epoch": self._epoch,
            "position": self._position,
            "first": self._first,
            "offset": self._offset,
        }

    def seek(self, cursor: Any) -> None:
        if not isinstance(cursor, dict) or "position" not in cursor:
            raise DataError(
                f'a cursor of a stream must be a dict with a key "position", got {cursor!r}',
                remedy="pass a value of the property `cursor`",
            )
        epoch, first, offset = check_cursor(cursor, self._identity(), ("epoch", "first", "offset"))
        self._go_to(epoch, cursor["position"], first, offset)

    def __len__(self) -> int:
        """The number of batches in all epochs, computed from `length` and `epochs`. Without them, TypeError is raised.

        If the source has fewer than `length` rows, there are fewer batches.
        """
        if self.epochs is None or self.length is None:
            raise TypeError(
                "a stream without length=N and epochs=N has no length; pass both, or pass steps=N to the loop"
            )
        full, rest = divmod(self.length, self.batch_size)
        return self.epochs * (full + (rest > 0 and not self.drop_last))

    def __repr__(self) -> str:
        row, length = self._first + self._offset, "" if self.length is None else f" of {self.length:,}"
        size = f"batch_size={self.batch_size}, epochs={self.epochs}"
        return f"StreamBatches({size}, at row {row:,}{length} in epoch {self._epoch})"

    def __str__(self) -> str:
        rows = "all rows" if self.length is None else f"{self.length} rows"
        order = "in order" if self.shuffle is None else f"shuffled in blocks of {self.buffer_size}"
        epochs = "endless epochs" if self.epochs is None else f"{self.epochs} epoch{'s'[: self.epochs != 1]}"
        last = "a last partial batch is " + ("dropped" if self.drop_last else "kept")
        return f"a stream of {rows}, batches of {self.batch_size} ({last}); {epochs}, {order}"

    def _identity(self) -> Cursor:
        return {
            "kind": "stream",
            "source": self.source.fingerprint,
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "buffer_size": None if self.shuffle is None else self.buffer_size,
            "length": self.length,
        }

    def _next_batch(self) -> list[Any]:
        while self.epochs is None or self._epoch < self.epochs:
            rows, numbers = self._take(self.batch_size)
            full = len(rows) == self.batch_size
            if full or (rows and not self.drop_last):
                return self._map(rows, numbers, self._epoch)
            if self._first == 0 or (self.drop_last and self._first < self.batch_size):
                raise DataError(
                    f"the stream ended after {self._first} rows, before one batch of {self.batch_size} was full",
                    remedy="check that the source yields rows, or use a smaller batch_size",
                )
            self._start_epoch(self._epoch + 1)
        raise StopIteration

    def _take(self, count: int) -> tuple[list[Any], list[int]]:
        """Return the next `count` rows of this epoch and their numbers, counted in the shuffled order.

        At the end of the epoch there are fewer rows.
        """
        rows: list[Any] = []
        start = self._first + self._offset
        while len(rows) < count:
            if self._block is None:
                self._block = self._read_block()
                if not self._block:
                    break
            part = self._block[self._offset : self._offset + count - len(rows)]
            rows += part
            self._offset += len(part)
            if self._offset >= len(self._block):  # all rows of the block were returned: move to the next block
                assert self._rows is not None
                self._position = self._rows.position
                self._first, self._offset, self._block = self._first + len(self._block), 0, None
        return rows, list(range(start, start + len(rows)))

    def _read_block(self) -> list[Any]:
        if self._rows is None:
            self._rows = self.source.open(self._position)
        size = self._block_size() if self.length is None else min(self._block_size(), self.length - self._first)
        rows: list[Any] = []
        while len(rows) < size:
            try:
                rows.append(next(self._rows))
            except StopIteration:
                break
        if self.shuffle is None or not rows:
            return rows
        order = shuffled_positions(f"{self.shuffle}/{self._epoch}/{self._first}", len(rows), 0, len(rows))
        return [rows[i] for i in order]

    def _block_size(self) -> int:
        if self.shuffle is None:
            return self.batch_size
        if self._first > 0:
            return self.buffer_size
        return self.buffer_size - random.Random(f"{self.shuffle}/block/{self._epoch}").randrange(
            max(self.buffer_size // 2, 1)
        )

    def _start_epoch(self, epoch: int) -> None:
        self._go_to(epoch, None, 0, 0)

    def _go_to(self, epoch: int, position: Any, first: int, offset: int) -> None:
        self._epoch, self._position, self._first, self._offset = epoch, position, first, offset
        self._block: list[Any] | None = None
        self._rows = None


def checked_length(length: int | None) -> int | None:
    """Return the number of rows to use, or None for all; raise DataError if it is anything else."""
    if length is None:
        return None
    check_whole("length (None: all rows)", length, 1, error=DataError)
    return int(length)


def as_source(source: Any) -> Source:
    """Convert a Hugging Face IterableDataset, a function or an iterable to a `Source`.

    A `Source` is returned unchanged.

    Raises:
        DataError: `source` is a path.
    """
    refuse_path(source)
    if hasattr(source, "open"):
        return source
    if hasattr(source, "state_dict") and hasattr(source, "load_state_dict"):
        return HFSource(source)
    if isinstance(source, Iterator):
        return _OneShot(source)
    return IterableSource(source if callable(source) else lambda: source)


class IterableSource:
    """A source of rows from a function that returns a new iterator. Seeking reads all rows before the position."""

    fingerprint = None

    def __init__(self, start: Callable[[], Any]):
        self._start = start

    def open(self, position: Any) -> OpenRows:
        rows = _Counted(iter(self._start()))
        if position is not None:
            skipped = sum(1 for _ in itertools.islice(rows, position))
            if skipped < position:
                raise DataError(
                    f"the source ended after {skipped} rows, but the cursor is at row {position}",
                    remedy="the source must yield the same rows in every pass",
                )
        return rows


class _OneShot:
    """A source of rows from an iterator, which can be read only once. Resuming or repeating it raises DataError."""

    fingerprint = None

    def __init__(self, rows: Iterator[Any]):
        self._rows = _Counted(rows)

    def open(self, position: Any) -> OpenRows:
        if (position or 0) != self._rows.position:
            raise DataError(
                "an iterator can be read only once: it can be neither resumed nor repeated",
                remedy="pass a function that returns a new iterator, for example stream(lambda: rows(), ...)",
            )
        return self._rows


class _Counted:
    def __init__(self, rows: Iterator[Any]):
        self._rows, self.position = rows, 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        row = next(self._rows)
        self.position += 1
        return row


class HFSource:
    """A source of rows from a Hugging Face IterableDataset. A position is what the dataset's `state_dict` returns."""

    fingerprint = None

    def __init__(self, dataset: Any):
        if any(type(part).__name__.startswith("BufferShuffled") for part in _steps(dataset)):
            raise DataError(
                "this IterableDataset shuffles in its own buffer, so it cannot be resumed exactly",
                remedy="leave out dataset.shuffle(...) and pass shuffle=SEED and buffer_size=N to stream",
            )
        self._dataset = dataset

    def open(self, position: Any) -> OpenRows:
        dataset = object.__new__(type(self._dataset))  # not copy.copy, whose copy would share the reading state
        dataset.__dict__.update(self._dataset.__dict__)
        dataset.load_state_dict(copy.deepcopy(position))  # None means the first row
        return _HFRows(dataset)


def _steps(dataset: Any) -> Iterator[Any]:
    """Yield every processing step of an IterableDataset, also those of datasets that it combines."""
    steps = [getattr(dataset, "_ex_iterable", None)]
    while steps:
        step = steps.pop()
        yield step
        for value in vars(step).values() if hasattr(step, "__dict__") else ():
            values = value if isinstance(value, list | tuple) else [value]
            steps += [inner for inner in values if type(inner).__name__.endswith("ExamplesIterable")]


class _HFRows:
    def __init__(self, dataset: Any):
        self._dataset, self._rows = dataset, iter(dataset)

    def __next__(self) -> Any:
        return next(self._rows)

    @property
    def position(self) -> Any:
        return self._dataset.state_dict()

"""Batches with a position, made of a list or an iterator of batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tinkerloop._lazy import tinker
from tinkerloop.data.batches import Batches
from tinkerloop.errors import PlanError


class _Listed:
    """A sequence of batches; the cursor is the index of the next."""

    def __init__(self, batches: Sequence[Sequence[tinker.Datum]]):
        self._batches, self.cursor = batches, 0

    def __next__(self) -> Sequence[tinker.Datum]:
        if self.cursor >= len(self._batches):
            raise StopIteration
        self.cursor += 1
        return self._batches[self.cursor - 1]

    def seek(self, cursor: int) -> None:
        if not isinstance(cursor, int) or not 0 <= cursor <= len(self._batches):
            raise PlanError(
                f"cannot seek to batch {cursor} of {len(self._batches)}: resume with the batches of the record"
            )
        self.cursor = cursor


class _Iterated:
    """An iterable of batches, which has no position."""

    cursor = None

    def __init__(self, batches: Iterable[Sequence[tinker.Datum]]):
        self._iterator: Iterator[Sequence[tinker.Datum]] = iter(batches)

    def __next__(self) -> Sequence[tinker.Datum]:
        return next(self._iterator)

    def seek(self, cursor: Any) -> None:
        raise PlanError("an iterator has no position: use tinkerloop.data or a list of batches")


def as_batches(batches: Any, *, seekable: bool) -> Batches:
    """Return `batches` itself if it has a cursor; wrap a list or an iterable of batches.

    Args:
        batches: `Batches`, a list of batches, or an iterable of batches.
        seekable: if true, refuse an iterator, which has no position.

    Raises:
        PlanError: `batches` has no position, and `seekable` is true.
    """
    if isinstance(batches, Batches):
        return batches
    if isinstance(batches, Sequence):
        return _Listed(batches)
    if seekable:
        raise PlanError(
            f"a run with checkpoints needs batches with a position, got {type(batches).__name__}: "
            "use tinkerloop.data, a list of batches, or an object with `cursor` and `seek`"
        )
    return _Iterated(batches)

"""Wrappers that turn a list or an iterator of batches into `Batches`. A list can be resumed, an iterator cannot."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tinkerloop._lazy import tinker
from tinkerloop.data.batches import Batches
from tinkerloop.errors import PlanError


class _Listed:
    """A sequence of batches as `Batches`. The cursor is the index of the next batch."""

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
                f"cannot seek to batch {cursor}: expected an index from 0 to {len(self._batches)}; resume with "
                "the same batches as the run that wrote the record"
            )
        self.cursor = cursor


class _Iterated:
    """An iterable of batches as `Batches`. Its position cannot be saved, so `cursor` is None and `seek` raises."""

    cursor = None

    def __init__(self, batches: Iterable[Sequence[tinker.Datum]]):
        self._iterator: Iterator[Sequence[tinker.Datum]] = iter(batches)

    def __next__(self) -> Sequence[tinker.Datum]:
        return next(self._iterator)

    def seek(self, cursor: Any) -> None:
        raise PlanError(
            "a plain iterator cannot be resumed, because its position cannot be saved: "
            "pass batches from tinkerloop.data or a list of batches"
        )


def as_batches(batches: Any, *, seekable: bool) -> Batches:
    """Return `batches` unchanged if it is `Batches`; otherwise wrap the list or iterable as `Batches`.

    Args:
        batches: `Batches`, a list of batches, or another iterable of batches.
        seekable: if true, a position in the batches must be restorable with `seek`.

    Raises:
        PlanError: `seekable` is true, and `batches` is neither `Batches` nor a list.
    """
    if isinstance(batches, Batches):
        return batches
    if isinstance(batches, Sequence):
        return _Listed(batches)
    if seekable:
        raise PlanError(
            f"a run with checkpoints needs batches whose position can be saved, got {type(batches).__name__}: "
            "pass batches from tinkerloop.data, a list of batches, or an object with `cursor` and `seek`"
        )
    return _Iterated(batches)

"""Wrappers that turn a list or an iterator of batches into `Batches`. A list can be resumed, an iterator cannot."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from tinkerloop._lazy import tinker
from tinkerloop.data.batches import Batches
from tinkerloop.datum_values import read_tensor
from tinkerloop.errors import PlanError


class _Listed:
    """A sequence of batches as `Batches`. The cursor has the index of the next batch, and tells other lists apart.

    Its fingerprint is of the first batch and of the last one that was handed out. So a list to which more batches were
    appended is still the same list.
    """

    def __init__(self, batches: Sequence[Sequence[tinker.Datum]]):
        self._batches, self._next = batches, 0
        self._fingerprint = lru_cache(2)(self._fingerprint_at)

    def __next__(self) -> Sequence[tinker.Datum]:
        if self._next >= len(self._batches):
            raise StopIteration
        batch = self._batches[self._next]
        self._next += 1  # last, so that the position does not change if the batch could not be read
        return batch

    @property
    def cursor(self) -> dict[str, Any]:
        return {"kind": "list", "batch": self._next, "fingerprint": self._fingerprint(self._next)}

    def seek(self, cursor: Any) -> None:
        index = cursor  # records of older versions have the index only
        if isinstance(cursor, dict) and cursor.get("kind") == "list":
            index = cursor.get("batch")
        if not isinstance(index, int) or not 0 <= index <= len(self._batches):
            raise PlanError(
                f"cannot seek to batch {index}: expected an index from 0 to {len(self._batches)}; resume with "
                "the same batches as the run that wrote the record"
            )
        if isinstance(cursor, dict) and cursor.get("fingerprint") != self._fingerprint(index):
            raise PlanError(
                f"the record was written by a run on other batches: batch 0 or batch {max(index - 1, 0)} of this list "
                "has other datums now; resume with the same batches, or start a new run in a new folder"
            )
        self._next = index

    def _fingerprint_at(self, index: int) -> str:
        digest = hashlib.blake2b(digest_size=8)
        for batch in (self._batches[:1], self._batches[max(index - 1, 0) : max(index, 1)]):
            for datums in batch:
                _update(digest, datums)
        return digest.hexdigest()


def _update(digest: Any, datums: Any) -> None:
    """Add a batch to `digest`: the number of its datums, and the lengths and the arrays of the first and the last."""
    if not isinstance(datums, Sequence) or not all(
        isinstance(one, tinker.Datum) for one in (*datums[:1], *datums[-1:])
    ):
        return  # no batch: the loop refuses it when it is its turn
    digest.update(f"{len(datums)} datums".encode())
    for datum in (*datums[:1], *datums[-1:]):
        digest.update(f"{datum.model_input.length} positions".encode())
        for name, tensor in sorted(datum.loss_fn_inputs.items()):
            digest.update(name.encode() + read_tensor(name, tensor).tobytes())


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


def with_sources(batches: Batches) -> Iterator[Batches]:
    """Yield `batches` and all batches that they read from, such as those that `prefetch` prepares ahead."""
    yield batches
    for source in getattr(batches, "sources", ()):
        yield from with_sources(source)

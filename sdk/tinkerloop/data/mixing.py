"""Mix the batches of several sources in fixed proportions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tinkerloop.data.batches import Batches, Cursor, check_cursor, refuse_sampled
from tinkerloop.data.streams import checked_length
from tinkerloop.errors import DataError
from tinkerloop.number_checks import check_finite_number, check_whole


def mix(
    parts: Mapping[str, Batches],
    weights: Mapping[str, float],
    batch_size: int,
    *,
    until: str = "first",
    length: int | None = None,
) -> MixedBatches:
    """Return batches that mix several sources, called parts, in fixed proportions.

    Each draw reads the next batch of the part that is furthest below its share. If several parts are equally far below,
    the first of them is drawn. After t draws, a part has been drawn share * t times, to within one or two. The
    proportions therefore hold in every batch, without randomness.

    Args:
        parts: the batches of each part, by name. Create each part with `batch_size=1` and a seed as `shuffle`; a mixed
            batch then has `batch_size` rows. A part with `epochs=None` never ends. The order of the parts belongs to
            the cursor.
        weights: a positive number for each part. The share of a part is its weight divided by the sum of all weights.
        batch_size: the number of draws in a batch.
        until: "first" ends when the first part has ended; "all" continues with the other parts until all have ended.
            If a run is extended, with parts of more epochs, the parts that had ended are drawn again.
        length: the largest number of draws; None sets no limit. The last batch may have fewer rows.

    Returns:
        An iterator of batches with a cursor.

    Raises:
        DataError: `parts` and `weights` have different names, or an argument is invalid.
    """
    return MixedBatches(parts, weights, batch_size, until=until, length=length)


def check_weights(parts: Iterable[str], weights: Mapping[str, float]) -> None:
    """Check that every part has a positive, finite weight; otherwise raise DataError."""
    if not weights or set(parts) != set(weights):
        raise DataError(f"every part needs a weight: got parts {sorted(parts)}, but weights for {sorted(weights)}")
    for name, weight in weights.items():
        check_finite_number(f"the weight of {name!r}", weight, error=DataError)
        if weight <= 0:
            raise DataError(f"the weight of {name!r} must be positive, got {weight!r}", remedy="or leave out this part")


class MixedBatches:
    """Iterator over batches that mix several sources in fixed proportions, returned by `mix`."""

    def __init__(
        self,
        parts: Mapping[str, Batches],
        weights: Mapping[str, float],
        batch_size: int,
        *,
        until: str = "first",
        length: int | None = None,
    ):
        check_weights(parts, weights)
        for part in parts.values():
            refuse_sampled(part, "mix")
        check_whole("batch_size", batch_size, 1, error=DataError)
        if until not in ("first", "all"):
            raise DataError(f'until must be "first" or "all", got {until!r}')
        self.parts, self.batch_size, self.until = dict(parts), int(batch_size), until
        self.length = checked_length(length)
        self.weights = {name: float(weights[name]) for name in self.parts}
        self._restart(0, dict.fromkeys(self.parts, 0), set())

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> list[Any]:
        before = self.cursor
        try:
            batch = self._draw()
        except BaseException:  # also KeyboardInterrupt, after which a notebook goes on with this object
            self._restore(before)  # the batch that failed was not returned, so the position must not change
            raise
        if not batch:
            raise StopIteration
        return batch

    def _draw(self) -> list[Any]:
        batch: list[Any] = []
        end = self._drawn + self.batch_size
        if self.length is not None:
            end = min(end, self.length)
        while self._drawn < end and (name := self._furthest_below_share()):
            try:
                batch.extend(next(self.parts[name]))
            except StopIteration:
                self._end(name)
            else:
                self._taken[name] += 1
                self._drawn += 1
        return batch

    @property
    def sources(self) -> tuple[Batches, ...]:
        """The batches that are mixed. The loop finds out whether another loop has used them."""
        return tuple(self.parts.values())

    @property
    def cursor(self) -> Cursor:
        return {
            **self._identity(),
            "drawn": self._drawn,
            "taken": dict(self._taken),
            "ended": sorted(self._ended),
            "parts": {name: part.cursor for name, part in self.parts.items()},
        }

    def seek(self, cursor: Any) -> None:
        check_cursor(cursor, self._identity(), ("drawn",))
        before, now = list(cursor["weights"]), list(self.weights)
        if before != now:  # equal dictionaries may differ in their order
            raise DataError(
                f"the cursor was taken from parts in the order {before}, and their order is {now} now",
                remedy="resume with the order of the run that saved the cursor, because the first of several parts "
                "that are equally far below their shares is drawn; or start a new run folder",
            )
        self._restore(cursor)
        # A part that had ended may have more rows now, because the run is extended by more epochs.
        extended = {name for name in self._ended if self._has_more(name)}
        if extended:
            self._ended -= extended
            if self.until == "all":
                self._taken = dict.fromkeys(self._taken, 0)

    def _restore(self, cursor: Cursor) -> None:
        for name, part in self.parts.items():
            part.seek(cursor["parts"][name])
        self._restart(cursor["drawn"], dict(cursor["taken"]), set(cursor["ended"]))

    def _has_more(self, name: str) -> bool:
        part = self.parts[name]
        before = part.cursor
        try:
            next(part)
        except StopIteration:
            return False
        except Exception:  # the row exists, but its batch cannot be created: the error is raised when it is drawn
            return True
        part.seek(before)
        return True

    def __len__(self) -> int:
        """The number of batches, provided that no part ends earlier. Without `length`, TypeError is raised."""
        if self.length is None:
            raise TypeError("a mixture without length=N has no length; pass length=N, or steps=N to the loop")
        return -(-self.length // self.batch_size)

    def __repr__(self) -> str:
        length = "" if self.length is None else f" of {self.length:,}"
        size = f"batch_size={self.batch_size}, until={self.until!r}"
        return f"MixedBatches({len(self.parts)} parts, {size}, at draw {self._drawn:,}{length})"

    def __str__(self) -> str:
        total = sum(self.weights.values())
        return "; ".join(f"{self.weights[name] / total:.1%} {name} ({part})" for name, part in self.parts.items())

    def _identity(self) -> Cursor:
        return {"kind": "mix", "weights": self.weights, "batch_size": self.batch_size, "until": self.until}

    def _restart(self, drawn: int, taken: dict[str, int], ended: set[str]) -> None:
        self._drawn, self._taken, self._ended = drawn, taken, ended

    def _end(self, name: str) -> None:
        self._ended.add(name)
        if self.until == "all":
            # Restart the counts at 0, so that the remaining parts are drawn in their own proportions from now on.
            self._taken = dict.fromkeys(self._taken, 0)

    def _furthest_below_share(self) -> str | None:
        if self.until == "first" and self._ended:
            return None
        remaining = [name for name in self.parts if name not in self._ended]
        if not remaining:
            return None
        total, drawn = sum(self.weights[n] for n in remaining), sum(self._taken[n] for n in remaining)
        # After the next draw, each part should have been drawn (drawn + 1) * share times.
        return max(remaining, key=lambda n: (drawn + 1) * self.weights[n] / total - self._taken[n])

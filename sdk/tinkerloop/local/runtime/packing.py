"""The choice of datums that share a forward pass as one packed batch."""

from __future__ import annotations

from collections.abc import Sequence


def pack(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Group datums, by index, into packed batches of at most `budget` tokens: first fit, longest first.

    A datum longer than `budget` is a batch of its own. `pack([5, 9, 3, 4], 9)` -> `[[1], [0, 3], [2]]`.
    The result depends on the lengths alone, so free memory and other requests never change a result's rounding.
    """
    batches: list[list[int]] = []
    rooms: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        batch = next((i for i, room in enumerate(rooms) if lengths[index] <= room), len(batches))
        if batch == len(batches):
            batches.append([])
            rooms.append(budget)
        batches[batch].append(index)
        rooms[batch] -= lengths[index]
    return batches

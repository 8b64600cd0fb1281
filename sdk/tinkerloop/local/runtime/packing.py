"""Grouping of datums into packed batches. The datums of one packed batch share a forward pass."""

from __future__ import annotations

from collections.abc import Sequence


def pack(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Group datums with these lengths into packed batches of at most `budget` tokens. Return lists of datum indices.

    The method is first fit, longest datum first. A datum longer than `budget` is alone in its batch.
    Example: `pack([5, 9, 3, 4], 9)` -> `[[1], [0, 3], [2]]`. The batches depend only on the lengths and the budget, not
    on free memory or other requests, so the rounding of the results is reproducible.
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

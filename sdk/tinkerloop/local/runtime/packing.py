"""Which datums share a forward pass."""

from __future__ import annotations

from collections.abc import Sequence


def pack(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices in groups that have at most `budget` tokens each, or are a single longer one: first fit, longest first.

    A function of the lengths alone: memory at hand or other requests never change a result's rounding.
    """
    groups: list[list[int]] = []
    rooms: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = next((i for i, room in enumerate(rooms) if lengths[index] <= room), len(groups))
        if at == len(groups):
            groups.append([])
            rooms.append(budget)
        groups[at].append(index)
        rooms[at] -= lengths[index]
    return groups

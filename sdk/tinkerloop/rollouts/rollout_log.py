"""`rollouts.jsonl`: every group of rollouts, one per line, in the order of batch and slot.

A group is written before it is trained on. A resumed run reads it instead of sampling it again.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from tinkerloop.errors import CheckpointError
from tinkerloop.loop.jsonl import append_lines, cut, read_lines, set_aside
from tinkerloop.rollouts.trajectory import Group

logger = logging.getLogger(__name__)


def read_rollouts(path: str | Path) -> Iterator[Group]:
    """Yield the groups in a `rollouts.jsonl`, in order.

    Raises:
        CheckpointError: a line is not a group.
    """
    for number, line in enumerate(read_lines(Path(path), restore_numbers=False), 1):
        try:
            yield Group.from_json(line)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path}:{number}: not a group of rollouts; repair or move the file") from error


class RolloutLog:
    """The file to which `Rollouts` writes its groups."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def begin(self) -> None:
        """Prepare for a new run: rename the file of an earlier one to `NAME.1`, or to the next free number."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and self.path.stat().st_size:
            aside = set_aside(self.path)
            logger.warning(
                "%s has rollouts of an earlier run, which is not resumed: it was renamed to %s", self.path, aside
            )

    def rewind(self, first: int, stop: int) -> Mapping[int, Mapping[int, Group]]:
        """Remove the groups of batch `stop` and of later ones. Return the others from batch `first` on.

        Returns:
            The groups by batch and slot.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept, groups = 0, defaultdict[int, dict[int, Group]](dict)
        for line in read_lines(self.path, restore_numbers=False):
            if line["batch"] >= stop:
                break
            kept += 1
            if line["batch"] >= first:
                groups[line["batch"]][line["slot"]] = Group.from_json(line)
        cut(self.path, kept)
        return groups

    def append(self, groups: Iterable[Group]) -> None:
        """Write the groups of a batch, in the order of their slots, and flush them to disk."""
        append_lines(self.path, (group.to_json() for group in groups))

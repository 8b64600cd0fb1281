"""`rollouts.jsonl`: every group of rollouts, one per line, in the order of batch and slot.

A group is written before it is trained on. A resumed run reads it instead of sampling it again.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tinkerloop.errors import CheckpointError, PlanError, RolloutError
from tinkerloop.loop.jsonl import append_lines, cut, read_lines, set_aside
from tinkerloop.rollouts.trajectory import Group

logger = logging.getLogger(__name__)
T = TypeVar("T")


def read_rollouts(path: str | Path) -> Iterator[Group]:
    """Yield the groups in a `rollouts.jsonl`, in order.

    Raises:
        CheckpointError: there is no such file, or a line is not a group.
    """
    if not Path(path).is_file():
        raise CheckpointError(
            f"there is no file {path}: pass the path that was passed to Rollouts(log=...), after the first batch"
        )
    for _, read_group in _numbered_groups(Path(path)):
        yield read_group()


def _numbered_groups(path: Path) -> Iterator[tuple[int, Callable[[], Group]]]:
    """Yield the number of the batch of each group in the file, and a function that returns the group."""
    for number, line in enumerate(read_lines(path, restore_numbers=False), 1):
        yield _read(path, number, line, _batch_of), partial(_read, path, number, line, Group.from_json)


def _batch_of(line: Mapping[str, Any]) -> int:
    return int(line["batch"])


def _read(path: Path, number: int, line: Mapping[str, Any], read: Callable[[Mapping[str, Any]], T]) -> T:
    """Return `read(line)`. Raise CheckpointError if the line, which is number `number` of the file, is not a group."""
    try:
        return read(line)
    except (AttributeError, KeyError, TypeError, ValueError, RolloutError) as error:
        raise CheckpointError(f"{path}:{number}: not a group of rollouts; repair or move the file") from error


class RolloutLog:
    """The file to which `Rollouts` writes its groups.

    Raises:
        PlanError: `path` is a folder. An existing file may be renamed, which must not happen to the folder of a run.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if self.path.is_dir():
            raise PlanError(
                f"log must be the path of a file, but {path} is a folder: pass the path of a rollouts.jsonl in it"
            )

    def begin(self) -> None:
        """Prepare for a new run: rename the file of an earlier one to `NAME.1`, or to the next free number."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and self.path.stat().st_size:
            aside = set_aside(self.path)
            logger.warning(
                "%s has rollouts of an earlier run, which is not resumed: it was renamed to %s", self.path, aside
            )

    def rewind(self, first: int, stop: int, least: int) -> Mapping[int, Mapping[int, Group]]:
        """Remove the groups of batch `stop` and of later ones. Return the others from batch `first` on.

        Args:
            first: the first batch that was not delivered before the record was written.
            stop: the first batch to remove.
            least: the least number of groups that a delivered batch has.

        Returns:
            The groups by batch and slot.

        Raises:
            CheckpointError: a batch that was delivered is missing, or a line is not a group. The file is not changed.
        """
        kept, groups = 0, defaultdict[int, dict[int, Group]](dict)
        delivered = Counter[int]()  # number of groups by batch
        for batch, read_group in _numbered_groups(self.path):
            if batch >= stop:
                break
            kept += 1
            if batch < first:
                delivered[batch] += 1
            else:
                group = read_group()
                groups[batch][group.slot] = group
        for batch in range(first):
            if delivered[batch] < least:
                raise CheckpointError(
                    f"groups of batch {batch} are missing in {self.path}: it has {delivered[batch]}, expected at least "
                    f"{least}, because the record was written after {first} batches. Restore the file, copy it to the "
                    "folder in which the run is resumed, or pass its path as log"
                )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        cut(self.path, kept)
        return groups

    def append(self, groups: Iterable[Group]) -> None:
        """Write the groups of a batch, in the order of their slots, and flush them to disk."""
        append_lines(self.path, (group.to_json() for group in groups))

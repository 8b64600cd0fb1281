"""The records that are kept when several callbacks save records and ask to delete old ones."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from tinkerloop.loop.checkpoints import Record

Keep = Callable[[Sequence[Record]], Collection[int]]


def kept_steps(records: Sequence[Record], keeps: Mapping[str, Keep], callbacks: Collection[str]) -> set[int]:
    """Return the steps of the records to keep: those that any of the callbacks that asked for the record keeps.

    A callback decides on the records that it asked for, and on those that no callback of this run asked for. One that
    never asks for a record decides on all of them, after the others.

    Args:
        records: all records, oldest first.
        keeps: mapping from the names of the callbacks that returned a `Retain` to its function.
        callbacks: the names of all callbacks of the run.
    """
    owners = {record.step: set(record.saved_by) & set(callbacks) for record in records}
    savers = set().union(*owners.values())
    decisions: dict[str, set[int]] = {}
    for name, keep in keeps.items():
        judged = [one for one in records if name not in savers or name in owners[one.step] or not owners[one.step]]
        decisions[name] = set(keep(judged))
    kept: set[int] = set()
    for record in records:
        deciding = owners[record.step] or savers & keeps.keys()
        if not deciding or any(name not in keeps or record.step in decisions[name] for name in deciding):
            kept.add(record.step)
    for name in keeps.keys() - savers:
        kept &= decisions[name]
    return kept


def noted(keep: Keep, note: str) -> Keep:
    """Return a function that does what `keep` does, and adds `note` to its errors."""

    def keep_noted(records: Sequence[Record]) -> Collection[int]:
        try:
            return keep(records)
        except Exception as error:
            error.add_note(note)
            raise

    return keep_noted

"""Several requests to save a checkpoint at one boundary, and the request that a record answers."""

from __future__ import annotations

from collections.abc import Sequence

from tinkerloop.loop.checkpoints import Record
from tinkerloop.loop.events import Save


def saves_of(record: Record) -> list[tuple[str, Save]]:
    """Return (callback name, save) pairs that ask for what the checkpoint of `record` already has."""
    save = Save(record.ttl_seconds, record.sampler_path is not None)
    return [(name, save) for name in record.saved_by or [""]]


def combined(saves: Sequence[tuple[str, Save]]) -> Save:
    """Return one save for all (callback name, save) pairs.

    It has the longest of their lifetimes, and weights for sampling if one of them does.
    """
    ttls = [save.ttl_seconds for _, save in saves if save.ttl_seconds is not None]
    return Save(max(ttls) if len(ttls) == len(saves) else None, any(save.sampler for _, save in saves))

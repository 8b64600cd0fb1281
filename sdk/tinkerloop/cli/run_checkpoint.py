"""Finding the checkpoint that a command was given: a run folder's newest, or a tinker:// path."""

from __future__ import annotations

from pathlib import Path

from tinkerloop.errors import CheckpointError
from tinkerloop.loop import Checkpoints

SERVICE_FOLDER = "service"
"""Where a run folder keeps the embedded engine's checkpoints."""


def checkpoint_of(place: str, root: Path | None = None) -> tuple[Path, str]:
    """(root, tinker:// path) of a run folder or a path; a path is under ~/.tinkerloop unless `root` is given.

    Raises:
        CheckpointError: the run folder has no checkpoint.
    """
    if place.startswith("tinker://"):
        return (root or Path.home() / ".tinkerloop").absolute(), place
    record = Checkpoints(place).latest()
    if record is None:
        raise CheckpointError(f"{place} has no checkpoint: expected a checkpoints.jsonl in a run folder")
    return (root or Path(place) / SERVICE_FOLDER).absolute(), record.sampler_path or record.path

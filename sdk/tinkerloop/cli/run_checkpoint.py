"""The checkpoint that a command is given: the newest of a run folder, or a tinker:// path."""

from __future__ import annotations

from pathlib import Path

from tinkerloop.errors import CheckpointError
from tinkerloop.loop import Checkpoints

SERVICE_FOLDER = "service"
"""The subfolder of a run folder that holds the checkpoints of the embedded engine."""


def checkpoint_of(place: str, root: Path | None = None) -> tuple[Path, str]:
    """Find a checkpoint.

    Args:
        place: a run folder or a tinker:// path.
        root: the folder that tinker:// paths are relative to; None uses the run's own, and ~/.tinkerloop for a path.

    Returns:
        (root, tinker:// path).

    Raises:
        CheckpointError: the run folder has no checkpoint.
    """
    if place.startswith("tinker://"):
        return (root or Path.home() / ".tinkerloop").absolute(), place
    record = Checkpoints(place).latest()
    if record is None:
        raise CheckpointError(
            f"{place} has no checkpoint: expected a run folder with a checkpoints.jsonl; pass one, or a tinker:// path"
        )
    return (root or Path(place) / SERVICE_FOLDER).absolute(), record.sampler_path or record.path

"""Find the checkpoint for a command: the newest checkpoint of a run folder, or a tinker:// path."""

from __future__ import annotations

from pathlib import Path

from tinkerloop.errors import CheckpointError
from tinkerloop.loop import Checkpoints

SERVICE_FOLDER = "service"
"""Name of the subfolder of a run folder in which the embedded engine stores its checkpoints."""


def checkpoint_of(place: str, root: Path | None = None) -> tuple[Path, str]:
    """Find the checkpoint that `place` refers to.

    Args:
        place: a run folder, whose newest checkpoint is used, or a tinker:// path.
        root: the folder that tinker:// paths are relative to. None uses the subfolder `SERVICE_FOLDER` of a run folder,
            and ~/.tinkerloop for a tinker:// path.

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
            f"{place} has no checkpoint; pass a run folder whose checkpoints.jsonl has a record, or a tinker:// path"
        )
    return (root or Path(place) / SERVICE_FOLDER).absolute(), record.sampler_path or record.path

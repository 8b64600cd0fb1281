"""Find the checkpoint for a command: the newest checkpoint of a run folder, or a tinker:// path."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tinkerloop._lazy import tinker
from tinkerloop.errors import CheckpointError
from tinkerloop.loop.checkpoints import saved_paths

SERVICE_FOLDER = "service"
"""Name of the subfolder of a run folder that may hold the checkpoints of the embedded engine."""


def checkpoint_of(place: str, root: Path | None = None) -> tuple[Path, str]:
    """Find the checkpoint that `place` refers to.

    Args:
        place: a run folder of tinkerloop or of the Tinker Cookbook, whose newest checkpoint is used, or a tinker://
            path.
        root: the folder that tinker:// paths are relative to. None: for a run, the folder that its config.json names,
            else its subfolder `service`; otherwise ~/.tinkerloop.

    Returns:
        (root, tinker:// path).

    Raises:
        CheckpointError: the run folder has no checkpoint.
    """
    if place.startswith("tinker://"):
        return (root or _DEFAULT_ROOT.expanduser()).absolute(), place
    state, sampler = _newest(place)
    return (root or _root_of(place)).absolute(), str(sampler or state)


def training_path(place: str) -> str:
    """Return the path of the training checkpoint that `place` refers to: a tinker:// path, or a run's newest record.

    Raises:
        CheckpointError: the run folder has no checkpoint.
    """
    if place.startswith("tinker://"):
        return place
    state, sampler = _newest(place)
    return str(state or sampler)


def _newest(place: str) -> tuple[str | None, str | None]:
    paths = saved_paths(place)
    if not paths:
        raise CheckpointError(
            f"{place} has no checkpoint; pass a run folder whose checkpoints.jsonl has a record, or a tinker:// path"
        )
    return paths[-1]


def run_config(place: str) -> dict[str, Any]:
    """Return the configuration in the config.json of a run folder; empty if there is none.

    Raises:
        CheckpointError: config.json is not a JSON object.
    """
    file = Path(place) / "config.json"
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise CheckpointError(f"{file} is not a JSON object; repair it, or delete it and pass --root and --renderer")
    return config


@contextmanager
def naming_root(root: Path) -> Iterator[None]:
    """Add `--root` to the error for a checkpoint that is not under `root`."""
    try:
        yield
    except tinker.NotFoundError as error:
        if "expired" in str(error):
            raise
        raise CheckpointError(
            f"{error}; pass the folder that holds the embedded engine's checkpoints as --root, if it is not {root}. "
            "A checkpoint of a server is downloaded by `tinkerloop export` with --service"
        ) from error


def _root_of(place: str) -> Path:
    recorded = run_config(place).get("checkpoint_root")
    if isinstance(recorded, str) and Path(recorded).is_dir():
        return Path(recorded)
    own = Path(place) / SERVICE_FOLDER
    return own if own.is_dir() else _DEFAULT_ROOT.expanduser()


_DEFAULT_ROOT = Path("~/.tinkerloop")

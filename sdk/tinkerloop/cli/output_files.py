"""The check of an option that names a file to write. It comes before the work whose result the file gets."""

from __future__ import annotations

from pathlib import Path

from tinkerloop.errors import TinkerloopError


def check_output(option: str, file: Path | None) -> None:
    """Check that the folder of `file` exists, and that `file` is no folder. None is no file, which is accepted.

    Raises:
        TinkerloopError: the file cannot be written.
    """
    if file is None:
        return
    if file.is_dir():
        raise TinkerloopError(f"{option} {file}: this is a folder; pass the name of a file in it")
    if not file.parent.is_dir():
        raise TinkerloopError(
            f"{option} {file}: there is no folder {file.parent}; create it, or pass another file to {option}"
        )

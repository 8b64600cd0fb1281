"""Append-only files of one JSON object a line, which stay readable after a kill at any moment or a full disk.

A line is complete once its newline is written. Text after the last newline is an append that was interrupted: readers
ignore it, and the next writer removes it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tinkerloop.errors import CheckpointError


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield every complete line, parsed; nothing if there is no file.

    Raises:
        CheckpointError: a complete line is not a JSON object.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                value = json.loads(line)
            except ValueError:
                value = None
            if not isinstance(value, dict):
                raise CheckpointError(f"{path}:{number}: not a JSON object: {line[:80]!r}; repair or move the file")
            yield value


def cut(path: Path, lines: int | None = None) -> int:
    """Cut the file after its first `lines` complete lines (None: after the last) and return how many it has."""
    if not path.exists():
        return 0
    kept, end = 0, 0
    with path.open("r+b") as file:
        while lines is None or kept < lines:
            line = file.readline()
            if not line.endswith(b"\n"):
                break
            kept, end = kept + 1, end + len(line)
        file.truncate(end)
    return kept


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Append one line and force it to disk, or leave the file as it was and raise."""
    end = path.stat().st_size if path.exists() else 0
    try:
        with path.open("ab") as file:
            file.write(encode(row))
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        if path.exists():
            os.truncate(path, end)
        raise


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace the file's content by `rows`, at once and durably: a reader sees the old file or the new one."""
    write_atomic(path, b"".join(encode(row) for row in rows))


def write_atomic(path: Path, content: bytes) -> None:
    """Replace the file's content, at once and durably."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def encode(row: Mapping[str, Any]) -> bytes:
    """Encode the row as one line."""
    return (_ENCODER.encode(row) + "\n").encode()


def _number(value: Any) -> Any:
    if hasattr(value, "item"):
        return value.item()  # a scalar of numpy or torch
    raise TypeError(f"expected JSON values, got {value!r} ({type(value).__name__})")


_ENCODER = json.JSONEncoder(ensure_ascii=False, default=_number)

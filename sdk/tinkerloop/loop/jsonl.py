"""Append-only files with one JSON object per line. They stay readable after a kill at any moment and on a full disk.

A line is complete once its newline is written. Text after the last newline is an interrupted append: `read_lines`
ignores it, and `cut`, which is called before appending, removes it.

JSON has no NaN and no infinities. They are written as the strings "NaN", "Infinity" and "-Infinity" (the convention of
Protocol Buffers), which `float` and `Number` of other languages accept, and `read_lines` returns them as numbers. In a
file that may also have these words as texts, they are quoted (`with_quoted_words`), or numbers are not restored.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tinkerloop.errors import CheckpointError


def read_lines(path: Path, *, restore_numbers: bool = True) -> Iterator[dict[str, Any]]:
    """Yield the JSON object of every complete line. Yield nothing if the file does not exist.

    Args:
        path: the file.
        restore_numbers: return the strings "NaN", "Infinity" and "-Infinity" as numbers, and quoted words as texts.
            Pass False for a file whose texts may be one of these words, such as the messages of trajectories.

    Raises:
        CheckpointError: a complete line is not a JSON object.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        number = 0
        while lines := file.readlines(_AT_ONCE):
            is_interrupted = not lines[-1].endswith(b"\n")
            if is_interrupted:
                lines.pop()
            for line, value in zip(lines, _parsed(lines), strict=True):
                number += 1
                if restore_numbers and (b'NaN"' in line or b'Infinity"' in line):
                    value = _with_numbers(value)
                if not isinstance(value, dict):
                    raise CheckpointError(
                        f"{path}:{number}: not a JSON object: {line[:80]!r}; repair the line, or move the file"
                    )
                yield value
            if is_interrupted:
                return


def _parsed(lines: Sequence[bytes]) -> list[Any]:
    """Return the value of each line; None if it is not JSON. Parsing them together takes half the time."""
    values = _value(b"[" + b",".join(lines) + b"]")
    if isinstance(values, list) and len(values) == len(lines):
        return values
    return [_value(line) for line in lines]


def _value(text: bytes) -> Any:
    try:
        return json.loads(text.decode())
    except ValueError:
        return None


def cut(path: Path, lines: int | None = None) -> int:
    """Truncate the file after `lines` complete lines (None: after the last one), and return how many lines remain."""
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


def set_aside(path: Path) -> Path:
    """Rename the file to the first free name of `NAME.1`, `NAME.2` and so on, and return the new path."""
    number = 1
    while (aside := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return path.rename(aside)


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Append `row` as one line and flush it to disk. On an error, restore the file's previous length and raise."""
    append_lines(path, [row])


def append_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append `rows`, one per line, and flush them to disk. On an error, restore the previous length and raise."""
    end = path.stat().st_size if path.exists() else 0
    try:
        with path.open("ab") as file:
            file.writelines(map(encode, rows))
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        if path.exists():
            os.truncate(path, end)
        raise


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace the file's lines by `rows`, atomically and durably: a reader sees either the old or the new file."""
    write_atomic(path, b"".join(encode(row) for row in rows))


def write_atomic(path: Path, content: bytes) -> None:
    """Replace the content of the file, atomically and durably: a reader sees either the old or the new content.

    A symbolic link at `path`, or at the temporary file beside it, is replaced and never followed.
    """
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)  # left by a kill, or a link that somebody planted
    try:
        with temporary.open("xb") as file:  # "x" follows no link
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # on a full disk it would take the room that is left
        raise
    if os.name == "nt":  # Windows cannot open a folder to flush it
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def encode(row: Mapping[str, Any]) -> bytes:
    """Encode `row` as one line of JSON, in UTF-8, with a newline at the end."""
    try:
        line = _ENCODER.encode(row)
    except ValueError:  # a number that JSON cannot write; looking for one in every row would take longer
        line = _ENCODER.encode(without_non_finite(row))
    return (line + "\n").encode()


def without_non_finite(value: Any) -> Any:
    """Return `value`, with "NaN", "Infinity" or "-Infinity" in place of each number that JSON cannot write."""
    if isinstance(value, Mapping):
        return {without_non_finite(key): without_non_finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_non_finite(one) for one in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def with_quoted_words(value: Any) -> Any:
    """Return `value`, with an apostrophe before each text that would be read as a number.

    >>> with_quoted_words({"file": "NaN", "quoted": "'NaN", "rate": float("inf"), "text": "NaNs"})
    {'file': "'NaN", 'quoted': "''NaN", 'rate': inf, 'text': 'NaNs'}
    """
    if isinstance(value, Mapping):
        return {key: with_quoted_words(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [with_quoted_words(one) for one in value]
    return f"'{value}" if isinstance(value, str) and value.lstrip("'") in NON_FINITE else value


def _with_numbers(value: Any) -> Any:
    """Return `value`, with the number in place of each "NaN", "Infinity" and "-Infinity", and quoted words as texts."""
    if isinstance(value, dict):
        return {key: _with_numbers(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_with_numbers(one) for one in value]
    if not isinstance(value, str) or value.lstrip("'") not in NON_FINITE:
        return value
    return value[1:] if value.startswith("'") else float(value)


def _number(value: Any) -> Any:
    if hasattr(value, "item"):
        return value.item()  # a numpy or torch scalar
    raise TypeError(
        f"cannot write {value!r} as JSON: expected a number, string, boolean, None, list or dict, "
        f"got a {type(value).__name__}"
    )


_AT_ONCE = 2**16  # bytes of lines that are read and parsed at a time
NON_FINITE = ("NaN", "Infinity", "-Infinity")
"""The strings that stand for numbers which JSON cannot write."""
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_number)

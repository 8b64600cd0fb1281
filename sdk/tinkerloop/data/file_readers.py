"""Read the raw rows of one file: JSONL (plain, gzip, zstd), a JSON array or parquet. Parse a line.

A damaged file always raises an error. A line is parsed only on request, so that the caller can skip a bad one.
"""

from __future__ import annotations

import gzip
import itertools
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tinkerloop.errors import DataError
from tinkerloop.strict_json import STRICT_ROWS

MAX_LINE_BYTES = 1 << 28
"""The largest line that is read, 256 MB."""

RawRows = Iterator[tuple[int, int, Any]]
"""For each row: its number from 1, the byte offset after it, and the line, or the value in parquet and JSON arrays."""


def read_rows(path: str, row: int, offset: int) -> RawRows:
    """Yield the rows of a file, except blank lines.

    Args:
        row: the number of rows that were read before.
        offset: the byte offset after them. Only plain JSONL files use it.

    Raises:
        DataError: the file cannot be read.
    """
    if path.endswith(".parquet"):
        return _read_parquet(path, row)
    return _read_array(path, row) if path.endswith(".json") else _read_jsonl(path, row, offset)


def _read_jsonl(path: str, row: int, offset: int) -> RawRows:
    plain = path.endswith(".jsonl")
    try:
        with _open(path) as file:
            if plain:
                file.seek(offset)
            else:
                next(itertools.islice(bounded_lines(file, path), row, row), None)  # reads `row` lines and drops them
            for number, line in enumerate(bounded_lines(file, path, row), start=row + 1):
                offset += len(line)
                if number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
                    raise DataError("the file is UTF-16", path=path, remedy="convert it to UTF-8")
                if not line.isspace():
                    yield number, offset, line
    except (OSError, EOFError, zlib.error, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"the file cannot be read: {error}", path=path, remedy="check that the file is complete"
        ) from error


def bounded_lines(file: IO[bytes], path: str, row: int = 0) -> Iterator[bytes]:
    """Yield the lines of a file. A small compressed file may contain a line that does not fit into memory."""
    for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), start=row + 1):
        if len(line) > MAX_LINE_BYTES:
            raise DataError(
                f"the line has more than {MAX_LINE_BYTES:,} bytes",
                path=path,
                line=number,
                remedy="check that it is data; to read it, raise tinkerloop.data.file_readers.MAX_LINE_BYTES",
            )
        yield line


def _open(path: str) -> IO[bytes]:
    if path.endswith(".gz"):
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if path.endswith(".zst"):
        return _open_zstd(path)
    return open(path, "rb")


def _open_zstd(path: str) -> IO[bytes]:
    import io

    try:
        import pyarrow
    except ImportError as error:
        raise _needs("pyarrow", path) from error
    # pyarrow raises an error for a truncated file; the package zstandard would treat it as complete.
    return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(path), "zstd"))  # type: ignore[arg-type]


def _read_array(path: str, row: int) -> RawRows:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"the file cannot be read: {error}", path=path) from error
    try:
        text = content.decode("utf-8-sig")
        rows = STRICT_ROWS.decode(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"the file is not JSON: {error}", path=path, remedy="rename a file with one object per line to .jsonl"
        ) from error
    if not isinstance(rows, list):
        raise DataError(
            f"a .json file must contain an array of rows, got {json_name(rows)}",
            path=path,
            remedy="rename a file with one object per line to .jsonl",
        )
    for number, value in enumerate(rows[row:], start=row + 1):
        yield number, 0, value


def _read_parquet(path: str, row: int) -> RawRows:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise _needs("pyarrow", path) from error
    try:
        file = pyarrow.parquet.ParquetFile(path)
        number = 0
        for group in range(file.metadata.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if number + rows <= row:
                number += rows
                continue
            for batch in file.iter_batches(batch_size=512, row_groups=[group]):
                for value in batch.to_pylist():
                    number += 1
                    if number > row:
                        yield number, 0, without_nulls(value)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"the file cannot be read: {error}", path=path, remedy="check that the file is parquet and complete"
        ) from error


def without_nulls(value: Any) -> Any:
    """Return a copy of the value without the dictionary entries that are null, at any depth.

    In a table, every row has every field of a nested type, so a null means that the field is absent.

    >>> without_nulls({"role": "user", "tool_calls": None, "content": [{"type": "text", "text": "a", "image": None}]})
    {'role': 'user', 'content': [{'type': 'text', 'text': 'a'}]}
    """
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


# ---- parsing of one line


def parse_line(line: bytes, path: str, number: int) -> Any:
    """Return the value of a line of JSON.

    Raises:
        DataError: the line is not UTF-8, or not JSON as `STRICT_ROWS` reads it.
    """
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"the line is not UTF-8 at byte {error.start}", path=path, line=number, remedy="convert the file to UTF-8"
        ) from error
    try:
        return STRICT_ROWS.decode(text)
    except json.JSONDecodeError as error:
        cut = text.startswith("{") and not text.endswith(("}", "\n"))
        remedy = "the file seems to be cut off here" if cut else "write one JSON object per line"
        raise DataError(
            f"the line is not JSON: {error.msg} at column {error.colno}", path=path, line=number, remedy=remedy
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"the line is JSON that cannot be used: {error}", path=path, line=number) from error


def json_name(value: Any) -> str:
    """Return what JSON calls a value, such as "an array"."""
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null", dict: "an object"}
    return names.get(type(value), "a number")


def _needs(package: str, path: str) -> DataError:
    return DataError(
        f"reading this file requires the package {package}", path=path, remedy="pip install 'tinkerloop-sdk[data]'"
    )

"""Rows of files, each with its file and line, in order (`FileSource`) or by index (`JsonlFile`).

A bad row raises an error only when it is parsed, so that the caller can skip and count it. A file that cannot be read
always raises an error.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tinkerloop.data.file_readers import bounded_lines, json_name, parse_line, read_rows
from tinkerloop.data.file_search import PathLike, find_files
from tinkerloop.errors import DataError


@dataclass(frozen=True, slots=True)
class RawRow:
    """An unparsed row of a file.

    `line` is the line number, counted from 1. In parquet files and JSON arrays it is the row number.
    """

    path: str
    line: int
    raw: Any
    """The bytes of the line. In parquet files and JSON arrays, the value of the row."""
    is_in_file: bool = True
    """False if `path` is the name of a Hugging Face dataset, so that no image can be in its folder."""

    def parse(self) -> dict[str, Any]:
        """Return the row as a dictionary.

        Raises:
            DataError: the row is not a JSON object. The message gives the file and the line.
        """
        value = parse_line(self.raw, self.path, self.line) if isinstance(self.raw, bytes) else self.raw
        if not isinstance(value, dict):
            raise DataError(
                f"a row must be a JSON object, got {json_name(value)}",
                path=self.path,
                line=self.line,
                remedy='write one object per line, like {"messages": [...]}',
            )
        return value


class FileSource:
    """A source for `stream` that reads rows of files, from any position on.

    Opening a plain JSONL file takes O(1) time at any position. In a parquet file, the row groups before the position
    are not read. A compressed file is read from its start to the position.

    Args:
        path: a file, a folder, a glob pattern, or a list of these.
        parse: a function that converts a `RawRow` to the value that is yielded, by default to a dictionary. If it
            returns None, the row is left out.

    Raises:
        DataError: the file does not exist or has an unknown suffix.
    """

    def __init__(self, path: PathLike | Sequence[PathLike], parse: Callable[[RawRow], Any] = RawRow.parse):
        self.files, self._parse = find_files(path), parse

    def __repr__(self) -> str:
        return f"FileSource({len(self.files):,} files)"

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the names and the content of the files, computed once. `seek` rejects a cursor of other content.

        Of a file of more than 1 GB, 16,384 blocks of 64 kB are hashed, spread evenly, so that a run starts soon.
        """
        digest = hashlib.blake2b(digest_size=8)
        for file in self.files:
            digest.update(json.dumps([os.path.basename(file), os.path.getsize(file)]).encode())
            _hash_content(file, digest)
        return digest.hexdigest()

    def open(self, position: Any = None) -> OpenFiles:
        """Return an iterator over the rows from `position` on. None means the first row."""
        return OpenFiles(self.files, self._parse, **(position or {}))

    def __iter__(self) -> Iterator[Any]:
        return self.open()


_BLOCK_BYTES, _BLOCKS = 1 << 16, 1 << 14


def _hash_content(file: str, digest: Any) -> None:
    """Add the content of a file to a hash, or evenly spread blocks of it if the file has more than 1 GB."""
    blocks = -(-os.path.getsize(file) // _BLOCK_BYTES)
    try:
        with open(file, "rb", buffering=0) as opened:
            for number in range(min(blocks, _BLOCKS)):
                if blocks > _BLOCKS:  # from the first block to the last
                    opened.seek(number * (blocks - 1) // (_BLOCKS - 1) * _BLOCK_BYTES)
                digest.update(opened.read(_BLOCK_BYTES))
    except OSError as error:
        raise DataError(f"the file cannot be read: {error}", path=file, remedy="check its permissions") from error


class OpenFiles:
    """Iterator over the rows of several files, one file after another.

    Its `position` can be saved. A later iterator that is created with it continues at the same row.
    """

    def __init__(
        self, files: Sequence[str], parse: Callable[[RawRow], Any], file: int = 0, row: int = 0, offset: int = 0
    ):
        self._files, self._parse = files, parse
        self._file, self._row, self._offset = file, row, offset
        self._reading: Iterator[tuple[int, int, Any]] | None = None

    @property
    def position(self) -> dict[str, int]:
        return {"file": self._file, "row": self._row, "offset": self._offset}

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        while self._file < len(self._files):
            path = self._files[self._file]
            if self._reading is None:
                self._reading = read_rows(path, self._row, self._offset)
            try:
                self._row, self._offset, raw = next(self._reading)
            except StopIteration:
                self._file, self._row, self._offset, self._reading = self._file + 1, 0, 0, None
                continue
            except BaseException:
                self._reading = None  # so that the next call reads on here, or raises the same error
                raise
            value = self._parse(RawRow(path, self._row, raw))
            if value is not None:
                return value
        raise StopIteration


class JsonlFile(Sequence[Any]):
    """A sequence of the rows of one plain JSONL file. A row is read from the file when it is accessed.

    Only the offset and the line number of each row are held in memory (16 bytes per row). Blank lines are not rows.
    `fingerprint` is a hash of the file's content.

    Args:
        path: a plain .jsonl file.
        parse: a function that converts a `RawRow` to the value of the row, by default to a dictionary.

    Raises:
        DataError: the file is not a plain .jsonl file. When a row is accessed, also if it is not a JSON object.
    """

    def __init__(self, path: PathLike, parse: Callable[[RawRow], Any] = RawRow.parse):
        (self.path,) = find_files(path)
        if not self.path.endswith(".jsonl"):
            raise DataError(
                "JsonlFile needs a plain .jsonl file, to read rows in any order",
                path=self.path,
                remedy="decompress the file or convert it to JSONL",
            )
        self._parse = parse
        self._offsets, self._lines = array("q"), array("q")
        digest, offset = hashlib.blake2b(digest_size=8), 0
        with open(self.path, "rb") as file:
            for number, line in enumerate(bounded_lines(file, self.path), start=1):
                digest.update(line)
                if not line.isspace():
                    self._offsets.append(offset)
                    self._lines.append(number)
                offset += len(line)
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._offsets)

    def __repr__(self) -> str:
        return f"JsonlFile({self.path!r}, {len(self):,} rows)"

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        offset, line = self._offsets[index], self._lines[index]
        with open(self.path, "rb") as file:
            file.seek(offset)
            return self._parse(RawRow(self.path, line, file.readline()))

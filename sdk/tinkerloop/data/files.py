"""Read rows from files, each with its file and line: JSONL (plain, gzip, zstd), JSON arrays and parquet.

A bad row raises an error only when it is parsed, so that the caller can skip and count it. A file that cannot be read
always raises an error.
"""

from __future__ import annotations

import difflib
import glob
import gzip
import hashlib
import itertools
import json
import os
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from tinkerloop.errors import DataError

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".parquet")
"""The suffixes of data files; a file with another suffix is rejected."""

MAX_LINE_BYTES = 1 << 28
"""The largest line that is read, 256 MB."""

PathLike = str | os.PathLike[str]


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
        value = _parse_line(self.raw, self.path, self.line) if isinstance(self.raw, bytes) else self.raw
        if not isinstance(value, dict):
            raise DataError(
                f"a row must be a JSON object, got {_json_name(value)}",
                path=self.path,
                line=self.line,
                remedy='write one object per line, like {"messages": [...]}',
            )
        return value


def find_files(path: PathLike | Sequence[PathLike]) -> list[str]:
    """Return the data files that a path matches.

    A folder, and `**` in a pattern, leave out names that begin with a dot or with two underscores, as the package
    `datasets` does. Linked folders are searched too. A folder or file that is reached in several ways is read once.

    Args:
        path: a file, a folder (subfolders are searched too), a glob pattern, or a list of these.

    Returns:
        The files in the order of the list. Files of the same folder or pattern are sorted by name.

    Raises:
        DataError: no data file matches, or a file has an unknown suffix.
    """
    if isinstance(path, Sequence) and not isinstance(path, str):
        return [file for one in path for file in find_files(one)]
    path = os.path.expanduser(os.fspath(path))
    if os.path.isdir(path):
        names = (os.path.join(folder, name) for folder in _folders(path) for name in _visible(folder))
        files = _once(name for name in names if name.endswith(SUFFIXES))
        if not files:
            raise DataError("no data file in this folder", path=path, remedy=f"known suffixes: {', '.join(SUFFIXES)}")
        return files
    if os.path.exists(path):
        files = [path]
    elif files := _once(_glob(path)):
        pass
    else:
        raise DataError("no such file", path=path, remedy=f"searched {os.getcwd()}{_did_you_mean(path)}")
    for file in files:
        if not file.endswith(SUFFIXES):
            raise DataError("unknown file suffix", path=file, remedy=f"known suffixes: {', '.join(SUFFIXES)}")
    return files


def _glob(pattern: str) -> Iterator[str]:
    """Yield the paths that a pattern matches. `glob.glob` would follow a link to its own folder 40 levels deep."""
    parts = pattern.replace(os.altsep or os.sep, os.sep).split(os.sep)
    if "**" not in parts:
        yield from glob.iglob(pattern)
        return
    first = parts.index("**")
    rest = os.sep.join(parts[first + 1 :]) or "*"
    for root in glob.glob(os.sep.join(parts[:first]) + os.sep) if first else [""]:
        for folder in _folders(root) if os.path.isdir(root or ".") else ():
            yield from _glob(os.path.join(glob.escape(folder), rest))


def _folders(root: str) -> Iterator[str]:
    """Yield a folder and the folders in it, each once. A linked folder comes after those that are not linked."""
    seen, folders, linked = set(), [root], []
    while folders or linked:
        folder = (folders or linked).pop()
        real = os.path.realpath(folder or ".")
        if real in seen:
            continue
        seen.add(real)
        yield folder
        for name in _visible(folder):
            inner = os.path.join(folder, name)
            if os.path.isdir(inner):
                (linked if os.path.islink(inner) else folders).append(inner)


def _visible(folder: str) -> list[str]:
    """Return the sorted names in a folder that are not hidden, such as `.git`, `._a.jsonl` or `__MACOSX`."""
    try:
        return sorted(name for name in os.listdir(folder or ".") if not name.startswith((".", "__")))
    except OSError as error:
        raise DataError(f"the folder cannot be read: {error}", path=folder, remedy="check its permissions") from error


def _once(paths: Iterable[str]) -> list[str]:
    """Return the files among the paths, sorted by name, without further names of the same file."""
    files: dict[str, str] = {}
    for path in sorted(paths):
        if os.path.islink(path) and not os.path.exists(path):
            raise DataError("the link leads to no file", path=path, remedy="repair the link or remove it")
        if os.path.isfile(path):
            files.setdefault(os.path.realpath(path), path)
    return list(files.values())


def _did_you_mean(path: str) -> str:
    folder, name = os.path.split(path)
    names = os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {os.path.join(folder, near[0])}?" if near else ""


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
                self._reading = _reader(path)(path, self._row, self._offset)
            try:
                self._row, self._offset, raw = next(self._reading)
            except StopIteration:
                self._file, self._row, self._offset, self._reading = self._file + 1, 0, 0, None
                continue
            except DataError:
                self._reading = None  # so that the next call raises the same error
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
            for number, line in enumerate(_lines(file, self.path), start=1):
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


# Readers. Arguments: path, number of rows already read, byte offset at which to continue.
# Yield: row number from 1, byte offset after the row, raw row. ------------------------------------------------------


def _reader(path: str) -> Callable[[str, int, int], Iterator[tuple[int, int, Any]]]:
    if path.endswith(".parquet"):
        return _read_parquet
    return _read_array if path.endswith(".json") else _read_lines


def _read_lines(path: str, row: int, offset: int) -> Iterator[tuple[int, int, bytes]]:
    plain = path.endswith(".jsonl")
    try:
        with _open(path) as file:
            if plain:
                file.seek(offset)
            else:
                next(itertools.islice(_lines(file, path), row, row), None)  # read the first `row` lines and drop them
            for number, line in enumerate(_lines(file, path, row), start=row + 1):
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


def _lines(file: IO[bytes], path: str, row: int = 0) -> Iterator[bytes]:
    """Yield the lines of a file. A small compressed file may contain a line that does not fit into memory."""
    for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), start=row + 1):
        if len(line) > MAX_LINE_BYTES:
            raise DataError(
                f"the line has more than {MAX_LINE_BYTES:,} bytes",
                path=path,
                line=number,
                remedy="check that it is data; to read it, raise tinkerloop.data.files.MAX_LINE_BYTES",
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


def _read_array(path: str, row: int, offset: int) -> Iterator[tuple[int, int, Any]]:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"the file cannot be read: {error}", path=path) from error
    try:
        text = content.decode("utf-8-sig")
        rows = load_json(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"the file is not JSON: {error}", path=path, remedy="rename a file with one object per line to .jsonl"
        ) from error
    if not isinstance(rows, list):
        raise DataError(
            f"a .json file must contain an array of rows, got {_json_name(rows)}",
            path=path,
            remedy="rename a file with one object per line to .jsonl",
        )
    for number, value in enumerate(rows[row:], start=row + 1):
        yield number, 0, value


def _read_parquet(path: str, row: int, offset: int) -> Iterator[tuple[int, int, Any]]:
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


# Parsing of one line ---------------------------------------------------------------------------------------------


def load_json(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: the text is not JSON, contains NaN or an infinity, or an object has a key twice.
        RecursionError: the value is nested too deeply.
    """
    return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_object)


def _parse_line(line: bytes, path: str, number: int) -> Any:
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"the line is not UTF-8 at byte {error.start}", path=path, line=number, remedy="convert the file to UTF-8"
        ) from error
    try:
        return load_json(text)
    except json.JSONDecodeError as error:
        cut = text.startswith("{") and not text.endswith(("}", "\n"))
        remedy = "the file seems to be cut off here" if cut else "write one JSON object per line"
        raise DataError(
            f"the line is not JSON: {error.msg} at column {error.colno}", path=path, line=number, remedy=remedy
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"the line is JSON that cannot be used: {error}", path=path, line=number) from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {repeated!r} occurs more than once in one object")
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number in JSON")


def _json_name(value: Any) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null", dict: "an object"}
    return names.get(type(value), "a number")


def _needs(package: str, path: str) -> DataError:
    return DataError(
        f"reading this file requires the package {package}", path=path, remedy="pip install 'tinkerloop-sdk[data]'"
    )

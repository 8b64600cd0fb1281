"""Find the data files that a path, a folder or a pattern means."""

from __future__ import annotations

import difflib
import glob
import os
from collections.abc import Iterable, Iterator, Sequence

from tinkerloop.errors import DataError

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".parquet")
"""The suffixes of data files; a file with another suffix is rejected."""

PathLike = str | os.PathLike[str]


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

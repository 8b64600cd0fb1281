"""Links with which the files of checkpoints are downloaded without a key, for an hour.

A link carries the time when it expires and a signature, so that it cannot be made for another file. The key of the
signatures is random and lives as long as the server.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import tarfile
import tempfile
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from tinkerloop.local.request_errors import not_found
from tinkerloop.local.runtime.checkpoint_store import CheckpointStore

LINKS = "/api/v1/download/"
"""The beginning of the path of every link."""
ARCHIVE = "archive.tar"
"""The file of a link that stands for all files of a checkpoint."""
_SECONDS = 3600


class Downloads:
    """Links to the files of the checkpoints in `store`, and the files behind them."""

    def __init__(self, store: CheckpointStore):
        self._store = store
        self._key = secrets.token_bytes(32)

    def archive_link(self, server: str, path: str) -> tuple[str, datetime]:
        """Return the link to the archive of the checkpoint `path`, and the time when it expires.

        `server` is the URL by which the client has reached the server.
        """
        self._store.read(path)
        end = int(time.time() + _SECONDS)
        return self._link(server, path, ARCHIVE, end), datetime.fromtimestamp(end, UTC)

    def file_links(self, server: str, path: str) -> tuple[dict[str, str], datetime]:
        """Return the link to each file of the checkpoint `path`, by file name, and the time when the links expire."""
        end = int(time.time() + _SECONDS)
        links = {file.name: self._link(server, path, file.name, end) for file in self._store.weight_files(path)}
        return links, datetime.fromtimestamp(end, UTC)

    def open(self, path: str, name: str, query: Mapping[str, str]) -> IO[bytes]:
        """Open the file `name` of the checkpoint `path`, or the archive of all its files.

        Raises:
            tinker.NotFoundError: the link has no valid signature or has expired, or the file does not exist.
        """
        expires = query.get("expires", "")
        expected = self._signature(path, name, expires)
        if not hmac.compare_digest(expected.encode(), query.get("signature", "").encode()):
            raise not_found("the link is not valid: it was changed, or the server was started again; ask for a new one")
        if int(expires) < time.time():
            raise not_found("the link has expired; ask for a new one")
        files = self._store.weight_files(path)
        if name == ARCHIVE:
            return _archive(files)
        for file in files:
            if file.name == name:
                return file.open("rb")
        raise not_found(f"checkpoint {path} has no file {name!r}")

    def _link(self, server: str, path: str, name: str, end: int) -> str:
        place = f"{path.removeprefix('tinker://')}/{name}"
        return f"{server.rstrip('/')}{LINKS}{place}?expires={end}&signature={self._signature(path, name, str(end))}"

    def _signature(self, path: str, name: str, expires: str) -> str:
        return hmac.new(self._key, f"{path}/{name}?{expires}".encode(), hashlib.sha256).hexdigest()


def _archive(files: list[Path]) -> IO[bytes]:
    """Return a tar archive of `files`, in a temporary file that is deleted when it is closed."""
    archive = tempfile.TemporaryFile()  # noqa: SIM115 (the caller closes it)
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for file in files:
            tar.add(file, arcname=file.name)
    archive.seek(0)
    return archive

"""Download the weights of a checkpoint from a server, with the calls that the installed version of `tinker` has.

Up to tinker 0.35 the server packs any checkpoint into an archive. Since tinker 0.36 only weights that were saved for
other programs (`external_weights`) can be downloaded, so a training checkpoint is opened and saved as such.
"""

from __future__ import annotations

import tarfile
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import httpx

from tinkerloop.errors import CheckpointError
from tinkerloop.loop.futures import resolve

_TTL_SECONDS = 3600
"""Seconds after which the server deletes what was saved for a download, if it could not be deleted afterwards."""


def download_checkpoint(service: Any, path: str, to: Path) -> None:
    """Download the files of the checkpoint `path` (a tinker:// path) into the new folder `to`.

    Args:
        service: a service client of the server that has the checkpoint.

    Raises:
        CheckpointError: `to` already exists; the checkpoint cannot be downloaded with this version of tinker; or a file
            was not received.
    """
    if to.exists():
        raise CheckpointError(f"cannot download to {to}: it already exists; give the path of a new folder")
    to.absolute().parent.mkdir(parents=True, exist_ok=True)
    rest = service.create_rest_client()
    with tempfile.TemporaryDirectory(dir=to.absolute().parent, prefix=".download-") as scratch:
        folder = Path(scratch) / "files"
        folder.mkdir()
        if "/external_weights/" in path:
            _fetch_files(resolve(rest.get_external_weights_urls(path)).urls, folder)
        elif hasattr(rest, "get_checkpoint_archive_url_from_tinker_path"):
            fetch_archive(resolve(rest.get_checkpoint_archive_url_from_tinker_path(path)).url, folder)
        elif "/sampler_weights/" in path:
            raise CheckpointError(
                f"{path} is a sampler checkpoint, which tinker 0.36 and later cannot download; pass the path of a "
                "training checkpoint (tinker://RUN/weights/NAME), or install tinker 0.35"
            )
        else:
            _fetch_training_checkpoint(service, rest, path, folder)
        folder.rename(to)


def _fetch_training_checkpoint(service: Any, rest: Any, path: str, folder: Path) -> None:
    """Open a training checkpoint, save its weights for other programs, fetch the files, and delete what was saved."""
    client = resolve(service.create_training_client_from_state(path))
    name = f"download-{uuid.uuid4().hex[:8]}"
    saved = resolve(client.save_weights_external(name, ttl_seconds=_TTL_SECONDS)).path
    try:
        _fetch_files(resolve(rest.get_external_weights_urls(saved)).urls, folder)
    finally:
        resolve(rest.delete_checkpoint_from_tinker_path(saved))


def _fetch_files(urls: Mapping[str, str], folder: Path) -> None:
    """Fetch each file of `urls`, a mapping from relative file name to URL."""
    for name, url in urls.items():
        place = PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts or not place.parts:
            raise CheckpointError(f"the server offers a file with the name {name!r}, which leads out of the folder")
        target = folder / place
        target.parent.mkdir(parents=True, exist_ok=True)
        _fetch(url, target)


def fetch_archive(url: str, folder: Path) -> None:
    """Fetch a tar archive and unpack it. Nothing is written out of the folder."""
    archive = folder.with_name("archive")
    _fetch(url, archive)
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    except tarfile.TarError as error:
        raise CheckpointError(f"the server's archive of the checkpoint cannot be unpacked: {error}") from error


def _fetch(url: str, target: Path) -> None:
    try:
        with httpx.stream("GET", url, follow_redirects=True, timeout=60) as response, target.open("wb") as file:
            response.raise_for_status()
            for part in response.iter_bytes():
                file.write(part)
    except httpx.HTTPError as error:
        reason = str(error).partition("?")[0]  # the query is the key to the file
        raise CheckpointError(f"{target.name} could not be downloaded: {type(error).__name__} {reason}") from error

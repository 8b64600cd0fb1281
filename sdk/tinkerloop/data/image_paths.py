"""Resolve the image paths of a row, and reject those that leave the folder of the data.

A row is data that others may have written. Without a limit, it could make the trainer read any file of the machine.

>>> resolve_images([{"role": "user", "content": [{"type": "image", "image": "/etc/key.png"}]}], "data")
Traceback (most recent call last):
tinkerloop.errors.DataError: the image path '/etc/key.png' leads out of the folder 'data'; pass image_root=FOLDER, ...
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from tinkerloop.errors import DataError

ANYWHERE = "anywhere"
"""The value of `image_root` with which a row may name any file."""

_KINDS = ("image", "image_url")


def resolve_images(
    messages: list[dict[str, Any]], folder: str | None, image_root: str | os.PathLike[str] | None = None
) -> list[dict[str, Any]]:
    """Return the messages with complete image paths.

    Args:
        messages: checked messages.
        folder: the folder of the data file, or None if the row comes from no file.
        image_root: the folder in which the images are, by default that of the data file. A relative path begins
            there. "anywhere" accepts every path; a relative one begins in the folder of the data file.

    Raises:
        DataError: a path leads out of the folder, also by a link, or names something that is not a regular file.
    """
    for index, message in enumerate(messages):
        if isinstance(message.get("content"), list | tuple):
            parts = [_resolve_part(part, folder, image_root) for part in message["content"]]
            messages[index] = {**message, "content": parts}
    return messages


def _resolve_part(part: Any, folder: str | None, image_root: str | os.PathLike[str] | None) -> Any:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind not in _KINDS:
        return part
    source = part.get(kind)
    if kind == "image_url" and isinstance(source, Mapping):  # `message_checks` reads its "url" and nothing else
        return {**part, kind: {**source, "url": _resolve(source.get("url"), folder, image_root)}}
    return {**part, kind: _resolve(source, folder, image_root)}


def _resolve(source: Any, folder: str | None, image_root: str | os.PathLike[str] | None) -> Any:
    """Return the source with a complete path. A source that contains its image, or a URL, is returned unchanged."""
    if isinstance(source, Mapping):
        for key in ("bytes", "path"):  # `image_chunk` reads the first that is not None, and nothing else
            if source.get(key) is not None:
                return {**source, key: _resolve(source[key], folder, image_root)}
        return source
    if not isinstance(source, str | os.PathLike):
        return source
    from tinkerloop.images.chunks import is_path

    if isinstance(source, str) and not is_path(source):
        return source
    path = os.fspath(source)
    anywhere = image_root == ANYWHERE
    root = folder if image_root is None or anywhere else os.fspath(image_root)
    if root is None and not (anywhere and os.path.isabs(path)):
        raise DataError(
            f"the row names an image file, {path[:200]!r}, but comes from no file in whose folder it could be",
            remedy="pass image_root=FOLDER, the folder of the images",
        )
    full = path if root is None else os.path.join(root, path)
    try:
        real = os.path.realpath(full)
        is_special = os.path.exists(real) and not os.path.isfile(real)
    except ValueError as error:
        raise DataError(f"the image path {path[:200]!r} is invalid: {error}") from error
    if not anywhere and root is not None and not _is_inside(real, os.path.realpath(root)):
        raise DataError(
            f"the image path {path[:200]!r} leads out of the folder {root or '.'!r}",
            remedy='pass image_root=FOLDER, or image_root="anywhere" if you trust the data',
        )
    if is_special:
        raise DataError(f"the image path {path[:200]!r} names no regular file", remedy="correct the path")
    return full


def _is_inside(path: str, folder: str) -> bool:
    try:
        return os.path.commonpath([path, folder]) == folder
    except ValueError:  # on different drives
        return False

"""The record of a checkpoint: what its checkpoint.json holds, and how it is read and written."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from tinkerloop.local.argument_values import check_unicode
from tinkerloop.local.nn.layers.lora import LoraSpec
from tinkerloop.local.request_errors import bad_request, server_error

RECORD_FILE = "checkpoint.json"
_FORMAT = 1
"""Version of the files' format that this code writes, and the only one that it reads."""


@dataclass(frozen=True)
class CheckpointInfo:
    """Record of a checkpoint: the contents of its checkpoint.json."""

    path: str
    base_model: str
    lora: LoraSpec
    step: int
    time: str
    step_tokens: int | None = None
    """`TrainState.step_tokens`, so that a resumed run rounds like an uninterrupted one. None in older checkpoints."""
    expires_at: str | None = None
    user_metadata: dict[str, str] | None = None
    run_metadata: dict[str, str] | None = None
    size_bytes: int = 0
    public: bool = False
    """True if a user of a server has published the checkpoint. Whoever can read the root folder can open it anyway."""

    @property
    def expired(self) -> bool:
        return self.expires_at is not None and datetime.fromisoformat(self.expires_at) <= datetime.now(UTC)


def write_record(folder: Path, record: CheckpointInfo) -> None:
    """Write the record of the checkpoint in a folder, and flush it to the disk.

    Raises:
        tinker.BadRequestError: `read_record` would not accept the record.
    """
    try:
        _check_record(record)
    except (ValueError, TypeError) as error:  # TypeError: a value that JSON cannot represent
        raise bad_request(f"checkpoint {record.path} cannot be saved, because it could not be read: {error}") from error
    with (folder / RECORD_FILE).open("w") as file:
        file.write(json.dumps({**asdict(record), "format": _FORMAT}, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_record(folder: Path) -> CheckpointInfo:
    """Return the record of the checkpoint in a folder.

    Raises:
        OSError: the file cannot be read.
        tinker.RequestFailedError: (category server) the file is damaged, another program has written it, or it has a
            format that this version does not know.
    """
    file = folder / RECORD_FILE
    text = file.read_bytes()
    try:
        fields = json.loads(text)
        version = fields.pop("format")
        if version == _FORMAT:
            record = CheckpointInfo(**{**fields, "lora": LoraSpec(**fields["lora"])})
            _check_record(record)
            return record
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise server_error(f"{file} is not the record of a tinkerloop checkpoint, or is damaged: {error!r}") from error
    raise server_error(
        f"{file} has format {version!r}, but this version of tinkerloop reads only format {_FORMAT}; open the "
        "checkpoint with the version that saved it"
    )


def _check_record(record: CheckpointInfo) -> None:
    """Raise ValueError if a field has a wrong type, or a time has no time zone."""
    _record_type().validate_json(json.dumps(asdict(record)), strict=True)
    for moment in (record.time, record.expires_at):
        if moment is not None and datetime.fromisoformat(moment).tzinfo is None:
            raise ValueError(f"the time {moment!r} has no time zone")


@cache
def _record_type() -> TypeAdapter[CheckpointInfo]:
    return TypeAdapter(CheckpointInfo)


def expiry(ttl_seconds: int | None) -> str | None:
    """Return the time `ttl_seconds` from now, in ISO format; None for None (a checkpoint that never expires).

    Raises:
        tinker.BadRequestError: `ttl_seconds` is less than one hour or more than ten years.
    """
    if ttl_seconds is None:
        return None
    if not isinstance(ttl_seconds, int | float) or not 3600 <= ttl_seconds <= 10 * 366 * 86400:
        raise bad_request(
            f"ttl_seconds must be None or a number from 3600 (an hour) to 316224000 (ten years), got {ttl_seconds!r}"
        )
    return (datetime.now(UTC) + timedelta(seconds=ttl_seconds)).isoformat()


def metadata_of(metadata: Mapping[str, str] | None) -> dict[str, str] | None:
    """Return a copy of user metadata, or None for None.

    Raises:
        tinker.BadRequestError: a key or a value is not a str, as tinker's types require, or has an unpaired surrogate.
    """
    if metadata is None:
        return None
    try:
        copy = TypeAdapter(dict[str, str]).validate_python(metadata, strict=True)
    except ValidationError as error:
        raise bad_request(f"user_metadata must be a dict from str to str: {error}") from error
    for key, value in copy.items():
        check_unicode("a key of user_metadata", key)
        check_unicode(f"user_metadata[{key!r}]", value)
    return copy

"""Checkpoints on disk: `tinker://RUN/KIND/NAME` paths under one root folder.

    ROOT/RUN/KIND/NAME/            KIND is weights (training) or sampler_weights; ":" in RUN is written "_"
        checkpoint.json            what it is: base model, LoRA, optimizer step, time, expiry, user metadata
        adapter_model.safetensors  the adapter in PEFT's format, with
        adapter_config.json        PEFT's configuration; or model.safetensors when every weight was trained
        optimizer.safetensors      Adam's moments (training checkpoints only)

A checkpoint is written to a temporary folder, flushed to the disk, and renamed into place, so it is there whole or not
at all. Only JSON and safetensors are read: nothing is ever unpickled, and no path leads out of the root.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from glob import glob
from pathlib import Path
from typing import Any

import tinker
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tinkerloop.local.nn.layers.lora import LoraSpec
from tinkerloop.local.request_errors import bad_request, conflict, not_found, server_error
from tinkerloop.local.runtime.checkpoint_paths import parse_path
from tinkerloop.local.runtime.peft_format import adapter_config

_BACKUP = ".previous-"
"""Before the name of a checkpoint that is being replaced."""
_STALE = 86400
"""Seconds after which an unfinished save or deletion is taken for dead."""
_RECORD, _ADAPTER, _FULL, _OPTIMIZER = (
    "checkpoint.json",
    "adapter_model.safetensors",
    "model.safetensors",
    "optimizer.safetensors",
)


@dataclass(frozen=True)
class CheckpointInfo:
    """What is known of a checkpoint without reading its tensors."""

    path: str
    base_model: str
    lora: LoraSpec
    step: int
    time: str
    expires_at: str | None = None
    user_metadata: dict[str, str] | None = None
    run_metadata: dict[str, str] | None = None
    size_bytes: int = 0

    @property
    def expired(self) -> bool:
        return self.expires_at is not None and datetime.fromisoformat(self.expires_at) <= datetime.now(UTC)


@dataclass(frozen=True)
class CheckpointContents:
    """What a checkpoint holds; `moments` is None for a sampler checkpoint."""

    weights: Mapping[str, torch.Tensor]
    """By their names in the file: PEFT's, or the model's own when every weight was trained."""
    moments: Mapping[str, Mapping[str, torch.Tensor]] | None = None
    """ "exp_avg" and "exp_avg_sq", each by name."""
    peft_targets: Mapping[str, list[str]] = field(default_factory=dict)
    """PEFT's `target_modules` and `target_parameters`."""


class CheckpointStore:
    """All checkpoints under one root."""

    def __init__(self, root: Path):
        self.root = root

    def save(self, record: CheckpointInfo, contents: CheckpointContents, *, overwrite: bool = False) -> CheckpointInfo:
        """Write a checkpoint atomically. Raises ConflictError if the name is taken and `overwrite` is false."""
        run, _, name = parse_path(record.path)
        self._sweep(run)
        folder = self._folder(record.path)
        if folder.exists() and not overwrite:
            raise conflict(
                f"Checkpoint '{name}' already exists for model {run}. Please choose a different name, "
                "or pass overwrite=True"
            )
        with self._writing(record.path) as scratch:
            _write_tensors(scratch, record, contents)
            size = sum(file.stat().st_size for file in scratch.iterdir())
            record = CheckpointInfo(**{**record.__dict__, "size_bytes": size})
            _write_json(scratch / _RECORD, {**asdict(record), "format": 1})
            _swap(scratch, folder)
        return record

    def read(self, path: str) -> CheckpointInfo:
        """The record of an existing, unexpired checkpoint; NotFoundError or BadRequestError otherwise."""
        try:
            folder = self._folder(path)
        except ValueError as error:
            raise bad_request(str(error)) from error
        try:
            record = _read_record(folder / _RECORD)
        except FileNotFoundError:
            if (self._folder(path) / _RECORD).exists():  # replaced just now
                return self.read(path)
            raise not_found(f"no checkpoint {path} under {self.root}") from None
        if record.expired:
            raise not_found(f"checkpoint {path} expired at {record.expires_at}")
        return record

    def load_weights(self, path: str) -> dict[str, torch.Tensor]:
        """The weights by their names in the file."""
        folder = self._folder(path)
        return load_file(folder / (_FULL if (folder / _FULL).exists() else _ADAPTER))

    def load_moments(self, path: str) -> dict[str, dict[str, torch.Tensor]]:
        """Adam's moments; NotFoundError if the checkpoint has none (never a partial resume)."""
        file = self._folder(path) / _OPTIMIZER
        if not file.exists():
            raise not_found(f"checkpoint {path} holds no optimizer state")
        moments: dict[str, dict[str, torch.Tensor]] = {"exp_avg": {}, "exp_avg_sq": {}}
        for name, tensor in load_file(file).items():
            kind, _, own = name.partition(".")
            moments[kind][own] = tensor
        return moments

    def folder(self, path: str) -> Path:
        """The folder of an existing checkpoint, which PEFT can load."""
        self.read(path)
        return self._folder(path)

    def delete(self, path: str) -> None:
        self.read(path)
        self._remove(self._folder(path))

    def _remove(self, folder: Path) -> None:
        shutil.rmtree(_backup(folder), ignore_errors=True)  # else it would come back in the checkpoint's place
        doomed = self.root / f".deleting-{uuid.uuid4().hex}"
        os.replace(folder, doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def copy(self, path: str, new_path: str, *, expires_at: str | None) -> CheckpointInfo:
        """The same checkpoint under a new path."""
        source = self.read(path)
        record = CheckpointInfo(**{**source.__dict__, "path": new_path, "expires_at": expires_at})
        with self._writing(new_path) as scratch:
            shutil.copytree(self._folder(path), scratch, dirs_exist_ok=True)
            self.confirm(source)
            _write_json(scratch / _RECORD, {**asdict(record), "format": 1})
            _swap(scratch, self._folder(new_path))
        return record

    def confirm(self, record: CheckpointInfo) -> None:
        """Raise ConflictError if the checkpoint was overwritten since `record` was read: tensors may be of either."""
        if self.read(record.path).time != record.time:
            raise conflict(f"{record.path} was overwritten while it was read: try again")

    def update(self, path: str, **changes: Any) -> CheckpointInfo:
        """Replace fields of a checkpoint's record."""
        record = CheckpointInfo(**{**self.read(path).__dict__, **changes})
        with self._writing(path) as scratch:
            _write_json(scratch / _RECORD, {**asdict(record), "format": 1})
            self.confirm(record)
            os.replace(scratch / _RECORD, self._folder(path) / _RECORD)
        return record

    def records(self, run: str | None = None) -> Iterator[CheckpointInfo]:
        """Every unexpired checkpoint (of one run), oldest first; others may save and delete meanwhile."""
        found = glob(f"{'*' if run is None else _on_disk(run)}/*/*", root_dir=self.root, include_hidden=True)
        records = []
        for place in {place.replace(f"/{_BACKUP}", "/") for place in found}:
            with suppress(tinker.NotFoundError, tinker.BadRequestError):  # gone by now, or no checkpoint at all
                records.append(self.read(f"tinker://{place}"))
        return iter(sorted(records, key=lambda record: record.time))

    def run_folder(self, run: str) -> Path:
        """The folder that holds a run's checkpoints; it may not exist yet."""
        return self.root / _on_disk(run)

    @contextmanager
    def _writing(self, path: str) -> Iterator[Path]:
        """A new folder under the root, in which to prepare what `path` shall be; it is gone afterwards."""
        scratch = self.root / f".writing-{uuid.uuid4().hex}"
        try:
            scratch.mkdir(parents=True)
            yield scratch
        except (OSError, SafetensorError) as error:  # safetensors has its own error for a full disk
            raise server_error(f"cannot save {path} under {self.root}: {error}") from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _sweep(self, run: str) -> None:
        """Remove the run's expired checkpoints, and what saves and deletions that were killed have left.

        None that is under way is as old as the latter.
        """
        for file in self.run_folder(run).glob(f"*/*/{_RECORD}"):
            with suppress(OSError, tinker.TinkerError):  # gone by now, or damaged, which its reader will be told
                if _read_record(file).expired:
                    self._remove(file.parent)
        for left in [*self.root.glob(".writing-*"), *self.root.glob(".deleting-*")]:
            with suppress(FileNotFoundError):  # finished by now
                if time.time() - left.stat().st_mtime > _STALE:
                    shutil.rmtree(left, ignore_errors=True)

    def _folder(self, path: str) -> Path:
        run, kind, name = parse_path(path)
        folder = self.root / _on_disk(run) / kind / name
        if not folder.exists() and _backup(folder).exists():  # a save was killed, or is, between its two renames
            with suppress(OSError):  # it was faster
                os.replace(_backup(folder), folder)
        return folder


def default_root() -> Path:
    """Where checkpoints go when nobody says where."""
    return Path.home() / ".tinkerloop"


def expiry(ttl_seconds: int | None) -> str | None:
    """The moment a checkpoint of this time-to-live ends (3600 seconds to 10 years; None: never)."""
    if ttl_seconds is None:
        return None
    if not isinstance(ttl_seconds, int | float) or not 3600 <= ttl_seconds <= 10 * 366 * 86400:
        raise bad_request(f"ttl_seconds must be between 3600 and ten years, got {ttl_seconds!r}")
    return (datetime.now(UTC) + timedelta(seconds=ttl_seconds)).isoformat()


def metadata_of(given: Mapping[str, str] | None) -> dict[str, str] | None:
    """A copy of a caller's metadata; BadRequestError unless it maps texts to texts, which is what can be listed."""
    if given is None:
        return None
    try:
        return TypeAdapter(dict[str, str]).validate_python(given, strict=True)
    except ValidationError as error:
        raise bad_request(f"user_metadata must map texts to texts: {error}") from error


def _read_record(file: Path) -> CheckpointInfo:
    """Raises RequestFailedError (category server) for a file that somebody else has written."""
    text = file.read_text()
    try:
        fields = json.loads(text)
        fields.pop("format")
        return CheckpointInfo(**{**fields, "lora": LoraSpec(**fields["lora"])})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise server_error(f"{file} is not the record of a checkpoint of ours: {error!r}") from error


def _backup(folder: Path) -> Path:
    """Where a checkpoint's folder is while a new one takes its place."""
    return folder.with_name(f"{_BACKUP}{folder.name}")


def _on_disk(run: str) -> str:
    return run.replace(":", "_")


def _write_tensors(folder: Path, record: CheckpointInfo, contents: CheckpointContents) -> None:
    def on_cpu(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        # Cloned: the tensors are views of one vector, and safetensors refuses shared storage.
        return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}

    if record.lora.rank == 0:
        save_file(on_cpu(contents.weights), folder / _FULL, metadata={"format": "pt"})
    else:
        save_file(on_cpu(contents.weights), folder / _ADAPTER, metadata={"format": "pt"})
        _write_json(
            folder / "adapter_config.json", adapter_config(record.base_model, record.lora.rank, contents.peft_targets)
        )
    if contents.moments is not None:
        flat = {f"{kind}.{name}": t for kind, named in contents.moments.items() for name, t in named.items()}
        save_file(on_cpu(flat), folder / _OPTIMIZER)


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n")
    _flush(file)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _swap(new: Path, folder: Path) -> None:
    """Put `new` in `folder`'s place. At every moment the old or the new one is there, or the old as a backup."""
    for file in new.iterdir():
        _flush(file)
    folder.parent.mkdir(parents=True, exist_ok=True)
    backup = _backup(folder)
    while new.exists():
        if folder.exists():
            shutil.rmtree(backup, ignore_errors=True)
            os.replace(folder, backup)
        try:
            os.replace(new, folder)
        except OSError:
            if not folder.exists():
                raise
            # somebody who read the checkpoint just now took us for dead and put the backup back
    _flush(folder.parent)
    shutil.rmtree(backup, ignore_errors=True)

"""Checkpoints on disk. The path `tinker://RUN/KIND/NAME` names a folder under one root folder.

    ROOT/RUN/KIND/NAME/            ":" in RUN is written "_". KIND is weights (training), sampler_weights,
                                   or external_weights (for other programs)
        checkpoint.json            the record: base model, LoRA options, optimizer step, time, expiry, user metadata
        adapter_model.safetensors  the adapter, in PEFT's format
        adapter_config.json        the adapter's configuration for PEFT
        model.safetensors          instead of the two adapter files, if every weight was trained
        optimizer.safetensors      Adam's moments (training checkpoints only)

A checkpoint is known by the folder in which it lies. A copied or renamed folder is a checkpoint of its own under the
path of its new place, whatever path its record names, and everything is read from that place.

A checkpoint is written to a temporary folder, flushed to the disk, and renamed to its final name. So readers never see
an incomplete checkpoint. Only JSON and safetensors files are read, nothing is unpickled, no path leads out of the
root folder, and nothing below it is written through a symbolic link. A damaged checkpoint or a foreign file is named in
the log and can be deleted; it stops neither a list nor a save.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from glob import glob
from pathlib import Path
from typing import Any

import tinker
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tinkerloop.local.request_errors import bad_request, conflict, not_found, server_error
from tinkerloop.local.runtime.checkpoint_paths import KINDS, parse_path
from tinkerloop.local.runtime.checkpoint_record import RECORD_FILE, CheckpointInfo, read_record, write_record
from tinkerloop.local.runtime.peft_format import adapter_config
from tinkerloop.terminal import one_line

logger = logging.getLogger(__name__)

_BACKUP = ".previous-"
"""Prefix of the folder name that a checkpoint has while a new one replaces it."""
_STALE = 86400
"""Age in seconds after which the folder of an unfinished save or deletion is removed."""
_ADAPTER, _ADAPTER_CONFIG, _FULL, _OPTIMIZER = (
    "adapter_model.safetensors",
    "adapter_config.json",
    "model.safetensors",
    "optimizer.safetensors",
)


@dataclass(frozen=True)
class CheckpointContents:
    """Tensors to write into a checkpoint. `moments` is None for a sampler checkpoint."""

    weights: Mapping[str, torch.Tensor]
    """Mapping from a tensor's name in the file to the tensor. Adapter tensors have PEFT's names.

    If every weight was trained, the names are those of the model's parameters.
    """
    moments: Mapping[str, Mapping[str, torch.Tensor]] | None = None
    """Adam's moments: the keys are "exp_avg" and "exp_avg_sq", the values map a tensor's name to its moment."""
    peft_targets: Mapping[str, list[str]] = field(default_factory=dict)
    """The entries `target_modules` and `target_parameters` of PEFT's configuration."""


class CheckpointStore:
    """Store of the checkpoints under one root folder. It reads, writes, copies and deletes them."""

    def __init__(self, root: Path):
        self.root = root
        self._named: set[str] = set()
        """The skipped files that the log has named. Each is named once."""

    def save(self, record: CheckpointInfo, contents: CheckpointContents, *, overwrite: bool = False) -> CheckpointInfo:
        """Write a checkpoint atomically. Return its record, in which `size_bytes` is set.

        Raises:
            tinker.ConflictError: the checkpoint already exists and `overwrite` is false.
            tinker.RequestFailedError: (category server) the checkpoint cannot be written.
        """
        run, _, name = parse_path(record.path)
        self._check_links(record.path)
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
            write_record(scratch, record)
            _swap(scratch, folder)
        return record

    def read(self, path: str) -> CheckpointInfo:
        """Return the record of a checkpoint. Its `path` leads to the folder that was read.

        Raises:
            tinker.NotFoundError: the checkpoint does not exist or has expired.
            tinker.BadRequestError: `path` is not a valid tinker:// path.
            tinker.RequestFailedError: (category server) the record is damaged, or of a format that is not known.
        """
        try:
            folder = self._folder(path)
        except ValueError as error:
            raise bad_request(str(error)) from error
        try:
            record = read_record(folder)
        except (FileNotFoundError, NotADirectoryError):
            if (self._folder(path) / RECORD_FILE).exists():  # A save replaced it during the read.
                return self.read(path)
            raise not_found(f"checkpoint {path} not found under {self.root}") from None
        except OSError as error:
            raise server_error(f"checkpoint {path} cannot be read: {error}") from error
        if record.expired:
            raise not_found(f"checkpoint {path} expired at {record.expires_at}")
        return replace(record, path=_path_of_folder(path, record.path))

    def load_weights(self, path: str) -> dict[str, torch.Tensor]:
        """Return the weights of a checkpoint, as a dict from each tensor's name in the file to the tensor.

        Raises:
            tinker.RequestFailedError: (category server) the file is missing or damaged.
        """
        folder = self._folder(path)
        return _load_tensors(folder / (_FULL if (folder / _FULL).exists() else _ADAPTER), path)

    def load_moments(self, path: str) -> dict[str, dict[str, torch.Tensor]]:
        """Return Adam's moments of a checkpoint: "exp_avg" and "exp_avg_sq", each a dict from tensor name to moment.

        Raises:
            tinker.NotFoundError: the checkpoint contains no moments. Training must not continue without them.
            tinker.RequestFailedError: (category server) the file is damaged.
        """
        file = self._folder(path) / _OPTIMIZER
        if not file.exists():
            raise not_found(f"checkpoint {path} contains no optimizer state; load only its weights")
        moments: dict[str, dict[str, torch.Tensor]] = {"exp_avg": {}, "exp_avg_sq": {}}
        for name, tensor in _load_tensors(file, path).items():
            kind, _, tensor_name = name.partition(".")
            if kind not in moments:
                raise server_error(f"checkpoint {path} is damaged: {file} contains the unknown tensor {name!r}")
            moments[kind][tensor_name] = tensor
        return moments

    def folder(self, path: str) -> Path:
        """Return the folder of an existing checkpoint. PEFT can load an adapter from this folder."""
        self.read(path)
        return self._folder(path)

    def weight_files(self, path: str) -> list[Path]:
        """Return the files of an existing checkpoint that other programs can read: all but the record and moments."""
        names = (_ADAPTER, _ADAPTER_CONFIG, _FULL)
        return [file for name in names if (file := self.folder(path) / name).exists()]

    def delete(self, path: str) -> None:
        """Delete a checkpoint, or what lies in its place: a damaged checkpoint, a foreign file or folder, a link.

        Raises:
            tinker.NotFoundError: nothing is there, or the checkpoint has expired.
            tinker.BadRequestError: `path` is not a valid tinker:// path.
            tinker.RequestFailedError: (category server) the operating system refuses the deletion.
        """
        try:
            self.read(path)
        except tinker.RequestFailedError:
            pass  # damaged
        except tinker.NotFoundError:
            folder = self._folder(path)
            if (folder / RECORD_FILE).exists() or not os.path.lexists(folder):
                raise
        try:
            self._remove(self._folder(path))
        except OSError as error:
            raise server_error(f"cannot delete checkpoint {path} under {self.root}: {error}") from error

    def _remove(self, folder: Path) -> None:
        _discard(_backup(folder))  # _folder would restore a backup as the checkpoint.
        trash = self.root / f".deleting-{uuid.uuid4().hex}"
        os.replace(folder, trash)
        _discard(trash)

    def copy(self, path: str, new_path: str, *, expires_at: str | None) -> CheckpointInfo:
        """Copy a checkpoint to `new_path` and return the record of the copy. The copy expires at `expires_at`."""
        source = self.read(path)
        record = CheckpointInfo(**{**source.__dict__, "path": new_path, "expires_at": expires_at})
        with self._writing(new_path) as scratch:
            shutil.copytree(self._folder(path), scratch, dirs_exist_ok=True)
            self.confirm(source)
            write_record(scratch, record)
            _swap(scratch, self._folder(new_path))
        return record

    def confirm(self, record: CheckpointInfo) -> None:
        """Check that a checkpoint has not been overwritten since `record` was read.

        Call it after reading the checkpoint's tensors, to make sure that they belong to `record`.

        Raises:
            tinker.ConflictError: the checkpoint has been overwritten.
        """
        if self.read(record.path).time != record.time:
            raise conflict(f"checkpoint {record.path} was overwritten while it was read; try again")

    def update(self, path: str, **changes: Any) -> CheckpointInfo:
        """Replace fields of a checkpoint's record on disk. Return the new record."""
        record = CheckpointInfo(**{**self.read(path).__dict__, **changes})
        with self._writing(path) as scratch:
            write_record(scratch, record)
            self.confirm(record)
            os.replace(scratch / RECORD_FILE, self._folder(path) / RECORD_FILE)
        return record

    def records(self, run: str | None = None) -> Iterator[CheckpointInfo]:
        """Iterate over the unexpired checkpoints of the training run `run`, or of all runs, oldest first.

        Other processes may save and delete checkpoints at the same time. What is damaged or no checkpoint is skipped
        and named in the log.
        """
        folders = glob(f"{'*' if run is None else _on_disk(run)}/*/*", root_dir=self.root, include_hidden=True)
        records = []
        for name in {folder.replace(f"/{_BACKUP}", "/") for folder in folders}:
            try:
                records.append(self.read(f"tinker://{name}"))
            except tinker.TinkerError as error:
                self._name_skipped(name, error)
        return iter(sorted(records, key=lambda record: record.time))

    def _name_skipped(self, name: str, error: tinker.TinkerError) -> None:
        """Log that `name` (RUN/KIND/NAME on the disk) is skipped, unless it has just been deleted or has expired."""
        place = self.root / name
        if isinstance(error, tinker.NotFoundError) and ((place / RECORD_FILE).exists() or not os.path.lexists(place)):
            return
        if place.parent.name in KINDS and name not in self._named:
            self._named.add(name)
            logger.warning(
                "skipped %s: it is not a checkpoint, or is damaged (%s); move it elsewhere, or delete it (a RestClient "
                "does so with delete_checkpoint_from_tinker_path)",
                one_line(place),
                one_line(error),
            )

    def run_folder(self, run: str) -> Path:
        """Return the folder of a training run's checkpoints. The folder may not exist yet."""
        return self.root / _on_disk(run)

    @contextmanager
    def _writing(self, path: str) -> Iterator[Path]:
        """Create a temporary folder in which to prepare the checkpoint `path`. It is removed at the end.

        OSError and SafetensorError become a RequestFailedError of category server.
        """
        self._check_links(path)
        scratch = self.root / f".writing-{uuid.uuid4().hex}"
        try:
            scratch.mkdir(parents=True)
            yield scratch
        except (OSError, SafetensorError) as error:  # safetensors raises SafetensorError for a full disk
            raise server_error(f"cannot save checkpoint {path} under {self.root}: {error}") from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _check_links(self, path: str) -> None:
        """Raise RequestFailedError (category server) if the folder of `path` or one above it is a symbolic link.

        The root folder itself may be a link.
        """
        run, kind, name = parse_path(path)
        place = self.root
        for part in (_on_disk(run), kind, name):
            place /= part
            if place.is_symlink():
                raise server_error(
                    f"cannot save checkpoint {path}: {place} is a symbolic link, and no checkpoint is written through "
                    "links; remove the link"
                )

    def _sweep(self, run: str) -> None:
        """Remove the run's expired checkpoints, and the folders that killed saves and deletions left behind.

        Such a folder is removed when it is older than `_STALE`. A save in progress never takes that long.
        """
        for file in self.run_folder(run).glob(f"*/*/{RECORD_FILE}"):
            with suppress(OSError, tinker.TinkerError):  # just deleted, or damaged (then `read` raises)
                if read_record(file.parent).expired:
                    self._remove(file.parent)
        for leftover in [*self.root.glob(".writing-*"), *self.root.glob(".deleting-*")]:
            with suppress(OSError):  # the save or deletion has just finished
                if time.time() - leftover.lstat().st_mtime > _STALE:
                    _discard(leftover)

    def _folder(self, path: str) -> Path:
        run, kind, name = parse_path(path)
        folder = self.root / _on_disk(run) / kind / name
        if not folder.exists() and _backup(folder).exists():  # a save is, or was killed, between its two renames
            with suppress(OSError):  # the save has just finished
                os.replace(_backup(folder), folder)
        return folder


def default_root() -> Path:
    """Return the default root folder of checkpoints, ~/.tinkerloop."""
    return Path.home() / ".tinkerloop"


def _load_tensors(file: Path, path: str) -> dict[str, torch.Tensor]:
    """Read a safetensors file of the checkpoint `path`."""
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise server_error(f"checkpoint {path} cannot be loaded: {file} is missing or damaged: {error}") from error


def _path_of_folder(path: str, recorded: str) -> str:
    """Return `path`, the path of a folder, with the run as `recorded` spells it, if that means the same folder.

    The name of a run's folder does not say where its id has ":". A copied folder has the record of the original.
    """
    run, kind, name = parse_path(path)
    with suppress(ValueError):
        recorded_run = parse_path(recorded)[0]
        run = recorded_run if _on_disk(recorded_run) == _on_disk(run) else run
    return f"tinker://{run}/{kind}/{name}"


def _backup(folder: Path) -> Path:
    """Return the path to which a checkpoint's folder is moved while a new checkpoint replaces it."""
    return folder.with_name(f"{_BACKUP}{folder.name}")


def _on_disk(run: str) -> str:
    return run.replace(":", "_")


def _write_tensors(folder: Path, record: CheckpointInfo, contents: CheckpointContents) -> None:
    def on_cpu(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        # Clone, because the tensors are views of one vector and safetensors does not write tensors that share memory.
        return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}

    if record.lora.rank == 0:
        save_file(on_cpu(contents.weights), folder / _FULL, metadata={"format": "pt"})
    else:
        save_file(on_cpu(contents.weights), folder / _ADAPTER, metadata={"format": "pt"})
        config = adapter_config(record.base_model, record.lora.rank, contents.peft_targets)
        (folder / _ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    if contents.moments is not None:
        flat = {f"{kind}.{name}": t for kind, named in contents.moments.items() for name, t in named.items()}
        save_file(on_cpu(flat), folder / _OPTIMIZER)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _swap(new: Path, folder: Path) -> None:
    """Replace the checkpoint in `folder` by the one in `new`.

    At every moment one complete checkpoint exists: the old or the new one in `folder`, or the old one as a backup.
    """
    for file in new.iterdir():
        _flush(file)
    folder.parent.mkdir(parents=True, exist_ok=True)
    backup = _backup(folder)
    while new.exists():
        if folder.exists():
            _discard(backup)
            os.replace(folder, backup)
        try:
            os.replace(new, folder)
        except OSError:
            if not folder.exists():
                raise
            # A reader restored the backup, because it could not know that this save is still running. Try again.
    _flush(folder.parent)
    _discard(backup)


def _discard(place: Path) -> None:
    """Remove a folder with its contents, or a file, or a link but not what it leads to. Errors are ignored."""
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place, ignore_errors=True)
    else:
        with suppress(OSError):
            place.unlink()

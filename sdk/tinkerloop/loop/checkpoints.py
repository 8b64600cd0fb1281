"""Records of a run, the lines of `checkpoints.jsonl`.

A record contains all that is needed to resume the run from one boundary, the point between two optimizer steps. Its
line also has the fields by which the Tinker Cookbook finds a checkpoint: `name`, `batch` and `state_path`.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from tinkerloop.errors import CheckpointError
from tinkerloop.loop.futures import resolve
from tinkerloop.loop.jsonl import append_line, cut, read_lines, with_quoted_words, write_lines

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """All that is needed to resume a run from one boundary: a checkpoint, the data position and the callback states.

    Attributes:
        step: the boundary: exactly steps 0 to step - 1 have been applied to the weights.
        path: the `tinker://` path of the saved weights and optimizer.
        cursor: the position in the data. After `batches.seek(cursor)`, the next batch is the first of step `step`.
        callbacks: the state of each callback, by callback name.
        metrics: the newest value of every metric, except those of detached evaluations.
        tokens: the number of input positions in steps 0 to step - 1.
        rows: the number of rows of metrics logged before the record.
        sampler_path: the `tinker://` path of the weights saved for sampling; None if they were not requested.
        run: the id of the run, with which the names of its checkpoints begin; None if it is not known.
        folder: the absolute path of the run folder when the record was written there; None if it is not known.
        model: the model, as far as it is known: `base_model`, `rank`, and other options that it was created with.
        saved_by: the names of the callbacks that asked for the record; empty if the loop saved it at its end.
        trained_tokens: the number of positions with a weight in steps 0 to step - 1.
        ttl_seconds: how long the service keeps the checkpoint after the save; None: until it is deleted.
        final: whether the callbacks have done what they do at the end of a run, because it ended at this boundary; None
            if it is not known.
    """

    step: int
    path: str
    cursor: Any
    callbacks: Mapping[str, Mapping[str, Any]]
    metrics: Mapping[str, float]
    tokens: int = 0
    rows: int = 0
    sampler_path: str | None = None
    run: str | None = None
    folder: str | None = None
    model: Mapping[str, Any] | None = None
    saved_by: Sequence[str] = ()
    trained_tokens: int = 0
    ttl_seconds: int | None = None
    final: bool | None = None

    def __repr__(self) -> str:
        return (
            f"Record(step={self.step}, path={self.path!r}, tokens={self.tokens}, rows={self.rows}, "
            f"callbacks={sorted(self.callbacks)}, metrics={len(self.metrics)})"
        )


class Checkpoints:
    """The records in `folder/checkpoints.jsonl`, oldest first. Steps increase from record to record.

    Args:
        folder: the folder of `checkpoints.jsonl`. It is created when the first record is appended.
        delete: function that deletes the checkpoint at a given `tinker://` path, such as
            `delete_checkpoint_from_tinker_path` of a REST client. If None, `retain` deletes only records, and their
            checkpoints stay on the service.
    """

    def __init__(self, folder: str | Path, delete: Callable[[str], object] | None = None):
        self.folder = Path(folder)
        self.file = self.folder / "checkpoints.jsonl"
        self._delete = delete

    def run_id(self) -> str:
        """Return the id of the run in this folder, with which the names of its checkpoints begin.

        It is the id in the newest record that was written in this folder; without such a record, a new random one. So
        a copied or moved run folder goes on under an id of its own.
        """
        records = self.records()
        ids = [record.run for record in records if record.run and self._is_own(record)]
        if ids:
            return ids[-1]
        if records and records[-1].folder:
            logger.warning(
                "the run folder %s was copied or moved from %s: it continues as another run, which never deletes the "
                "checkpoints of the records from there",
                self.folder,
                records[-1].folder,
            )
        return new_run_id()

    def _is_own(self, record: Record) -> bool:
        """Return true if the record was written in this folder, and not in one that this folder is a copy of."""
        return record.folder == str(self.folder.resolve())

    def records(self) -> list[Record]:
        """Return all records, oldest first.

        Raises:
            CheckpointError: a line is not a valid record.
        """
        records = []
        for number, line in enumerate(read_lines(self.file), 1):
            if "name" in line and "cursor" not in line:
                raise CheckpointError(
                    f"{self.file}:{number}: a record of the Tinker Cookbook, from whose data position tinkerloop "
                    "cannot resume: to train from its weights, use a new folder and open a client from `state_path`, "
                    f"or pass load_checkpoint_path={str(self.folder)!r} to train.Config"
                )
            line = {key: value for key, value in line.items() if key not in _COOKBOOK_FIELDS}
            _check_line(line, f"{self.file}:{number}")
            records.append(Record(**line))
        return records

    def latest(self) -> Record | None:
        """Return the newest record, from which a run is resumed; None if there are no records."""
        records = self.records()
        return records[-1] if records else None

    def at(self, step: int) -> Record:
        """Return the record of boundary `step`.

        Raises:
            CheckpointError: there is no record of this boundary.
        """
        for record in self.records():
            if record.step == step:
                return record
        raise CheckpointError(f"{self.file} has no record of step {step}, only of {[r.step for r in self.records()]}")

    def append(self, record: Record, *, again: bool = False) -> Record:
        """Append a record to the file and flush it to disk.

        Args:
            record: the record.
            again: replace a record of the same step, from which the run was resumed only to end there. The checkpoint
                of the replaced record is deleted as by `retain`.

        Returns:
            The record as written, with the path of this folder.

        Raises:
            CheckpointError: the file already has a record of this step or a later one.
        """
        records = self.records()
        replaced = [old for old in records[-1:] if again and old.step == record.step]
        kept = records[: len(records) - len(replaced)]
        if kept and kept[-1].step >= record.step:
            raise CheckpointError(
                f"cannot append step {record.step}: {self.file} already has step {kept[-1].step}; use a new folder"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        record = replace(record, folder=str(self.folder.resolve()))
        if replaced:
            write_lines(self.file, map(_line, [*kept, record]))
            self._delete_checkpoints(replaced, spared=(record.path, record.sampler_path))
        else:
            cut(self.file)
            append_line(self.file, _line(record))
        return record

    def rewind(self, step: int) -> None:
        """Delete all records after step `step`. The whole file is first copied to `checkpoints.jsonl.bak`."""
        records = self.records()
        kept = [record for record in records if record.step <= step]
        if len(kept) < len(records):
            write_lines(self.file.with_name(self.file.name + ".bak"), [_line(record) for record in records])
            write_lines(self.file, [_line(record) for record in kept])

    def retain(self, keep: Callable[[Sequence[Record]], Collection[int]]) -> None:
        """Delete old records and their checkpoints. The newest record is always kept.

        Records are deleted before their checkpoints. A crash in between leaves an unused checkpoint, but never a record
        whose checkpoint is gone. A checkpoint that has expired counts as deleted. The checkpoint of a record that was
        written in another folder, of which this one is a copy, stays: the records there still need it.

        Args:
            keep: function that gets all records and returns the steps of the records to keep.
        """
        records = self.records()
        steps = set(keep(records)) | {record.step for record in records[-1:]}
        dropped = [record for record in records if record.step not in steps]
        if not dropped:
            return
        write_lines(self.file, [_line(record) for record in records if record.step in steps])
        self._delete_checkpoints(dropped)

    def _delete_checkpoints(self, records: Sequence[Record], spared: Collection[str | None] = ()) -> None:
        """Delete the checkpoints of records that were written in this folder, except for the paths `spared`."""
        from tinker import NotFoundError

        for record in filter(self._is_own, records):
            for path in filter(None, (record.path, record.sampler_path)):
                if self._delete is not None and path not in spared:
                    with suppress(NotFoundError, FileNotFoundError):
                        resolve(self._delete(path))


def saved_paths(folder: str | Path) -> list[tuple[str | None, str | None]]:
    """Return the `tinker://` paths in `folder/checkpoints.jsonl`, oldest first, as (state, weights for sampling).

    The file may be of tinkerloop or of the Tinker Cookbook.

    Raises:
        CheckpointError: a line is not a JSON object.
    """
    lines = read_lines(Path(folder) / "checkpoints.jsonl", restore_numbers=False)
    paths = [(line.get("state_path") or line.get("path"), line.get("sampler_path")) for line in lines]
    return [pair for pair in paths if any(pair)]


_COOKBOOK_FIELDS = ("name", "batch", "state_path")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_states(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(state, dict) for state in value.values())


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


_COUNT = ("a whole number of at least 0", _is_count)
_TEXT = ("a text that is not empty", _is_text)
_TEXT_OR_NULL = ("a text or null", lambda value: value is None or isinstance(value, str))
_FIELDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "step": _COUNT,
    "path": _TEXT,
    "cursor": ("any value", lambda value: True),
    "callbacks": ("an object with an object for each callback", _is_states),
    "metrics": ("an object", lambda value: isinstance(value, dict)),  # some versions logged values that are no numbers
    "tokens": _COUNT,
    "rows": _COUNT,
    "sampler_path": _TEXT_OR_NULL,
    "run": _TEXT_OR_NULL,
    "folder": _TEXT_OR_NULL,
    "model": ("an object or null", lambda value: value is None or isinstance(value, dict)),
    "saved_by": ("a list of texts", _is_texts),
    "trained_tokens": _COUNT,
    "ttl_seconds": ("a whole number or null", lambda value: value is None or _is_count(value)),
    "final": ("true, false or null", lambda value: value is None or isinstance(value, bool)),
}
"""The fields of a record in its line: what is expected there, and the check of it."""
_REQUIRED = [field.name for field in fields(Record) if field.default is MISSING]


def _check_line(line: Mapping[str, Any], where: str) -> None:
    """Check the fields of a line and their types. Fields that earlier versions did not write may be missing.

    Raises:
        CheckpointError: a field is unknown, missing or of another type.
    """
    if not set(_REQUIRED) <= set(line) <= set(_FIELDS):
        raise CheckpointError(
            f"{where}: not a valid record: its fields are {sorted(line)}, expected are {', '.join(_REQUIRED)}, and "
            f"perhaps {', '.join(name for name in _FIELDS if name not in _REQUIRED)}; repair or move the file"
        )
    for name, value in line.items():
        expected, is_valid = _FIELDS[name]
        if not is_valid(value):
            raise CheckpointError(
                f"{where}: not a valid record: {name} is {json.dumps(value)[:80]}, expected {expected}; repair or move "
                "the file"
            )


def _line(record: Record) -> dict[str, Any]:
    """Return the line of a record: its fields, and those by which the Tinker Cookbook reads `checkpoints.jsonl`."""
    named = {"name": record.path.rpartition("/")[2], "batch": record.step, "state_path": record.path}
    return {**with_quoted_words(asdict(record)), **named}


def new_run_id() -> str:
    """Return a new random id of a run: 8 hexadecimal digits."""
    return secrets.token_hex(4)

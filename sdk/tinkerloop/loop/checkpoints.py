"""Records of a run: one line of `checkpoints.jsonl` holds all that is needed to continue exactly from there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Unpack

from tinkerloop.clients import LoraOptions, ServiceClientLike, TrainingClientLike
from tinkerloop.errors import CheckpointError
from tinkerloop.loop.futures import resolve
from tinkerloop.loop.jsonl import append_line, cut, read_lines, write_lines


@dataclass(frozen=True)
class Record:
    """A checkpoint and all that belongs to it: weights, data position and callback state of one step boundary.

    Attributes:
        step: the weights hold exactly steps [0, step).
        path: the `tinker://` path of the training state: weights and optimizer.
        cursor: the data's position: after `batches.seek(cursor)` the next batch is that of step `step`.
        callbacks: the callbacks' states, by callback name.
        metrics: the newest value of every metric.
        tokens: input positions trained on in steps [0, step).
        rows: the number of rows that the sinks had been given.
        sampler_path: the `tinker://` path of weights for a sampling client, if they were requested.
    """

    step: int
    path: str
    cursor: Any
    callbacks: Mapping[str, Mapping[str, Any]]
    metrics: Mapping[str, float]
    tokens: int = 0
    rows: int = 0
    sampler_path: str | None = None

    def __repr__(self) -> str:
        return (
            f"Record(step={self.step}, path={self.path!r}, tokens={self.tokens}, rows={self.rows}, "
            f"callbacks={sorted(self.callbacks)}, metrics={len(self.metrics)})"
        )


class Checkpoints:
    """The records in `folder/checkpoints.jsonl`, oldest first. Each has a higher step than the one before.

    Args:
        folder: the folder of the file; it is made when the first record is appended.
        delete: deletes the checkpoint at a `tinker://` path, such as the `delete_checkpoint_from_tinker_path` of a
            REST client. Without it, `retain` deletes records only, and their checkpoints stay on the service.
    """

    def __init__(self, folder: str | Path, delete: Callable[[str], object] | None = None):
        self.folder = Path(folder)
        self.file = self.folder / "checkpoints.jsonl"
        self._delete = delete

    def records(self) -> list[Record]:
        """Read all records, oldest first.

        Raises:
            CheckpointError: a line is not a record.
        """
        known = {field.name for field in fields(Record)}
        records = []
        for number, line in enumerate(read_lines(self.file), 1):
            if not known >= set(line) or not {"step", "path", "cursor"} <= set(line):
                raise CheckpointError(
                    f"{self.file}:{number}: not a record: its fields are {sorted(line)}; repair or move the file"
                )
            records.append(Record(**line))
        return records

    def latest(self) -> Record | None:
        """Return the newest record, to resume from; None in a new run."""
        records = self.records()
        return records[-1] if records else None

    def at(self, step: int) -> Record:
        """Return the record of boundary `step`.

        Raises:
            CheckpointError: there is none.
        """
        for record in self.records():
            if record.step == step:
                return record
        raise CheckpointError(f"{self.file} has no record of step {step}; it has {[r.step for r in self.records()]}")

    def append(self, record: Record) -> None:
        """Add a record and force it to disk.

        Raises:
            CheckpointError: the file already holds this step or a later one.
        """
        latest = self.latest()
        if latest and latest.step >= record.step:
            raise CheckpointError(
                f"{self.file} already holds step {latest.step}; cannot add step {record.step}: use a new folder"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        cut(self.file)
        append_line(self.file, asdict(record))

    def rewind(self, step: int) -> None:
        """Drop the records after `step`; the whole file is copied to `checkpoints.jsonl.bak` first."""
        records = self.records()
        kept = [record for record in records if record.step <= step]
        if len(kept) < len(records):
            write_lines(self.file.with_name(self.file.name + ".bak"), [asdict(record) for record in records])
            write_lines(self.file, [asdict(record) for record in kept])

    def retain(self, keep: Callable[[Sequence[Record]], Collection[int]]) -> None:
        """Delete the records whose step `keep(records)` does not return, and their checkpoints; never the newest.

        Records are deleted before their checkpoints: a crash in between leaves an unused checkpoint, never a record
        that cannot be resumed. A checkpoint that has expired counts as deleted.
        """
        from tinker import NotFoundError

        records = self.records()
        steps = set(keep(records)) | {record.step for record in records[-1:]}
        dropped = [record for record in records if record.step not in steps]
        if not dropped:
            return
        write_lines(self.file, [asdict(record) for record in records if record.step in steps])
        for record in dropped:
            for path in filter(None, (record.path, record.sampler_path)):
                if self._delete is not None:
                    with suppress(NotFoundError, FileNotFoundError):
                        resolve(self._delete(path))


def open_training_client(
    service: ServiceClientLike, record: Record | None, **create: Unpack[LoraOptions]
) -> TrainingClientLike:
    """Open a training client from a record, its optimizer included, or a new one where there is no record.

    Args:
        service: what `tinkerloop.connect` returns.
        record: the record to resume from; None for a new run.
        create: arguments of `create_lora_training_client`, such as `base_model=` and `rank=`, for a new run. With a
            record they are not used: its checkpoint has its own.

    Raises:
        CheckpointError: the service no longer has the record's checkpoint.
    """
    from tinker import NotFoundError

    if record is None:
        options: Any = create  # the service itself refuses a missing base_model
        return resolve(service.create_lora_training_client(**options))
    try:
        return resolve(service.create_training_client_from_state_with_optimizer(record.path))
    except (NotFoundError, FileNotFoundError) as error:
        raise CheckpointError(
            f"the checkpoint of step {record.step} is gone ({record.path}): it was deleted or has expired. "
            "Resume from an older record (Checkpoints.records()), or start again in a new folder"
        ) from error

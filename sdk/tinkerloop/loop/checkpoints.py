"""Records of a run: what is needed to go on exactly where it stood, one line of `checkpoints.jsonl` each."""

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
    """One moment of a run, at a step boundary: weights, data position and callback state belong together."""

    step: int
    """The weights hold exactly steps [0, step)."""
    path: str
    """Where the service keeps the training state: weights and optimizer."""
    cursor: Any
    """The data's position: `batches.seek(cursor)` gives the batch of step `step` next."""
    callbacks: Mapping[str, Mapping[str, Any]]
    """State by callback name."""
    metrics: Mapping[str, float]
    """The newest value of every metric."""
    tokens: int = 0
    """Input positions trained on in steps [0, step)."""
    rows: int = 0
    """Rows that the sinks had been given."""
    sampler_path: str | None = None
    """Weights for a sampling client, if they were asked for."""


class Checkpoints:
    """The records in `folder/checkpoints.jsonl`, oldest first, steps rising.

    Args:
        delete: deletes a `tinker://` path on the service, for `retain`. Without it, forgotten checkpoints stay there.
    """

    def __init__(self, folder: str | Path, delete: Callable[[str], object] | None = None):
        self.folder = Path(folder)
        self.file = self.folder / "checkpoints.jsonl"
        self._delete = delete

    def records(self) -> list[Record]:
        """All records, oldest first.

        Raises:
            CheckpointError: a line is not a record.
        """
        known = {field.name for field in fields(Record)}
        records = []
        for number, line in enumerate(read_lines(self.file), 1):
            if not known >= set(line) or not {"step", "path", "cursor"} <= set(line):
                raise CheckpointError(f"{self.file}:{number}: not a record: its fields are {sorted(line)}")
            records.append(Record(**line))
        return records

    def latest(self) -> Record | None:
        """The newest record, to resume from; None in a new run."""
        records = self.records()
        return records[-1] if records else None

    def at(self, step: int) -> Record:
        """The record of boundary `step`."""
        for record in self.records():
            if record.step == step:
                return record
        raise CheckpointError(f"{self.file} has no record of step {step}; it has {[r.step for r in self.records()]}")

    def append(self, record: Record) -> None:
        """Add a record and force it to disk."""
        latest = self.latest()
        if latest and latest.step >= record.step:
            raise CheckpointError(f"{self.file} already holds step {latest.step}; cannot add step {record.step}")
        self.folder.mkdir(parents=True, exist_ok=True)
        cut(self.file)
        append_line(self.file, asdict(record))

    def rewind(self, step: int) -> None:
        """Drop the records after `step`; the file as it was is kept beside it as `checkpoints.jsonl.bak`."""
        records = self.records()
        kept = [record for record in records if record.step <= step]
        if len(kept) < len(records):
            write_lines(self.file.with_name(self.file.name + ".bak"), [asdict(record) for record in records])
            write_lines(self.file, [asdict(record) for record in kept])

    def retain(self, keep: Callable[[Sequence[Record]], Collection[int]]) -> None:
        """Forget the records whose step `keep(records)` does not return, the newest excepted.

        Records go first, then their checkpoints on the service: a crash in between leaves an unused checkpoint, never
        a record that cannot be resumed. One that the service no longer has, since it expired, counts as deleted.
        """
        from tinker import NotFoundError

        records = self.records()
        steps = set(keep(records)) | {record.step for record in records[-1:]}
        doomed = [record for record in records if record.step not in steps]
        if not doomed:
            return
        write_lines(self.file, [asdict(record) for record in records if record.step in steps])
        for record in doomed:
            for path in filter(None, (record.path, record.sampler_path)):
                if self._delete is not None:
                    with suppress(NotFoundError, FileNotFoundError):
                        resolve(self._delete(path))


def open_training_client(
    service: ServiceClientLike, record: Record | None, **create: Unpack[LoraOptions]
) -> TrainingClientLike:
    """A training client at `record`'s moment, optimizer included, or a new one made with the `create` arguments.

    Args:
        service: a `tinker.ServiceClient`, or anything with its interface.
        create: arguments of `create_lora_training_client`, such as `base_model=` and `rank=`; a record knows its own.

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

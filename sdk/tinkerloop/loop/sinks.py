"""Sinks, which write rows of metrics. A sink is called as `sink(step, row)`; all sinks of a run are given all rows.

Any function of two arguments is a sink. Subclass `Sink` to open and close something, or to make it
`optional`: then an exception is logged once and the sink dropped, instead of ending the run.
"""

from __future__ import annotations

import logging
import os
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from tinkerloop.errors import CheckpointError
from tinkerloop.loop.jsonl import cut, encode

Row = Mapping[str, float]

logger = logging.getLogger(__name__)


class Sink:
    """The base of the built-in sinks."""

    optional: bool = False

    def open(self, rows: int, step: int) -> None:
        """Prepare for the first row. A resumed run continues after `rows` rows, at `step`; later rows come again."""

    def __call__(self, step: int, row: Row) -> None:
        """Write the metrics of a step, of an evaluation, or of a callback's `Log`."""

    def sync(self) -> None:
        """Force the rows so far to disk: a record that counts them is about to be written."""

    def close(self, failed: bool) -> None:
        """Finish after the last row; `failed` if an error ended the run."""


class FunctionSink(Sink):
    """A sink made of a function."""

    def __init__(self, function: Callable[[int, Row], object]):
        self._function = function

    def __call__(self, step: int, row: Row) -> None:
        self._function(step, row)


class Sinks:
    """The sinks of one run. All are given the same rows, and the rows are counted."""

    def __init__(self, sinks: Sequence[Sink | Callable[[int, Row], object]]):
        self._sinks = [sink if isinstance(sink, Sink) else FunctionSink(sink) for sink in sinks]
        self._opened: list[Sink] = []
        self.rows = 0

    def open(self, rows: int, step: int) -> None:
        self.rows = rows
        for sink in self._sinks:
            if self._guard(sink, sink.open, rows, step):
                self._opened.append(sink)

    def emit(self, step: int, row: Row) -> None:
        self.rows += 1
        for sink in list(self._opened):
            self._guard(sink, sink, step, row)

    def sync(self) -> None:
        for sink in list(self._opened):
            self._guard(sink, sink.sync)

    def close(self, failed: bool) -> list[Exception]:
        """Close every sink that was opened, and return the errors that they raised."""
        failures: list[Exception] = []
        for sink in list(self._opened):
            try:
                self._guard(sink, sink.close, failed)
            except Exception as error:
                failures.append(error)
        return failures

    def _guard(self, sink: Sink, call: Callable[..., None], *args: Any) -> bool:
        try:
            call(*args)
        except Exception as error:
            if not sink.optional:
                error.add_note(f"in the sink {type(sink).__name__}")
                raise
            logger.warning("the optional sink %s failed and is dropped", type(sink).__name__, exc_info=error)
            self._opened = [other for other in self._opened if other is not sink]
            return False
        return True


class Jsonl(Sink):
    """One JSON object a line: `{"step": 3, "loss": 0.5, ...}`.

    Each row is written when it comes, and forced to disk before a record counts it. On resume, the rows after the
    record are cut off, so that steps never decrease and no row comes twice.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def open(self, rows: int, step: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = cut(self.path, rows)
        if kept < rows:
            raise CheckpointError(
                f"{self.path} holds {kept} rows, but the record of step {step} was written after {rows}: "
                "rows are missing. Restore the file, or copy it to the folder where the run is resumed"
            )
        self._file = self.path.open("ab", buffering=0)

    def __call__(self, step: int, row: Row) -> None:
        line = memoryview(encode({"step": step, **row}))
        while line:
            line = line[self._file.write(line) :]

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self, failed: bool) -> None:
        self._file.close()


class Console(Sink):
    """One line a row, to `file` (standard error unless given); `only` picks metrics by name."""

    def __init__(self, only: tuple[str, ...] | None = None, file: TextIO | None = None):
        self._only, self._out = only, file

    def __call__(self, step: int, row: Row) -> None:
        shown = row if self._only is None else {name: row[name] for name in self._only if name in row}
        if shown:
            numbers = "  ".join(f"{name} {value:.6g}" for name, value in shown.items())
            print(f"step {step}  {numbers}", file=self._out or sys.stderr)


class TensorBoard(Sink):
    """TensorBoard event files in `folder` (extra: `tinkerloop-sdk[tensorboard]`).

    A resumed run replaces the rows after its record.
    """

    optional = True

    def __init__(self, folder: str | Path):
        self._folder = str(folder)

    def open(self, rows: int, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(self._folder, purge_step=step if rows else None)

    def __call__(self, step: int, row: Row) -> None:
        for name, value in row.items():
            self._writer.add_scalar(name, value, step)

    def sync(self) -> None:
        self._writer.flush()

    def close(self, failed: bool) -> None:
        self._writer.close()


class WandB(Sink):
    """Weights & Biases (extra: `tinkerloop-sdk[wandb]`). A resumed run continues the same W&B or MLflow run.

    Rows that were logged after the record come again, with the same step and values.

    Args:
        folder: where the run's id is saved.
        settings: further arguments of `wandb.init`, such as `project=`, `name=`, `mode="offline"`.
    """

    optional = True

    def __init__(self, folder: str | Path, **settings: Any):
        self._folder, self._settings = Path(folder), settings

    def open(self, rows: int, step: int) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        id_file = self._folder / "wandb_run_id"
        run_id = id_file.read_text() if id_file.exists() else uuid.uuid4().hex
        self._folder.mkdir(parents=True, exist_ok=True)
        id_file.write_text(run_id)
        self._run = wandb.init(id=run_id, resume="allow", dir=str(self._folder), **self._settings)
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def __call__(self, step: int, row: Row) -> None:
        self._run.log({"step": step, **row})

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class MLflow(Sink):
    """MLflow (extra: `tinkerloop-sdk[mlflow]`). A resumed run continues the same W&B or MLflow run.

    Rows that were logged after the record come again, with the same step and values.
    """

    optional = True

    def __init__(self, folder: str | Path, *, experiment: str = "tinkerloop", tracking_uri: str | None = None):
        self._folder, self._experiment, self._uri = Path(folder), experiment, tracking_uri

    def open(self, rows: int, step: int) -> None:
        from mlflow.tracking import MlflowClient  # pyright: ignore[reportMissingImports]

        self._client = MlflowClient(tracking_uri=self._uri)
        id_file = self._folder / "mlflow_run_id"
        if id_file.exists():
            self._run_id = id_file.read_text()
            self._client.update_run(self._run_id, status="RUNNING")
            return
        experiment = self._client.get_experiment_by_name(self._experiment)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(self._experiment)
        self._run_id = self._client.create_run(experiment_id).info.run_id
        self._folder.mkdir(parents=True, exist_ok=True)
        id_file.write_text(self._run_id)

    def __call__(self, step: int, row: Row) -> None:
        for name, value in row.items():
            self._client.log_metric(self._run_id, name.replace(":", "."), value, step=step)

    def close(self, failed: bool) -> None:
        self._client.set_terminated(self._run_id, "FAILED" if failed else "FINISHED")

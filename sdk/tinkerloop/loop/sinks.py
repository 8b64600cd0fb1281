"""Sinks, which write rows of metrics to a file, the terminal or a tracking service.

A row is a mapping from metric name to value. The loop calls each sink as `sink(step, row)`, and all sinks get all rows.
Any function of two arguments is a sink. Subclass `Sink` to open and close a resource, or to set `optional`. An
exception in an optional sink does not end the run: it is logged, and the sink is removed. Only a package that is not
installed is an error of every sink, because the run can be started again at once with the package.
"""

from __future__ import annotations

import logging
import os
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from tinkerloop.errors import CheckpointError, MissingPackageError, PlanError
from tinkerloop.extras import needs_extra
from tinkerloop.loop.jsonl import append_line, cut, encode, read_lines, set_aside, write_lines
from tinkerloop.terminal import one_line

Row = Mapping[str, float]

logger = logging.getLogger(__name__)


class Sink:
    """Base class of sinks. The loop calls `open`, then the sink for each row, and at the end `close`."""

    optional: bool = False

    def open(self, rows: int, step: int) -> None:
        """Prepare for the first row.

        Args:
            rows: the number of rows written before the record of a resumed run; 0 in a new run. Rows that were written
                after the record will be written again.
            step: the step at which the run starts or is resumed.
        """

    def __call__(self, step: int, row: Row) -> None:
        """Write one row: the metrics of a step, of an evaluation, or of a callback's `Log`."""

    def sync(self) -> None:
        """Flush all rows to disk. Called before a record, which contains the number of rows, is written."""

    def close(self, failed: bool) -> None:
        """Close the sink after the last row. `failed` is true if an error ended the run."""


class FunctionSink(Sink):
    """A sink that calls `function(step, row)` for each row."""

    def __init__(self, function: Callable[[int, Row], object]):
        self._function = function

    def __call__(self, step: int, row: Row) -> None:
        self._function(step, row)


class Sinks:
    """The sinks of one run. Passes every row to all of them, and counts the rows."""

    def __init__(self, sinks: Sequence[Sink | Callable[[int, Row], object]]):
        given = [sinks] if isinstance(sinks, str | os.PathLike) else sinks
        if isinstance(sinks, Sink) or callable(sinks):
            raise PlanError(f"sinks must be a list, got the single sink {sinks!r}: pass sinks=[sink]")
        self._sinks = [_as_sink(sink) for sink in given]
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

    def close(self, failed: bool) -> list[BaseException]:
        """Close every sink that was opened, and return the exceptions raised by those that are not optional.

        Not even a KeyboardInterrupt in one of them skips the others.
        """
        failures: list[BaseException] = []
        for sink in list(self._opened):
            try:
                self._guard(sink, sink.close, failed)
            except BaseException as error:
                failures.append(error)
        return failures

    def _guard(self, sink: Sink, call: Callable[..., None], *args: Any) -> bool:
        try:
            call(*args)
        except Exception as error:
            if not sink.optional or isinstance(error, MissingPackageError):
                error.add_note(f"in the sink {type(sink).__name__}")
                raise
            logger.warning("the optional sink %s failed and is removed", type(sink).__name__, exc_info=error)
            self._opened = [other for other in self._opened if other is not sink]
            return False
        return True


def _as_sink(sink: Any) -> Sink:
    if isinstance(sink, Sink):
        return sink
    if isinstance(sink, str | os.PathLike):
        raise PlanError(f"a sink writes rows, got the path {os.fspath(sink)!r}: pass Jsonl(path) to write them there")
    if isinstance(sink, type) or not callable(sink):
        raise PlanError(f"a sink must be a function (step, row) or a Sink object, got {sink!r}")
    return FunctionSink(sink)


class Jsonl(Sink):
    """Sink that writes one JSON object per line to a file, such as `{"step": 3, "loss": 0.5, ...}`.

    Each row is written immediately, and all rows are flushed to disk before a record is written. A resumed run removes
    the rows that were written after its record, so the file never contains a row twice. A new run on an existing file
    begins a new one: it renames the old file to `NAME.1`, or to the next free number, and logs a warning.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.was_opened = False

    def open(self, rows: int, step: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not rows and self.path.exists() and self.path.stat().st_size:
            aside = set_aside(self.path)
            logger.warning(
                "%s has rows of an earlier run, which is not resumed: it was renamed to %s", self.path, aside
            )
        kept = cut(self.path, rows)
        if kept < rows:
            raise CheckpointError(
                f"rows are missing in {self.path}: it has {kept}, but the record of step {step} was written after "
                f"{rows} rows. Restore the file, or copy it to the folder in which the run is resumed"
            )
        self._file = self.path.open("ab", buffering=0)
        self.was_opened = True

    def __call__(self, step: int, row: Row) -> None:
        line = memoryview(encode({"step": step, **row}))
        while line:
            line = line[self._file.write(line) :]

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self, failed: bool) -> None:
        self._file.close()


class Console(Sink):
    """Sink that prints one line per row.

    Args:
        only: the names of the metrics to print; None: all metrics.
        file: where to print; None: standard error.
    """

    def __init__(self, only: tuple[str, ...] | None = None, file: TextIO | None = None):
        self._only, self._out = only, file

    def __call__(self, step: int, row: Row) -> None:
        shown = row if self._only is None else {name: row[name] for name in self._only if name in row}
        if shown:
            numbers = "  ".join(f"{one_line(name)} {value:.6g}" for name, value in shown.items())
            print(f"step {step}  {numbers}", file=self._out or sys.stderr)


class TensorBoard(Sink):
    """Sink that writes TensorBoard event files to `folder` (extra: `tinkerloop-sdk[tensorboard]`).

    A resumed run replaces the rows that were written after its record. TensorBoard can only remove all rows from a step
    on, and the evaluations at the record's boundary have the same step as the rows of the next training step. So the
    rows of the newest step are also saved in `boundaries.jsonl` before each record, and written again on a resume.
    """

    optional = True

    def __init__(self, folder: str | Path):
        self._folder = Path(folder)
        self._boundaries = self._folder / "boundaries.jsonl"

    def open(self, rows: int, step: int) -> None:
        with needs_extra("tensorboard,local", "the sink TensorBoard"):
            from torch.utils.tensorboard import SummaryWriter

        saved = [line for line in read_lines(self._boundaries) if line["rows"] <= rows]
        self._folder.mkdir(parents=True, exist_ok=True)
        write_lines(self._boundaries, saved)
        self._writer = SummaryWriter(str(self._folder), purge_step=step if rows else None)
        self._rows, self._newest = rows, (step, {})
        if saved and (saved[-1]["rows"], saved[-1]["step"]) == (rows, step):
            self._write(step, saved[-1]["values"])

    def __call__(self, step: int, row: Row) -> None:
        self._rows += 1
        self._write(step, row)

    def sync(self) -> None:
        self._writer.flush()
        step, values = self._newest
        append_line(self._boundaries, {"rows": self._rows, "step": step, "values": values})

    def close(self, failed: bool) -> None:
        self._writer.close()

    def _write(self, step: int, row: Row) -> None:
        if step >= self._newest[0]:
            self._newest = (step, {**(self._newest[1] if step == self._newest[0] else {}), **row})
        for name, value in row.items():
            self._writer.add_scalar(name, value, step)


class WandB(Sink):
    """Sink that logs to Weights & Biases (extra: `tinkerloop-sdk[wandb]`).

    A resumed run continues the same W&B run. Rows that were logged after its record are logged again, with the same
    step and values.

    Args:
        folder: the folder in which the id of the W&B run is saved.
        settings: further arguments of `wandb.init`, such as `project=`, `name=` or `mode="offline"`.
    """

    optional = True

    def __init__(self, folder: str | Path, **settings: Any):
        self._folder, self._settings = Path(folder), settings

    def open(self, rows: int, step: int) -> None:
        with needs_extra("wandb", "the sink WandB"):
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
    """Sink that logs to MLflow (extra: `tinkerloop-sdk[mlflow]`).

    A resumed run continues the same MLflow run. Rows that were logged after its record are logged again, with the same
    step and values. A colon in the name of a metric is replaced by a dot.

    Args:
        folder: the folder in which the id of the MLflow run is saved.
        experiment: the name of the MLflow experiment. It is created if it does not exist.
        tracking_uri: the address of the MLflow server; None: MLflow's default.
    """

    optional = True

    def __init__(self, folder: str | Path, *, experiment: str = "tinkerloop", tracking_uri: str | None = None):
        self._folder, self._experiment, self._uri = Path(folder), experiment, tracking_uri

    def open(self, rows: int, step: int) -> None:
        with needs_extra("mlflow", "the sink MLflow"):
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

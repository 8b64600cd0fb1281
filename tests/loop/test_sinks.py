import io
import json
import sys

import numpy as np
import pytest
import torch

from tinkerloop.callbacks import LRSchedule
from tinkerloop.errors import MissingPackageError
from tinkerloop.loop import (
    Callback,
    Checkpoints,
    Console,
    Jsonl,
    Log,
    Loop,
    MLflow,
    Sink,
    TensorBoard,
    WandB,
    open_training_client,
)


def train(service, batches, folder, steps, *sinks):
    checkpoints = Checkpoints(folder)
    record = checkpoints.latest()
    client = open_training_client(service, record)
    Loop(client, batches, steps=steps, checkpoints=checkpoints, record=record, sinks=sinks).run()


def test_all_sinks_are_fed_the_same_rows(service, batches, tmp_path):
    rows = []
    train(
        service, batches, tmp_path, 3, Jsonl(tmp_path / "m.jsonl"), lambda step, row: rows.append({"step": step, **row})
    )
    assert [json.loads(line) for line in (tmp_path / "m.jsonl").open()] == rows


def test_numbers_of_numpy_and_torch_are_numbers(service, batches, tmp_path):
    class Scores(Callback):
        def on_step(self, result):
            return Log({"numpy": np.float32(0.5), "count": np.int64(3), "torch": torch.tensor(0.25)})

    checkpoints = Checkpoints(tmp_path)
    client = service.create_lora_training_client()
    callbacks = [Scores(), LRSchedule(lambda step: np.float32(0.125))]
    sinks = [Jsonl(tmp_path / "m.jsonl")]
    Loop(client, batches, steps=1, callbacks=callbacks, sinks=sinks, checkpoints=checkpoints).run()
    expected = {"numpy": 0.5, "count": 3, "torch": 0.25, "learning_rate": 0.125}
    assert expected.items() <= json.loads((tmp_path / "m.jsonl").read_text()).items()
    assert expected.items() <= checkpoints.latest().metrics.items()


class Closed(Sink):
    def __init__(self):
        self.failed = []

    def close(self, failed):
        self.failed.append(failed)


def break_down(step, row):
    raise OSError("no space left")


def test_a_sink_is_told_whether_the_run_failed(service, batches, tmp_path):
    sink = Closed()
    train(service, batches, tmp_path / "whole", 2, sink)
    with pytest.raises(OSError, match="no space"):
        train(service, batches, tmp_path / "broken", 2, sink, break_down)
    assert sink.failed == [False, True]


def test_jsonl_on_resume_drops_the_rows_behind_the_record(service, batches, tmp_path):
    train(service, batches, tmp_path, 3, Jsonl(tmp_path / "m.jsonl"))
    with (tmp_path / "m.jsonl").open("a") as file:
        file.write('{"step": 3, "loss": 1.0}\n{"step": 4, "lo')
    train(service, batches, tmp_path, 5, Jsonl(tmp_path / "m.jsonl"))
    assert [json.loads(line)["step"] for line in (tmp_path / "m.jsonl").open()] == [0, 1, 2, 3, 4]


def test_a_new_run_keeps_the_rows_of_each_earlier_run_in_a_file_of_its_own(service, batches, tmp_path, caplog):
    for steps in (3, 2, 1):
        Loop(service.create_lora_training_client(), batches[:steps], sinks=[Jsonl(tmp_path / "m.jsonl")]).run()
    assert [len((tmp_path / name).read_text().splitlines()) for name in ("m.jsonl.1", "m.jsonl.2", "m.jsonl")] == [
        3,
        2,
        1,
    ]
    assert f"renamed to {tmp_path / 'm.jsonl.1'}" in caplog.text


def test_console_prints_the_metrics_asked_for(service, batches, tmp_path):
    out = io.StringIO()
    train(service, batches, tmp_path, 2, Console(only=("loss",), file=out))
    assert out.getvalue().splitlines()[0].split("  ")[1] == "loss 2.99573"


def test_console_sends_no_escape_sequence_of_a_name_to_the_terminal(capsys):
    Console()(3, {"\x1b[2J\nloss": 0.5})
    assert capsys.readouterr().err == "step 3  ␛[2J⏎loss 0.5\n"


def test_tensorboard_holds_every_step_once_after_a_resume(service, batches, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(service, batches, tmp_path, 3, TensorBoard(tmp_path / "tb"))
    train(service, batches, tmp_path, 5, TensorBoard(tmp_path / "tb"))
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [0, 1, 2, 3, 4]


class Scores(Callback):
    """Logs a score at each boundary, as an evaluation would."""

    def on_boundary(self, boundary):
        return Log({"score": float(boundary.step)})


@pytest.mark.parametrize("stops", [(2, 4, 6), (4, 4, 6)], ids=["each resumed once", "the same record resumed twice"])
def test_tensorboard_keeps_what_was_logged_at_the_records_boundary(service, batches, tmp_path, stops):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    checkpoints = Checkpoints(tmp_path)
    for steps in stops:
        record = checkpoints.latest()
        client = open_training_client(service, record)
        sinks = [TensorBoard(tmp_path / "tb")]
        Loop(
            client, batches, steps=steps, checkpoints=checkpoints, record=record, sinks=sinks, callbacks=[Scores()]
        ).run()
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("score")] == [(step, step) for step in range(7)]


def test_wandb_resumes_the_same_run(service, batches, tmp_path):
    pytest.importorskip("wandb")
    for steps in (2, 4):
        train(service, batches, tmp_path, steps, WandB(tmp_path, project="tinkerloop", mode="offline"))
    runs = {path.name.rsplit("-", 1)[1] for path in (tmp_path / "wandb").glob("offline-run-*")}
    assert runs == {(tmp_path / "wandb_run_id").read_text()}


def test_mlflow_resumes_the_same_run(service, batches, tmp_path):
    tracking = pytest.importorskip("mlflow.tracking")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for steps in (2, 4):
        train(service, batches, tmp_path, steps, MLflow(tmp_path, tracking_uri=uri))
    history = tracking.MlflowClient(uri).get_metric_history((tmp_path / "mlflow_run_id").read_text(), "loss")
    assert [metric.step for metric in history] == [0, 1, 2, 3]


def test_mlflow_says_that_a_run_failed_until_it_is_resumed(service, batches, tmp_path):
    tracking = pytest.importorskip("mlflow.tracking")
    client = tracking.MlflowClient(uri := f"sqlite:///{tmp_path}/mlflow.db")

    def status():
        return client.get_run((tmp_path / "mlflow_run_id").read_text()).info.status

    with pytest.raises(OSError, match="no space"):
        train(service, batches, tmp_path, 2, MLflow(tmp_path, tracking_uri=uri), break_down)
    assert status() == "FAILED"
    train(service, batches, tmp_path, 2, MLflow(tmp_path, tracking_uri=uri))
    assert status() == "FINISHED"


def test_a_missing_package_of_a_sink_ends_the_run_at_its_start(service, batches, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingPackageError, match="the sink WandB needs the package wandb"):
        train(service, batches, tmp_path, 1, WandB(tmp_path))
    assert service.operations == []

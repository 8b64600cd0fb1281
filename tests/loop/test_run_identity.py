"""What one run saved is never overwritten or deleted by another run."""

import shutil

import pytest

from tinkerloop.callbacks import Checkpoint
from tinkerloop.loop import Checkpoints, Loop, Pipeline, open_training_client


def train(service, batches, folder, steps, *, client=None, keep_last=None):
    """One process of a run in `folder`: from its newest record to `steps`."""
    checkpoints = Checkpoints(folder, delete=service.delete)
    record = checkpoints.latest()
    client = client or open_training_client(service, record)
    callbacks = [Checkpoint(every=2, keep_last=keep_last, sampler=True)]
    Loop(client, batches, steps=steps, callbacks=callbacks, checkpoints=checkpoints, record=record).run()
    return checkpoints.records()


def test_two_runs_on_one_client_save_under_names_of_their_own(service, batches, tmp_path):
    client = service.create_lora_training_client()
    first = train(service, batches, tmp_path / "sft", 2, client=client)[-1]
    weights = service.checkpoints[first.path].logits.copy()
    second = train(service, batches, tmp_path / "rl", 2, client=client)[-1]
    assert first.path != second.path
    assert (service.checkpoints[first.path].logits == weights).all()


def test_two_pipelines_on_one_client_save_under_names_of_their_own(service):
    client = service.create_lora_training_client()
    saves = [pipeline.submit_save(0) for pipeline in (Pipeline(client), Pipeline(client))]
    assert len({save.futures[0].result().path for save in saves}) == 2


def test_a_resumed_run_keeps_its_id(service, batches, tmp_path):
    train(service, batches, tmp_path, 2)
    records = train(service, batches, tmp_path, 6)
    assert len({record.run for record in records}) == 1
    assert [record.path.split("/")[-1] for record in records] == [
        f"{record.run}-{record.step:06d}" for record in records
    ]


@pytest.fixture(params=["copied", "moved"])
def elsewhere(request, service, batches, tmp_path):
    """A run of 4 steps, and its folder after it was copied or moved."""
    records = train(service, batches, tmp_path / "run", 4)
    if request.param == "moved":
        return records, (tmp_path / "run").rename(tmp_path / "other")
    return records, shutil.copytree(tmp_path / "run", tmp_path / "other")


def test_a_copied_run_folder_never_deletes_the_checkpoints_of_the_original(service, batches, elsewhere, caplog):
    original, folder = elsewhere
    records = train(service, batches, folder, 10, keep_last=1)
    assert [record.step for record in records] == [10]
    own = {records[-1].path, records[-1].sampler_path}
    assert set(service.checkpoints) == own | {path for one in original for path in (one.path, one.sampler_path)}
    assert "was copied or moved from" in caplog.text


def test_a_copied_run_folder_goes_on_under_an_id_of_its_own(service, batches, elsewhere):
    original, folder = elsewhere
    runs = [record.run for record in train(service, batches, folder, 8)]
    assert runs[:2] == [original[0].run] * 2
    assert runs[2] == runs[3] != runs[0]


def test_a_record_without_the_id_of_its_run_can_be_resumed(service, batches, tmp_path):
    train(service, batches, tmp_path, 2)
    file = tmp_path / "checkpoints.jsonl"
    before, _, _ = file.read_text().partition(', "run": ')
    file.write_text(before + "}\n")
    old, new = train(service, batches, tmp_path, 4)
    assert (old.run, old.folder, new.step) == (None, None, 4)
    assert new.run is not None

"""Records and the checkpoints.jsonl of the Tinker Cookbook: each side finds the other's checkpoints."""

import json

import pytest

from tinkerloop.callbacks import Checkpoint, EarlyStop, Evaluate
from tinkerloop.errors import CheckpointError
from tinkerloop.loop import Checkpoints, Loop, background
from tinkerloop.loop.checkpoints import saved_paths


def lines(folder):
    return [json.loads(line) for line in (folder / "checkpoints.jsonl").read_text().splitlines()]


def trained(service, batches, folder, *callbacks):
    loop = Loop(service.create_lora_training_client(), batches, callbacks=callbacks, checkpoints=Checkpoints(folder))
    return loop.run()


def test_a_record_has_the_fields_that_the_cookbook_reads(tmp_path, service, batches):
    trained(service, batches, tmp_path, Checkpoint(every=8, sampler="final"))
    first, last = lines(tmp_path)
    assert (first["batch"], first["state_path"], first["sampler_path"]) == (8, first["path"], None)
    assert last["path"].endswith(last["name"])
    assert last["name"].endswith("-000012")
    assert "/sampler_weights/" in last["sampler_path"]
    assert [record.step for record in Checkpoints(tmp_path).records()] == [8, 12]


def test_the_cookbook_reads_a_record(tmp_path, service, batches):
    theirs = pytest.importorskip("tinker_cookbook.checkpoint_utils")
    trained(service, batches, tmp_path, Checkpoint(sampler=True))
    record = Checkpoints(tmp_path).latest()
    last = theirs.get_last_checkpoint(str(tmp_path), "sampler_path")
    assert (last.state_path, last.sampler_path, last.batch) == (record.path, record.sampler_path, 12)


def test_a_record_of_the_cookbook_gives_its_weights_and_is_not_resumed(tmp_path):
    theirs = [
        {"name": "000020", "batch": 20, "epoch": 0, "state_path": "tinker://a/weights/000020"},
        {
            "name": "final",
            "final": True,
            "state_path": "tinker://a/weights/final",
            "sampler_path": "tinker://a/s/final",
        },
    ]
    (tmp_path / "checkpoints.jsonl").write_text("".join(json.dumps(line) + "\n" for line in theirs))
    assert saved_paths(tmp_path) == [
        ("tinker://a/weights/000020", None),
        ("tinker://a/weights/final", "tinker://a/s/final"),
    ]
    with pytest.raises(CheckpointError, match=r"checkpoints.jsonl:1: a record of the Tinker Cookbook.*state_path"):
        Checkpoints(tmp_path).latest()


def test_the_last_record_has_sampler_weights_if_an_evaluation_of_its_boundary_ends_the_run(tmp_path, service, batches):
    values = iter([3.0, 2.0, 2.5, 2.5])
    evaluate = Evaluate("test", lambda client: background(lambda: {"nll": next(values)}), every=4)
    summary = trained(
        service, batches, tmp_path, evaluate, EarlyStop("test/nll", patience=1), Checkpoint(every=4, sampler="final")
    )
    assert summary.step == 8
    assert [record.sampler_path is not None for record in Checkpoints(tmp_path).records()] == [False, True]

import math

import pytest

from tinkerloop.callbacks import Best, Checkpoint, Evaluate, nll
from tinkerloop.errors import PlanError
from tinkerloop.loop import Callback, Checkpoints, Loop, Retain, Save


def due(callback, boundary, steps, tokens=0, final=None):
    asked = []
    for step in range(steps):
        if callback.on_boundary(boundary(step, tokens=step * tokens, final=step == final)) is not None:
            asked.append(step)
    return asked


def test_by_steps_and_at_the_end(boundary):
    assert due(Checkpoint(every=3), boundary, 9, final=8) == [3, 6, 8]


def test_by_tokens(boundary):
    assert due(Checkpoint(every_tokens=25), boundary, 9, tokens=10) == [3, 6]


def test_nan_is_never_best(record):
    callback = Checkpoint(every=1, keep_last=1, keep_best=Best("test/nll"))
    values = [math.nan, 3.0, math.nan, 1.0, 2.0]
    records = [record(step, **{"test/nll": value}) for step, value in enumerate(values)]
    assert callback.keep(records) == {3, 4}


def test_by_seconds(boundary):
    assert due(Checkpoint(every_seconds=1e-9), boundary, 3) == [1, 2]
    assert due(Checkpoint(every_seconds=1e9), boundary, 3) == []


def test_the_request_carries_the_life_and_the_sampler(boundary):
    callback = Checkpoint(every=1, ttl_seconds=3600, sampler=True)
    assert callback.on_boundary(boundary(1)) == Save(ttl_seconds=3600, sampler=True)


def test_all_records_are_kept_unless_asked(record):
    assert Checkpoint(every=1).on_save(record(1)) is None


def test_the_newest_are_kept(record):
    assert Checkpoint(every=1, keep_last=2).keep([record(step) for step in range(1, 6)]) == {4, 5}


def test_milestones_are_kept_too(record):
    assert Checkpoint(every=1, keep_last=1, keep_every=2).keep([record(step) for step in range(1, 6)]) == {2, 4, 5}


@pytest.mark.parametrize(("mode", "best"), [("min", 3), ("max", 1)])
def test_the_best_are_kept_too(record, mode, best):
    records = [record(step, **{"test/nll": value}) for step, value in ((1, 3.0), (2, 2.0), (3, 1.0), (4, 2.0))]
    callback = Checkpoint(every=1, keep_last=1, keep_best=Best("test/nll", mode=mode))
    assert callback.keep(records) == {best, 4}


def test_records_without_the_metric_are_not_best(record):
    callback = Checkpoint(every=1, keep_last=1, keep_best=Best("test/nll"))
    assert callback.keep([record(1), record(2, **{"test/nll": 9.0}), record(3)]) == {2, 3}


def test_what_is_not_kept_is_deleted_on_the_service_too(service, batches, tmp_path):
    checkpoints = Checkpoints(tmp_path, delete=service.delete)
    callbacks = [Evaluate("test", nll(batches[0]), every=1), Checkpoint(every=1, keep_last=2, sampler=True)]
    Loop(service.create_lora_training_client(), batches, callbacks=callbacks, checkpoints=checkpoints).run()
    records = checkpoints.records()
    assert [record.step for record in records] == [5, 6]
    assert set(service.checkpoints) == {path for record in records for path in (record.path, record.sampler_path)}


def test_what_has_expired_need_not_be_deleted(service, batches, tmp_path):
    def delete(path):
        service.delete(path)  # it expired in the meantime ...
        service.delete(path)  # ... and is asked for in vain

    checkpoints = Checkpoints(tmp_path, delete)
    client = service.create_lora_training_client()
    Loop(client, batches, callbacks=[Checkpoint(every=1, keep_last=2)], checkpoints=checkpoints).run()
    assert [record.step for record in checkpoints.records()] == [5, 6]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        *[
            ({name: value}, f"{name} must be a whole number of at least 1, got")
            for name in ("every", "keep_last", "keep_every", "ttl_seconds")
            for value in (0, -1, 10 / 3, math.nan, True)
        ],
        *[
            ({name: value}, f"{name} must be a finite number above 0, got")
            for name in ("every_tokens", "every_seconds")
            for value in (0, -1, math.nan, math.inf)
        ],
        ({"keep_last": 1, "keep_best": Best("x", keep=1.5)}, "keep of keep_best must be a whole number"),
        ({"keep_every": 5}, "set keep_last too"),
        ({"keep_last": 1, "keep_best": Best("x", mode="least")}, 'mode "min" or "max"'),
    ],
)
def test_contradictions_are_refused(options, says):
    with pytest.raises(PlanError, match=says):
        Checkpoint(**options)


def test_while_no_record_has_the_metric_all_are_kept_with_a_warning(service, batches, tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path)
    callbacks = [Checkpoint(every=1, keep_last=1, keep_best=Best("los"))]
    Loop(service.create_lora_training_client(), batches, callbacks=callbacks, checkpoints=checkpoints).run()
    assert [record.step for record in checkpoints.records()] == [1, 2, 3, 4, 5, 6]
    (message,) = [record.getMessage() for record in caplog.records]
    assert "no metric 'los'" in message
    assert "did you mean 'loss'" in message


def test_the_best_by_a_detached_evaluation_are_refused(service, batches):
    callbacks = [Evaluate("slow", nll(batches[0]), detached=True), Checkpoint(keep_last=1, keep_best=Best("slow/nll"))]
    with pytest.raises(PlanError, match="a metric of a detached evaluation"):
        Loop(service.create_lora_training_client(), batches, callbacks=callbacks)


class Rolling(Checkpoint):
    pass


@pytest.mark.parametrize(
    ("sparse", "kept"), [(Checkpoint(3), [3, 5, 6]), (Checkpoint(2, keep_last=2), [4, 5, 6])], ids=["all", "two"]
)
def test_two_checkpoint_callbacks_keep_the_union_of_what_each_keeps(service, batches, tmp_path, sparse, kept):
    checkpoints = Checkpoints(tmp_path)
    callbacks = [sparse, Rolling(1, keep_last=2)]
    Loop(service.create_lora_training_client(), batches, callbacks=callbacks, checkpoints=checkpoints).run()
    assert [record.step for record in checkpoints.records()] == kept


def test_a_callback_that_saves_nothing_may_delete_what_others_saved(service, batches, tmp_path):
    class Newest(Callback):
        def on_save(self, record):
            return Retain(lambda records: [])

    checkpoints = Checkpoints(tmp_path)
    Loop(
        service.create_lora_training_client(), batches, callbacks=[Checkpoint(1), Newest()], checkpoints=checkpoints
    ).run()
    assert [record.step for record in checkpoints.records()] == [6]

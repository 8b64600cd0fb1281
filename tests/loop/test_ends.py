"""What is done at the end of a run is done at every end, and once."""

import json
from dataclasses import replace

import pytest

from tinkerloop.callbacks import Checkpoint, Evaluate, nll
from tinkerloop.loop import Callback, Checkpoints, Loop, Save, Stop, open_training_client
from tinkerloop.testing import OrderedClient


class StopAfter(Callback):
    """Stops the run when the result of a step is delivered."""

    def __init__(self, step):
        self._step = step

    def on_step(self, result):
        return Stop("enough") if result.step == self._step else None


class SaveAt(Callback):
    """Saves at one boundary, and with another lifetime at the end."""

    def __init__(self, step, first, last):
        self._step, self._first, self._last = step, first, last

    def on_boundary(self, boundary):
        if boundary.final:
            return self._last
        return self._first if boundary.step == self._step else None


@pytest.fixture
def lifetimes(monkeypatch):
    """The lifetime of each checkpoint that was saved, by its path."""
    seen = {}

    def watch(method):
        save = getattr(OrderedClient, method)

        def watched(self, name, ttl_seconds=None, **options):
            future = save(self, name, ttl_seconds, **options)
            seen[future.result().path] = ttl_seconds
            return future

        monkeypatch.setattr(OrderedClient, method, watched)

    watch("save_state")
    watch("save_weights_for_sampler")
    return seen


def stopped_while_recording(service, batches, folder, *callbacks):
    """Return the record of a run that is stopped at boundary 5, by a result that arrives while it is being saved."""
    checkpoints = Checkpoints(folder)
    client = service.create_lora_training_client()
    loop = Loop(client, batches, callbacks=[*callbacks, StopAfter(4)], checkpoints=checkpoints)
    assert loop.run().step == 5
    return checkpoints.latest()


def test_the_last_checkpoint_has_the_lifetime_of_the_last_save_if_a_stop_comes_during_a_rolling_save(
    service, batches, tmp_path, lifetimes
):
    rolling = Checkpoint(5, ttl_seconds=7200)
    rolling.name = "rolling"
    record = stopped_while_recording(service, batches, tmp_path, Checkpoint(20, sampler="final"), rolling)
    assert (lifetimes[record.path], lifetimes[record.sampler_path]) == (None, None)


def test_weights_for_sampling_that_were_saved_for_too_short_are_saved_again(service, batches, tmp_path, lifetimes):
    saving = SaveAt(5, Save(60, sampler=True), Save(3600))
    record = stopped_while_recording(service, batches, tmp_path, saving)
    assert (lifetimes[record.path], lifetimes[record.sampler_path]) == (3600, 3600)


def test_a_shorter_lifetime_at_the_end_saves_nothing_again(service, batches, tmp_path, lifetimes):
    record = stopped_while_recording(service, batches, tmp_path, SaveAt(5, Save(3600), Save(60)))
    assert lifetimes == {record.path: 3600}
    assert [operation[0] for operation in service.operations].count("save_state") == 1


class KilledError(Exception):
    pass


class KillAfter(Callback):
    def __init__(self, step):
        self._step = step

    def on_step(self, result):
        if result.step == self._step:
            raise KilledError


class StopAtStart(Callback):
    def on_start(self, step, steps):
        return Stop("enough") if step else None


def resume(service, batches, checkpoints, *callbacks, steps):
    """Run one process: from the newest record to the end."""
    record = checkpoints.latest()
    client = open_training_client(service, record, base_model="unigram")
    rows = []
    sinks = [lambda step, row: rows.append((step, dict(row)))]
    options = {"steps": steps, "checkpoints": checkpoints, "record": record, "sinks": sinks}
    Loop(client, batches, callbacks=callbacks, **options).run()
    return rows


def usual(batches, **options):
    return [Evaluate("test", nll(batches[0])), Checkpoint(3, **{"sampler": "final", **options})]


def killed_after_a_record_of_step_3(service, batches, checkpoints, *callbacks):
    with pytest.raises(KilledError):
        resume(service, batches, checkpoints, *callbacks, KillAfter(3), steps=6)
    assert (checkpoints.latest().step, checkpoints.latest().sampler_path) == (3, None)


def evaluated(rows):
    return [step for step, row in rows if "test/nll" in row]


@pytest.mark.parametrize(("steps", "ending"), [(3, []), (6, [StopAtStart])], ids=["fewer-steps", "stop-at-start"])
def test_a_run_that_is_resumed_only_to_end_does_what_is_done_at_the_end(service, batches, tmp_path, steps, ending):
    checkpoints = Checkpoints(tmp_path)
    killed_after_a_record_of_step_3(service, batches, checkpoints, *usual(batches))
    callbacks = [*usual(batches), *(make() for make in ending)]
    assert evaluated(resume(service, batches, checkpoints, *callbacks, steps=steps)) == [3]
    (record,) = checkpoints.records()
    assert record.sampler_path in service.checkpoints
    assert "test/nll" in record.metrics


def test_a_run_that_is_resumed_only_to_end_has_the_record_of_one_that_was_not_killed(service, batches, tmp_path):
    killed, whole = Checkpoints(tmp_path / "killed"), Checkpoints(tmp_path / "whole")
    killed_after_a_record_of_step_3(service, batches, killed, *usual(batches))
    resume(service, batches, killed, *usual(batches), steps=3)
    resume(service, batches, whole, *usual(batches), steps=3)
    places = {"path": "", "sampler_path": "", "run": "", "folder": ""}
    (one,), (other,) = killed.records(), whole.records()
    assert replace(one, **places) == replace(other, **places)


@pytest.mark.parametrize("kill", [True, False])
def test_a_run_that_has_ended_ends_again_without_a_request_to_the_service(service, batches, tmp_path, kill):
    checkpoints = Checkpoints(tmp_path)
    if kill:
        killed_after_a_record_of_step_3(service, batches, checkpoints, *usual(batches))
    resume(service, batches, checkpoints, *usual(batches), steps=3)
    records, operations = checkpoints.records(), list(service.operations)
    assert resume(service, batches, checkpoints, *usual(batches), steps=3) == []
    assert (checkpoints.records(), service.operations) == (records, operations)


def test_a_record_of_an_older_version_counts_as_the_end_of_its_run(service, batches, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    killed_after_a_record_of_step_3(service, batches, checkpoints, *usual(batches))
    lines = [json.loads(line) for line in checkpoints.file.read_text().splitlines()]
    checkpoints.file.write_text("".join(json.dumps(without(line, "final", "ttl_seconds")) + "\n" for line in lines))
    assert evaluated(resume(service, batches, checkpoints, *usual(batches), steps=3)) == []


def without(line, *names):
    return {name: value for name, value in line.items() if name not in names}


def test_a_boundary_that_was_evaluated_before_a_kill_is_not_evaluated_again_at_the_end(service, batches, tmp_path):
    checkpoints = Checkpoints(tmp_path)

    def callbacks():
        return [Evaluate("test", nll(batches[0]), every=3), Checkpoint(3)]

    killed_after_a_record_of_step_3(service, batches, checkpoints, *callbacks())
    assert evaluated(resume(service, batches, checkpoints, *callbacks(), steps=3)) == []


def test_the_checkpoint_of_a_replaced_record_is_deleted(service, batches, tmp_path):
    checkpoints = Checkpoints(tmp_path, delete=service.delete)
    killed_after_a_record_of_step_3(service, batches, checkpoints, *usual(batches))
    resume(service, batches, checkpoints, *usual(batches), steps=3)
    (record,) = checkpoints.records()
    assert set(service.checkpoints) == {record.path, record.sampler_path}


def test_a_record_that_replaces_another_has_at_least_the_same_lifetime_and_weights(
    service, batches, tmp_path, lifetimes
):
    checkpoints = Checkpoints(tmp_path)

    def saving():
        return SaveAt(3, Save(3600, sampler=True), Save(60))

    with pytest.raises(KilledError):
        resume(service, batches, checkpoints, saving(), KillAfter(3), steps=6)
    resume(service, batches, checkpoints, saving(), steps=3)
    record = checkpoints.latest()
    assert (record.final, lifetimes[record.path], lifetimes[record.sampler_path]) == (True, 3600, 3600)


def test_a_stop_without_save_at_the_start_leaves_the_record(service, batches, tmp_path):
    class StopUnsaved(Callback):
        def on_start(self, step, steps):
            return Stop("enough", save=False)

    checkpoints = Checkpoints(tmp_path)
    killed_after_a_record_of_step_3(service, batches, checkpoints, *usual(batches))
    records = checkpoints.records()
    assert evaluated(resume(service, batches, checkpoints, *usual(batches), StopUnsaved(), steps=6)) == [3]
    assert checkpoints.records() == records
    assert [name for name, *_ in service.operations].count("save_state") == 1

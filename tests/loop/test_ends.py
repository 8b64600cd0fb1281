"""What is done at the end of a run is done at every end, and once."""

import pytest

from tinkerloop.callbacks import Checkpoint
from tinkerloop.loop import Callback, Checkpoints, Loop, Save, Stop
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

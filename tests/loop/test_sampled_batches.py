"""Batches that are sampled from the weights in training know the boundaries of the loop."""

import pytest

from tinkerloop.callbacks import Checkpoint, GradientAccumulation
from tinkerloop.data import mix, prefetch
from tinkerloop.errors import DataError
from tinkerloop.loop import Checkpoints, Loop


class Told:
    """Batches that note the calls of the loop in order, beside the number of records written so far."""

    def __init__(self, batches, checkpoints):
        self.batches, self.checkpoints, self.next, self.calls = batches, checkpoints, 0, []

    def __next__(self):
        self.next += 1
        self.calls.append(f"next {self.next - 1}")
        return self.batches[self.next - 1]

    @property
    def cursor(self):
        return {"next": self.next}

    def seek(self, cursor):
        self.next = cursor["next"]

    def at_boundary(self, step):
        self.calls.append(f"boundary {step}")

    def settle(self, cursor):
        self.calls.append(f"settle {cursor['next']} before record {len(self.checkpoints.records())}")


def calls(service, batches, folder, *callbacks, steps):
    checkpoints = Checkpoints(folder)
    told = Told(batches, checkpoints)
    client = service.create_lora_training_client()
    Loop(client, told, steps=steps, callbacks=callbacks, checkpoints=checkpoints).run()
    return told.calls


def test_they_are_told_each_boundary_first_and_each_record_before_it_is_written(service, batches, tmp_path):
    assert calls(service, batches, tmp_path, Checkpoint(every=1), steps=2) == [
        "boundary 0",
        "next 0",
        "boundary 1",
        "next 1",
        "settle 1 before record 0",
        "boundary 2",
        "settle 2 before record 1",
    ]


def test_batches_that_are_accumulated_share_a_boundary(service, batches, tmp_path):
    told = calls(service, batches, tmp_path, GradientAccumulation(2), steps=1)
    assert told[:4] == ["boundary 0", "next 0", "next 1", "boundary 1"]


@pytest.mark.parametrize("wrapped", [prefetch, lambda batches: mix({"a": batches}, {"a": 1.0}, 2)])
def test_what_does_not_pass_boundaries_on_refuses_them(wrapped, batches, tmp_path):
    with pytest.raises(DataError, match=r"cannot take Told.*pass it to the loop itself"):
        wrapped(Told(batches, Checkpoints(tmp_path)))

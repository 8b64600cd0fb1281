"""What one loop has used is refused by the next one, unless its position is set again."""

from dataclasses import dataclass, field

import pytest

from tinkerloop import Callback
from tinkerloop.callbacks import (
    Budget,
    Checkpoint,
    GradientAccumulation,
    LRSchedule,
    Preempt,
    StopOnNonFinite,
    Timing,
)
from tinkerloop.data import batches as row_batches
from tinkerloop.data import mix, prefetch
from tinkerloop.datum import make_datum
from tinkerloop.errors import PlanError
from tinkerloop.loop import Checkpoints, Loop, open_training_client
from tinkerloop.loop.schedules import constant


@pytest.fixture
def loop(service):
    return lambda data, **options: Loop(service.create_lora_training_client(), data, **options)


@pytest.mark.parametrize(
    "callback",
    [Budget(tokens=9), Checkpoint(every_tokens=100), Preempt(), Timing()],
    ids=lambda callback: type(callback).__name__,
)
def test_a_callback_that_a_loop_has_used_is_refused(loop, batches, callback):
    options = {"checkpoints": None, "steps": 0, "callbacks": [callback]}
    loop(batches, **options).run()
    with pytest.raises(PlanError, match=f"already used by another loop.* create a new {type(callback).__name__}"):
        loop(batches, **options)


class Watching(Callback):
    """A callback without attributes."""


@pytest.mark.parametrize(
    "callback",
    [LRSchedule(constant(1e-3)), GradientAccumulation(2), StopOnNonFinite(), Watching()],
    ids=lambda callback: type(callback).__name__,
)
def test_a_callback_that_carries_nothing_is_taken_by_several_loops(loop, batches, callback):
    ends = [loop(batches, steps=2, callbacks=[callback]).run() for _ in range(2)]
    assert [end.step for end in ends] == [2, 2]


def test_a_callback_with_attributes_is_taken_again_only_if_it_is_reusable(loop, batches):
    callback = Watching()
    callback.seen = []
    loop(batches, steps=1, callbacks=[callback]).run()
    with pytest.raises(PlanError, match="set `reusable` if nothing in it changes"):
        loop(batches, steps=1, callbacks=[callback])
    callback.reusable = True
    assert loop(batches, steps=1, callbacks=[callback]).run().step == 1


def test_a_callback_of_two_loops_is_refused_by_the_one_that_runs_second(loop, batches):
    callbacks = [Budget(tokens=9)]
    first, second = (loop(batches, steps=1, callbacks=callbacks) for _ in range(2))
    first.run()
    with pytest.raises(PlanError, match="already used by another loop"):
        second.run()


def test_batches_that_a_loop_has_used_are_refused_by_a_new_run(loop, datums):
    data = row_batches(datums, 4)
    loop(data, steps=2).run()
    with pytest.raises(PlanError, match=r"go on where it stopped, at .*'row': 8"):
        loop(data)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (lambda data: data, prefetch),
        (prefetch, lambda data: data),
        (prefetch, prefetch),
        (lambda data: mix({"a": data}, {"a": 1.0}, 4), lambda data: prefetch(mix({"a": data}, {"a": 1.0}, 4))),
    ],
    ids=["then prefetched", "first prefetched", "both prefetched", "mixed"],
)
def test_batches_that_a_loop_has_used_are_also_refused_inside_others(loop, datums, first, second):
    data = row_batches(datums, 1)
    loop(first(data), steps=2).run()
    with pytest.raises(PlanError, match="another loop has used these batches"):
        loop(second(data))


def test_batches_of_two_loops_are_refused_by_the_one_that_runs_second(loop, datums):
    data = row_batches(datums, 4)
    first, second = loop(data, steps=2), loop(data, steps=2)
    first.run()
    with pytest.raises(PlanError, match="another loop has used these batches"):
        second.run()


def test_used_batches_can_be_resumed_because_the_record_sets_their_position(service, loop, datums, tmp_path):
    data, checkpoints = row_batches(datums, 4), Checkpoints(tmp_path)
    loop(data, steps=2, checkpoints=checkpoints).run()
    record = checkpoints.latest()
    client = open_training_client(service, record)
    assert Loop(client, data, steps=5, checkpoints=checkpoints, record=record).run().step == 5
    assert data.cursor["row"] == 20


@dataclass
class Seen:
    steps: list = field(default_factory=list)


class Remembering(Callback):
    def __init__(self):
        self.state = Seen()

    def on_step(self, result):
        self.state.steps.append(result.step)


class Counted:
    """Batches of a user, whose cursor is changed in place."""

    def __init__(self, batches):
        self._batches, self.cursor = batches, {"next": 0}

    def __next__(self):
        if self.cursor["next"] == len(self._batches):
            raise StopIteration
        self.cursor["next"] += 1
        return self._batches[self.cursor["next"] - 1]

    def seek(self, cursor):
        self.cursor = cursor


def test_a_record_can_be_resumed_from_twice(service, batches, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    client = open_training_client(service, None, base_model="unigram")
    Loop(client, Counted(batches), steps=2, callbacks=[Remembering()], checkpoints=checkpoints).run()
    record = checkpoints.latest()
    for _ in range(2):
        again, client = Remembering(), open_training_client(service, record)
        Loop(client, Counted(batches), steps=4, callbacks=[again], record=record).run()
        assert again.state.steps == [0, 1, 2, 3]
    assert (record.callbacks["remembering"], record.cursor) == ({"steps": [0, 1]}, {"next": 2})


def test_a_list_of_batches_starts_anew_in_each_loop(loop, batches):
    assert [loop(batches, steps=2).run().step for _ in range(2)] == [2, 2]


@pytest.fixture
def resume(service, batches, tmp_path):
    """Resume a run that has trained on 3 batches of a list, with another list."""
    checkpoints = Checkpoints(tmp_path)
    Loop(service.create_lora_training_client(), batches, steps=3, checkpoints=checkpoints).run()
    record = checkpoints.latest()
    return lambda data: Loop(open_training_client(service, record), data, checkpoints=checkpoints, record=record).run()


OTHER = [make_datum([9, 9, 9], [1, 1, 1])] * 4


@pytest.mark.parametrize(
    "change",
    [
        lambda batches: [OTHER] * 12,
        lambda batches: [OTHER, *batches[1:]],
        lambda batches: [*batches[:2], OTHER, *batches[3:]],
        lambda batches: [*batches[:2], batches[2][:3], *batches[3:]],
        lambda batches: batches[::-1],
    ],
    ids=["another list", "another first", "another last", "a shorter last", "another order"],
)
def test_a_list_of_other_batches_is_refused_on_a_resume(resume, batches, change):
    with pytest.raises(PlanError, match="written by a run on other batches"):
        resume(change(batches))


def test_a_list_may_have_more_batches_on_a_resume(resume, batches):
    assert resume([*batches, *batches]).step == 24


def test_the_cursor_of_an_older_version_can_be_resumed(batches):
    from tinkerloop.loop.positioned_batches import as_batches

    data = as_batches(batches, seekable=True)
    data.seek(3)
    assert next(data) == batches[3]

import math

import pytest

from tinkerloop.callbacks import GradientAccumulation
from tinkerloop.errors import CheckpointError, PlanError
from tinkerloop.loop import Accumulate, Checkpoints, Loop, open_training_client


def test_it_asks_for_batches_at_the_start():
    assert GradientAccumulation(3).on_start(0, None) == Accumulate(3)


def test_micro_batches_have_at_most_that_many_datums(plan):
    split = GradientAccumulation(micro_batch=4).on_plan(plan)
    assert [len(one.datums) for one in split.micro_batches] == [4, 2]


def test_a_token_budget_packs_datums_in_order(plan):
    split = GradientAccumulation(micro_tokens=12).on_plan(plan)
    lengths = [[datum.model_input.length for datum in one.datums] for one in split.micro_batches]
    assert lengths == [[3, 4, 5], [6], [7, 3]]


def test_a_datum_over_the_budget_gets_a_call_of_its_own(plan):
    split = GradientAccumulation(micro_tokens=1).on_plan(plan)
    assert [len(one.datums) for one in split.micro_batches] == [1] * 6


def test_splitting_keeps_every_datum_in_order(plan):
    assert GradientAccumulation(micro_batch=4, micro_tokens=9).on_plan(plan).datums == plan.datums


@pytest.mark.parametrize("name", ["batches", "micro_batch", "micro_tokens"])
@pytest.mark.parametrize("value", [0, -1, math.nan])
def test_sizes_below_one_are_refused(name, value):
    with pytest.raises(PlanError, match=f"{name} must be a"):
        GradientAccumulation(**{name: value})


@pytest.mark.parametrize("name", ["batches", "micro_batch"])
def test_a_fraction_of_a_batch_is_refused(name):
    with pytest.raises(PlanError, match=f"{name} must be a whole number of at least 1, got 1.5"):
        GradientAccumulation(**{name: 1.5})


def resumed(service, batches, checkpoints, *callbacks, steps):
    record = checkpoints.latest()
    client = open_training_client(service, record, base_model="unigram")
    return Loop(client, batches, steps=steps, callbacks=callbacks, checkpoints=checkpoints, record=record)


def test_a_run_cannot_be_resumed_with_another_number_of_batches(service, batches, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    resumed(service, batches, checkpoints, GradientAccumulation(1), steps=4).run()
    with pytest.raises(CheckpointError, match="trained with batches=1 in each step, got batches=2"):
        resumed(service, batches, checkpoints, GradientAccumulation(2), steps=None)


def test_a_run_is_resumed_with_the_same_number_of_batches_and_other_micro_batches(service, batches, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    resumed(service, batches, checkpoints, GradientAccumulation(2), steps=1).run()
    assert resumed(service, batches, checkpoints, GradientAccumulation(2, micro_batch=3), steps=None).run().step == 3


def test_a_record_without_the_number_of_batches_is_accepted(service, batches, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    resumed(service, batches, checkpoints, steps=1).run()
    assert resumed(service, batches, checkpoints, GradientAccumulation(2), steps=2).run().step == 2

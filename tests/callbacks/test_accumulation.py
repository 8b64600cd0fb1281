import pytest

from tinkerloop.callbacks import GradientAccumulation
from tinkerloop.errors import PlanError
from tinkerloop.loop import Accumulate


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


@pytest.mark.parametrize("options", [{"batches": 0}, {"micro_batch": 0}, {"micro_tokens": -1}])
def test_sizes_below_one_are_refused(options):
    with pytest.raises(PlanError, match="must be >= 1"):
        GradientAccumulation(**options)

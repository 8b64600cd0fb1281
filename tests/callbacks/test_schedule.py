import math

import pytest

from tinkerloop.callbacks import LRSchedule
from tinkerloop.errors import PlanError
from tinkerloop.loop import Loop
from tinkerloop.loop.schedules import constant, linear


def test_the_learning_rate_follows_the_step(plan):
    assert LRSchedule(linear(1.0, 0.0, 10)).on_plan(plan).optim.learning_rate == pytest.approx(0.3)


def test_other_optimizer_parameters_follow_too(plan):
    optim = LRSchedule(weight_decay=constant(0.1), beta2=linear(0.9, 1.0, 10)).on_plan(plan).optim
    assert (optim.learning_rate, optim.weight_decay, optim.beta2) == (0.1, 0.1, pytest.approx(0.97))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["learning_rate", "beta2"])
def test_a_value_that_is_not_finite_ends_the_run_before_its_step(service, batches, name, value):
    schedule = LRSchedule(**{name: lambda step: value if step == 1 else 0.5})
    with pytest.raises(PlanError, match=f"{name} is {value} at step 1"):
        Loop(service.create_lora_training_client(), batches, callbacks=[schedule]).run()


def test_an_unknown_parameter_is_refused(plan):
    with pytest.raises(PlanError, match="unknown optimizer parameters: momentum"):
        LRSchedule(momentum=constant(0.9)).on_plan(plan)

import doctest
import math

import pytest

import tinkerloop.loop.schedules as schedules
from tinkerloop.errors import PlanError
from tinkerloop.loop.schedules import (
    constant,
    cosine,
    exponential,
    inverse_sqrt,
    join,
    linear,
    piecewise,
    polynomial,
    scaled,
    warmup,
    wsd,
)


def test_the_numbers_in_the_docstrings_are_right():
    assert doctest.testmod(schedules).failed == 0


@pytest.mark.parametrize("make", [linear, cosine, polynomial])
def test_from_start_to_end_and_constant_past_the_horizon(make):
    schedule = make(3.0, 1.0, 10)
    assert [schedule(step) for step in (0, 10, 11, 1000)] == pytest.approx([3.0, 1.0, 1.0, 1.0])


def test_cosine_falls_slowly_then_fast_then_slowly():
    schedule = cosine(1.0, 0.0, 4)
    assert [schedule(s) for s in range(5)] == pytest.approx([(1 + math.cos(math.pi * s / 4)) / 2 for s in range(5)])


def test_warmup_reaches_the_peak_on_its_last_step_and_then_starts_the_rest_at_zero():
    schedule = warmup(5, linear(2.0, 0.0, 10))
    assert [schedule(step) for step in range(7)] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0, 2.0, 1.8])


def test_no_warmup_is_the_schedule_itself():
    schedule = linear(1.0, 0.0, 3)
    assert warmup(0, schedule) is schedule


def test_each_joined_part_counts_from_its_own_zero():
    schedule = join([(2, linear(1.0, 0.0, 2)), (1, linear(5.0, 0.0, 9))], linear(3.0, 0.0, 3))
    assert [schedule(step) for step in range(6)] == pytest.approx([1.0, 0.5, 5.0, 3.0, 2.0, 1.0])


def test_the_parts_of_a_joined_schedule_may_come_from_an_iterator():
    parts = [(2, constant(1.0)), (1, constant(2.0))]
    schedule = join(iter(parts), constant(9.0))
    assert [schedule(step) for step in (0, 1, 2, 3, 0)] == [1.0, 1.0, 2.0, 9.0, 1.0]


def test_a_joined_schedule_does_not_change_with_the_list_it_was_made_from():
    parts = [(2, constant(1.0))]
    schedule = join(parts, constant(9.0))
    parts.clear()
    assert schedule(0) == 1.0


@pytest.mark.parametrize(
    "make",
    [
        lambda: join([(2, 1.0)], constant(0.0)),
        lambda: join([(2, constant(1.0))], 0.0),
        lambda: warmup(0, 1e-3),
        lambda: warmup(3, None),
        lambda: scaled(1e-3, 2.0),
    ],
)
def test_a_number_in_the_place_of_a_schedule_is_refused(make):
    with pytest.raises(PlanError, match=r"must be a schedule, .* pass constant\(value\)"):
        make()


def test_wsd_stays_at_its_peak():
    schedule = wsd(2.0, 0.5, warmup_steps=4, stable_steps=10, decay_steps=6)
    assert {schedule(step) for step in range(3, 15)} == {2.0}
    assert schedule(20) == 0.5


@pytest.mark.parametrize(
    "make",
    [
        lambda: linear(1.0, 0.0, 0),
        lambda: linear(1.0, math.nan, 3),
        lambda: cosine(math.inf, 0.0, 3),
        lambda: constant(math.nan),
        lambda: scaled(constant(1.0), math.nan),
        lambda: cosine(1.0, 0.0, math.nan),
        lambda: warmup(2.5, constant(1.0)),
        lambda: piecewise([(1.5, 1.0)], 0.0),
        lambda: wsd(1.0, 0.0, warmup_steps=1, stable_steps=0.5, decay_steps=2),
        lambda: cosine(1.0, 0.0, -1),
        lambda: polynomial(1.0, 0.0, 5, power=0),
        lambda: exponential(1.0, 0.0, 5),
        lambda: inverse_sqrt(1.0, 0),
        lambda: warmup(-1, linear(1.0, 0.0, 3)),
    ],
)
def test_impossible_horizons_are_refused(make):
    with pytest.raises(ValueError, match="must be"):
        make()

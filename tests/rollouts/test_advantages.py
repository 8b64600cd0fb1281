"""Advantages against formulas written a second time, in plain Python."""

import math
from statistics import fmean, pstdev

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinkerloop.errors import PlanError
from tinkerloop.renderers import ParseTermination
from tinkerloop.rollouts.advantages import (
    centered,
    compute_advantages,
    leave_one_out,
    no_baseline,
    per_turn,
    reference_kl,
    reverse_kl,
    standardized,
)
from tinkerloop.rollouts.trajectory import End, Group, SampledSpan, Trajectory, TrajectorySegment, Turn

REWARDS = st.floats(-100, 100, width=32)


def trajectory(rewards, logprobs=(-1.0,), reference=None):
    """One trajectory with a turn per reward; all its sampled tokens belong to turn 0 but the last one, of the last."""
    last = len(logprobs) + 1
    segment = TrajectorySegment(
        tokens=(1, *range(2, last + 1)),
        sampled=(SampledSpan(1, last - 1, 0), SampledSpan(last - 1, last, len(rewards) - 1)),
        logprobs=tuple(logprobs),
        reference_logprobs=reference,
    )
    turns = tuple(Turn(reward, ParseTermination.STOP_SEQUENCE) for reward in rewards)
    return Trajectory((segment,), turns, (), End.DONE, 0, 0)


def group(*trajectories):
    return Group(0, 0, tuple(trajectories))


def scored(rewards):
    return group(*(trajectory([reward]) for reward in rewards))


@given(st.lists(REWARDS, min_size=2, max_size=6))
def test_the_baselines_are_the_mean_the_mean_of_the_others_and_none(rewards):
    others = [fmean(rewards[:i] + rewards[i + 1 :]) for i in range(len(rewards))]
    near = {"rtol": 1e-9, "atol": 1e-9}
    np.testing.assert_allclose(centered(scored(rewards)), [r - fmean(rewards) for r in rewards], **near)
    np.testing.assert_allclose(
        leave_one_out(scored(rewards)), [r - o for r, o in zip(rewards, others, strict=True)], **near
    )
    assert no_baseline(scored(rewards)) == rewards


@given(st.lists(REWARDS, min_size=1, max_size=6))
def test_standardized_advantages_are_in_units_of_the_standard_deviation(rewards):
    expected = [(r - fmean(rewards)) / (pstdev(rewards) + 0.5) for r in rewards]
    np.testing.assert_allclose(standardized(scored(rewards), eps=0.5), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("advantages", [centered, standardized, leave_one_out, per_turn()])
def test_equal_rewards_give_exactly_zero(advantages):
    assert not np.any(advantages(scored([0.1, 0.1, 0.1])))


@given(st.lists(st.lists(REWARDS, min_size=1, max_size=4), min_size=1, max_size=4), st.sampled_from([0.0, 0.5, 1.0]))
def test_a_turn_gets_its_rewards_to_go_minus_the_mean_of_the_group_at_this_turn(rewards, discount):
    to_go = [
        [math.fsum(discount ** (u - t) * one[u] for u in range(t, len(one))) for t in range(len(one))]
        for one in rewards
    ]
    mean = [fmean(one[t] for one in to_go if len(one) > t) for t in range(4) if any(len(one) > t for one in to_go)]
    sampled = group(*map(trajectory, rewards))
    for got, expected in zip(per_turn(discount=discount)(sampled), to_go, strict=True):
        np.testing.assert_allclose(got, [value - mean[t] for t, value in enumerate(expected)], rtol=1e-9, atol=1e-9)
    for got, expected in zip(per_turn(discount=discount, baseline="none")(sampled), to_go, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


def test_a_reference_penalises_each_token_that_it_finds_less_likely():
    sampled = group(trajectory([1.0, 2.0], [-1.0, -2.0, -0.5], (-1.5, -1.0, -0.5)), trajectory([0.0], [-3.0], (-3.5,)))
    first, second = reference_kl(0.1)(sampled)
    np.testing.assert_allclose(first, [1.5 - 0.05, 1.5 + 0.1, 1.5])
    np.testing.assert_allclose(second, [-1.5 - 0.05])
    first, second = reference_kl(0.1, per_turn(baseline="none"))(sampled)
    np.testing.assert_allclose(first, [3.0 - 0.05, 3.0 + 0.1, 2.0])


def test_a_teacher_rewards_each_token_that_it_finds_more_likely():
    sampled = group(trajectory([9.0], [-1.0, -2.0], (-1.5, -1.0)))
    np.testing.assert_allclose(reverse_kl(sampled), [[-0.5, 1.0]])


def test_log_probabilities_of_a_reference_are_required_where_they_are_used():
    for advantages in (reverse_kl, reference_kl(0.1)):
        with pytest.raises(PlanError, match="pass reference=SAMPLING_CLIENT to Rollouts"):
            advantages(scored([1.0, 0.0]))


@pytest.mark.parametrize(
    "advantages, message",
    [
        (lambda group: [1.0], "one entry for each of the 2 trajectories of a group, got 1"),
        (lambda group: [1.0, math.nan], "finite numbers, got nan for trajectory 1"),
        (lambda group: centered, "returned a function"),
        (lambda group: {0: 1.0, 1: -1.0}, "must return a list with the advantage of each trajectory"),
        (lambda group: {1.0, -1.0}, "must return a list with the advantage of each trajectory"),
        (lambda group: None, "must return a list with the advantage of each trajectory"),
        (lambda group: [1j, 1.0], "must return finite numbers, got 1j for trajectory 0"),
        (leave_one_out, "needs at least 2 trajectories"),
    ],
)
def test_advantages_that_cannot_be_trained_on_are_refused(advantages, message):
    sampled = scored([1.0]) if advantages is leave_one_out else scored([1.0, 2.0])
    with pytest.raises(PlanError, match=message):
        compute_advantages(advantages, sampled)


@pytest.mark.parametrize(
    "create",
    [
        *(lambda value=value: per_turn(discount=value) for value in (-0.1, 1.1, math.nan, "1")),
        *(lambda value=value: reference_kl(value) for value in (-0.1, math.nan, math.inf)),
        *(lambda value=value: standardized(scored([1.0, 2.0]), eps=value) for value in (-1, math.nan, None)),
        lambda: per_turn(baseline="mean"),
        lambda: reference_kl(0.1, "centered"),
    ],
)
def test_options_of_advantages_are_checked(create):
    with pytest.raises(PlanError, match=r"(eps|discount|baseline|beta|base) must be"):
        create()


def test_equal_rewards_are_standardized_to_0_without_an_eps():
    assert standardized(scored([0.3, 0.3]), eps=0) == [0, 0]

"""Policy datums: the shift by one, the mask, the advantages and the weights."""

from __future__ import annotations

import numpy as np
import pytest

from tinkerloop.datum import LOSS_INPUTS, POLICY_LOSSES, check_datum, fold_weights
from tinkerloop.renderers import ParseTermination
from tinkerloop.rollouts import (
    End,
    Group,
    SampledSpan,
    Trajectory,
    TrajectorySegment,
    Turn,
    group_datums,
    policy_datum,
    policy_datums,
)


def arrays(datum):
    return {name: tensor.to_numpy().tolist() for name, tensor in datum.loss_fn_inputs.items()}


def trajectory(*segments, turns):
    answers = tuple(Turn(0.0, ParseTermination.STOP_SEQUENCE) for _ in range(turns))
    return Trajectory(segments, answers, (), End.DONE, boundary=0, seed=0)


def segment(length, *spans, **fields):
    sampled = tuple(SampledSpan(*span) for span in spans)
    count = sum(span.stop - span.start for span in sampled)
    return TrajectorySegment(tuple(range(1, length + 1)), sampled, tuple(-np.arange(1.0, count + 1)), **fields)


TWO_TURNS = trajectory(segment(7, (2, 3, 0), (5, 7, 1)), turns=2)


def test_position_i_has_the_values_of_token_i_plus_one():
    datum = policy_datum([5, 6, 7, 8], [False, False, True, True], [-1, -2], [3, 4])
    assert datum.model_input.to_ints() == [5, 6, 7]
    assert arrays(datum) == {
        "target_tokens": [6, 7, 8],
        "logprobs": [0, -1, -2],
        "advantages": [0, 3, 4],
        "weights": [0, 1, 1],
    }


@pytest.mark.parametrize("loss_fn", POLICY_LOSSES)
def test_a_folded_datum_has_exactly_the_inputs_of_its_loss(loss_fn):
    datum = policy_datum([5, 6, 7], [False, True, True], [-1, -2], 2.0, loss_fn=loss_fn, weight=0.25)
    check_datum(datum, loss_fn=loss_fn)
    folded = fold_weights(datum)
    assert set(folded.loss_fn_inputs) == set(LOSS_INPUTS[loss_fn])
    assert arrays(folded)["advantages"] == [0.5, 0.5]


def test_the_sequence_ratio_of_gspo_is_taken_over_the_sampled_tokens():
    (datum,) = policy_datums(TWO_TURNS, 1.0, loss_fn="gspo")
    assert arrays(datum)["sequence_ratio_mask"] == [0, 1, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("advantages", "spread"),
    [(2.0, [0, 2, 0, 0, 2, 2]), ([2, 3], [0, 2, 0, 0, 3, 3]), ([2, 3, 4], [0, 2, 0, 0, 3, 4])],
    ids=["one number", "one per turn", "one per sampled token"],
)
def test_advantages_are_given_for_the_trajectory_its_turns_or_its_tokens(advantages, spread):
    (datum,) = policy_datums(TWO_TURNS, advantages)
    assert arrays(datum)["advantages"] == spread
    assert arrays(datum)["logprobs"] == [0, -1, 0, 0, -2, -3]


def test_each_segment_with_sampled_tokens_becomes_a_datum():
    cut = trajectory(segment(4, (2, 4, 0)), segment(6, (5, 6, 1)), segment(3), turns=2)
    first, second = policy_datums(cut, [2, 3])
    assert arrays(first)["advantages"] == [0, 2, 2]
    assert arrays(second)["advantages"] == [0, 0, 0, 0, 3]
    assert arrays(policy_datums(cut, [2, 3, 4])[1])["advantages"] == [0, 0, 0, 0, 4]


@pytest.mark.parametrize(
    ("weighting", "weights"), [("token", [1, 1, 1]), ("sequence", [1, 0.5, 0.5]), ("group", [1 / 3] * 3)]
)
def test_the_initial_weights_choose_the_unit_that_counts_equally(weighting, weights):
    group = Group(0, 0, (trajectory(segment(3, (2, 3, 0)), turns=1), trajectory(segment(4, (2, 4, 0)), turns=1)))
    datums = group_datums(group, [1.0, [2.0, 3.0]], weighting=weighting)
    given = [weight for datum in datums for weight in arrays(datum)["weights"] if weight]
    assert given == pytest.approx(weights)
    assert arrays(datums[1])["advantages"] == [0, 2, 3]

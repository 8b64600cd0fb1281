"""Policy datums: the shift by one, the mask, the advantages and the weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tinker

from tinkerloop.datum_checks import LOSS_INPUTS, POLICY_LOSSES, check_datum, fold_weights
from tinkerloop.errors import DatumError, ZeroWeightError
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


def test_images_keep_their_places():
    image = tinker.types.ImageChunk(data=b"png", format="png", expected_tokens=2)
    (datum,) = policy_datums(trajectory(segment(6, (4, 6, 0), images=((1, image),)), turns=1), 2.0)
    assert [chunk.length for chunk in datum.model_input.chunks] == [1, 2, 2]
    assert arrays(datum)["advantages"] == [0, 0, 0, 2, 2]
    with pytest.raises(DatumError, match="an image position cannot be a training target"):
        policy_datums(trajectory(segment(6, (2, 6, 0), images=((1, image),)), turns=1), 2.0)


TOKENS, SAMPLED, LOGPROBS = [5, 6, 7], [False, True, True], [-1.0, -2.0]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (
            {"sampled": [False, True]},
            r"sampled: must have one boolean per token .*\(3,\) bool, got \(2,\) bool",
        ),
        ({"sampled": [0, 1, 1]}, r"sampled: must have one boolean per token .*int64"),
        ({"sampled": [True, True, False]}, r"sampled\[0\]: the first token cannot be sampled"),
        ({"logprobs": [-1.0]}, r"logprobs: must have one value per sampled token \(expected \(2,\), got \(1,\)"),
        ({"logprobs": [-1.0, np.nan]}, r"logprobs\[1\]: must be finite"),
        ({"logprobs": [0.1, 0.9]}, r"logprobs: .* may be probabilities, or negated \(expected <= 0, got 0.9"),
        ({"advantages": [1.0, 2.0, 3.0]}, r"advantages: must have one value per sampled token"),
        ({"advantages": np.inf}, r"advantages\[0\]: must be finite"),
        ({"loss_fn": "cross_entropy"}, r"loss_fn: not a policy loss \(expected importance_sampling \| ppo"),
        ({"weight": 0}, r"weight: must be greater than 0"),
        ({"tokens": [5, 6, 99]}, r"model_input\[2\]: token id out of range"),
    ],
)
def test_bad_input_is_refused_with_the_field_and_the_values(wrong, says):
    given = {"tokens": TOKENS, "sampled": SAMPLED, "logprobs": LOGPROBS, "advantages": 1.0, "vocab_size": 50}
    policy_datum(**given)
    with pytest.raises(DatumError, match=says):
        policy_datum(**{**given, **wrong})


def test_a_datum_without_sampled_tokens_is_refused():
    with pytest.raises(ZeroWeightError):
        policy_datum(TOKENS, [False] * 3, [], 1.0)


def test_advantages_of_another_length_are_refused():
    with pytest.raises(DatumError, match=r"advantages: must be one number.*expected \(2,\) or \(3,\), got \(4,\)"):
        policy_datums(TWO_TURNS, [1, 2, 3, 4])


def test_a_group_needs_advantages_for_each_trajectory_and_a_known_unit():
    group = Group(0, 0, (TWO_TURNS, TWO_TURNS))
    with pytest.raises(DatumError, match=r"advantages: must have one entry per trajectory \(expected 2, got 1"):
        group_datums(group, [1.0])
    with pytest.raises(DatumError, match="weighting: unknown unit"):
        group_datums(group, [1.0, 1.0], weighting="turn")  # pyright: ignore[reportArgumentType]


def test_a_trajectory_has_no_ids_of_sequences_for_stable_reinforce():
    with pytest.raises(NotImplementedError, match=r"stable_reinforce.*with_provenance"):
        policy_datums(TWO_TURNS, 1.0, loss_fn="stable_reinforce")


def test_provenance_survives_the_folding_of_weights():
    datum = policy_datum(TOKENS, SAMPLED, LOGPROBS, 1.0, loss_fn="stable_reinforce").with_provenance(
        [tinker.types.PromptProvenanceSpan(sequence_id="a", length=2)],
        [tinker.types.SampledProvenanceSpan(sequence_id="a", length=2)],
    )
    folded = fold_weights(datum)
    assert folded.loss_fn_input_spans == datum.loss_fn_input_spans
    assert folded.model_input_spans == datum.model_input_spans


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"weights": [0.0, -1.0]}, r"weights\[1\]: a weight of a policy datum must not be negative"),
        ({"weights": [1.0, np.nan]}, r"weights\[1\]: must be finite"),
        ({"weights": [1.0]}, r"advantages: must have the shape of weights \(expected \(1,\), got \(2,\)"),
    ],
)
def test_weights_that_cannot_be_folded_are_refused(inputs, says):
    datum = policy_datum(TOKENS, SAMPLED, LOGPROBS, 1.0)
    datum = replace(datum, loss_fn_inputs={**datum.loss_fn_inputs, **inputs})
    for check in (fold_weights, lambda datum: check_datum(datum, loss_fn="importance_sampling")):
        with pytest.raises(DatumError, match=says):
            check(datum)

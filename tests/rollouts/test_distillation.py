"""Distillation datums: a teacher's most likely tokens as targets."""

import numpy as np
import pytest
import tinker

from tinkerloop.errors import DatumError
from tinkerloop.rollouts import distillation_datum

CANDIDATES = [[(7, np.log(0.6)), (8, np.log(0.2))], [(9, np.log(0.5)), (1, np.log(0.5))]]


def arrays(datum: tinker.Datum) -> dict[str, np.ndarray]:
    return {name: value.to_numpy() for name, value in datum.loss_fn_inputs.items()}


def test_each_token_of_the_reply_is_trained_on_the_teachers_distribution() -> None:
    datum = distillation_datum([1, 2, 3], [7, 9], CANDIDATES)
    assert datum.model_input.to_ints() == [1, 2, 3, 7]
    made = arrays(datum)
    assert made["target_tokens"].tolist() == [[0, 0], [0, 0], [7, 8], [9, 1]]
    np.testing.assert_allclose(made["weights"], [[0, 0], [0, 0], [0.75, 0.25], [0.5, 0.5]], rtol=1e-6)


def test_a_position_with_fewer_tokens_has_weight_0_for_the_others() -> None:
    made = arrays(distillation_datum([1], [7, 9], [CANDIDATES[0], [(9, -3.0)]]))
    assert made["weights"][1].tolist() == [1.0, 0.0]


def test_a_prompt_with_an_image_is_kept() -> None:
    image = tinker.types.ImageChunk(data=b"x", format="png", expected_tokens=3)
    prompt = tinker.ModelInput(chunks=[tinker.EncodedTextChunk(tokens=[1]), image, tinker.EncodedTextChunk(tokens=[2])])
    datum = distillation_datum(prompt, [7, 9], CANDIDATES)
    assert datum.model_input.length == 6
    assert arrays(datum)["weights"].any(axis=1).tolist() == [False, False, False, False, True, True]


@pytest.mark.parametrize(
    ("candidates", "problem"),
    [
        (CANDIDATES[:1], "one entry per token of the reply"),
        ([CANDIDATES[0], None], "at least one token"),
        ([CANDIDATES[0], [(9, float("-inf"))]], "finite"),
        ([CANDIDATES[0], [(-0.5, 9)]], "must be pairs"),
    ],
    ids=["one missing", "none at a position", "impossible token", "pairs turned around"],
)
def test_candidates_that_do_not_fit_the_reply_are_an_error(candidates: list, problem: str) -> None:
    with pytest.raises(DatumError, match=problem):
        distillation_datum([1, 2], [7, 9], candidates)

"""Recipes in their smallest setting run, learn something, and build correct datums."""

import numpy as np
import pytest
import tinker
import torch

import tinkerloop
from recipes import (
    arithmetic,
    custom_callback,
    dpo,
    low_level,
    on_policy_distillation,
    open_the_hood,
    prompt_distillation,
    rl_arithmetic,
    sweep,
)
from tinkerloop.callbacks import GradientAccumulation
from tinkerloop.data import batches, conversation_to_datum
from tinkerloop.errors import PlanError
from tinkerloop.loop import Loop
from tinkerloop.renderers import get_renderer
from tinkerloop.tokenizers import get_tokenizer


@pytest.fixture(scope="module")
def renderer():
    return get_renderer("qwen3_instruct", get_tokenizer("tiny"))


SAMPLED = type("Sampled", (), {"tokens": [7, 8, 258], "logprobs": [-0.5, -1.0, -0.25]})()
PROMPT = tinker.ModelInput.from_ints([1, 2, 3])


def inputs(datum):
    return {name: data.tolist() for name, data in datum.loss_fn_inputs.items()}


def test_the_explicit_loop_teaches_a_sentence():
    assert low_level.main(low_level.Config(model="tiny", steps=40, learning_rate=1e-2)) == low_level.COMPLETION


def test_the_handmade_datum_is_the_checked_one():
    tokenizer = get_tokenizer("tiny")
    made = low_level.make_datum(tokenizer, "ab", "cd")
    assert made.model_input.to_ints() == [97, 98, 99]
    assert inputs(made) == {"target_tokens": [98, 99, 100], "weights": [0.0, 1.0, 1.0]}


def test_the_callback_stops_a_run_and_remembers_over_a_resume():
    def config(**options):
        return custom_callback.Config(model="tiny", run="run", batch_size=4, keep=3, learning_rate=5e-3, **options)

    assert custom_callback.main(config(steps=4)).reason == "steps reached"
    summary = custom_callback.main(config(steps=40, good_enough=100.0))
    # Steps 0 to 3 were never below 0.35; from the resume on every step is good enough.
    assert (summary.step, summary.reason) == (15, "the loss was below 100.0 for ten steps in a row")
    assert custom_callback.main(config(steps=40, good_enough=100.0)) == summary, "a stopped run stays stopped"


def test_the_hood_opens_between_two_requests(capsys):
    config = open_the_hood.Config(model="tiny", steps=4, batch_size=8, part=2, conversations=16, lora_rank=4)
    loss, noise, layers = open_the_hood.main(config)
    assert len(loss) == len(noise) == 4
    assert loss[-1] < loss[0]
    assert noise[-1] > 0
    assert {"lm_head", "model.layers.0.mlp.up_proj", "model.layers.1.self_attn.q_proj"} <= layers.keys()
    assert all(0 < layer.gradient <= config.clip * 1.001 * 2**0.5 and layer.update > 0 for layer in layers.values())
    assert "noise scale" in capsys.readouterr().out


def test_the_noise_scale_is_that_of_a_known_distribution():
    """Gradients drawn from N(G, S): the estimate is trace(S) / |G|^2."""
    random = np.random.default_rng(0)
    true, spread = np.ones(50), 3.0
    sums = [torch.from_numpy(true * 4 + random.normal(0, spread * 4**0.5, (50,))) for _ in range(4000)]
    signal, noise = np.mean([open_the_hood.signal_and_noise(sums[i : i + 8], 4) for i in range(0, 4000, 8)], axis=0)
    assert noise / signal == pytest.approx(spread**2, rel=0.1)


def test_a_sampled_answer_trains_its_tokens_and_not_the_prompt():
    made = inputs(rl_arithmetic.answer_datum(PROMPT, SAMPLED, 0.5, "importance_sampling"))
    assert made["target_tokens"] == [2, 3, 7, 8, 258]
    assert made["logprobs"] == [0, 0, -0.5, -1, -0.25]
    assert made["advantages"] == [0, 0, 0.5, 0.5, 0.5]


def test_rewards_train_a_policy():
    before, after = rl_arithmetic.main(
        rl_arithmetic.Config(start_steps=20, steps=2, questions=8, group_size=8, lora_rank=8)
    )
    assert 0 <= before <= 1
    assert 0 <= after <= 1


@pytest.mark.soak
def test_rewards_and_preferences_bring_the_scores_that_the_recipes_state():
    before, after = dpo.main(dpo.Config())
    assert before < 0.3
    assert after == 1.0
    before, after = rl_arithmetic.main(rl_arithmetic.Config())
    assert before < 0.9
    assert after > 0.95


def test_rewards_that_never_differ_are_an_error_and_not_an_endless_loop():
    with pytest.raises(RuntimeError, match="nothing can be learned from these rewards"):
        rl_arithmetic.main(rl_arithmetic.Config(model="tiny", start_steps=1, steps=1, questions=1, group_size=2))


def test_an_answer_is_graded_token_by_token():
    made = inputs(on_policy_distillation.scored_datum(PROMPT, SAMPLED, [None, -9, -9, -0.25, -2.0, -0.25]))
    assert made["target_tokens"] == [2, 3, 7, 8, 258]
    assert made["advantages"] == [0, 0, 0.25, -1, 0]


def test_distillation_brings_the_student_to_the_teacher():
    divergences, _, _ = on_policy_distillation.main(
        on_policy_distillation.Config(
            model="tiny", teacher_steps=30, student_steps=1, steps=6, questions=4, learning_rate=5e-3
        )
    )
    assert np.mean(divergences[-3:]) < np.mean(divergences[:3])


def test_pairs_differ_in_the_reply_alone(renderer):
    (better, worse), *_ = dpo.make_pairs(renderer, 0, 1)
    weights = better.loss_fn_inputs["weights"].to_numpy()
    trained = bytes(t for t in np.array(better.loss_fn_inputs["target_tokens"].tolist())[weights > 0] if t < 256)
    assert trained.isupper()
    assert better.model_input.length == worse.model_input.length


@pytest.fixture(scope="module")
def reference_of_pairs(renderer):
    pairs = dpo.make_pairs(renderer, 0, 4)
    client = tinkerloop.connect("local").create_lora_training_client("tiny", rank=4, seed=0)
    datums = [datum for pair in pairs for datum in pair]
    return pairs, dict(zip(map(dpo.key, datums), dpo.log_likelihoods(client, datums).tolist(), strict=True))


def preference_step(pairs, reference, batch_size, *accumulation, last=False):
    """Return the loss, the metrics and the gradient norm of one step over the pairs."""
    client = tinkerloop.connect("local").create_lora_training_client("tiny", rank=4, seed=0)
    callbacks = [dpo.PreferenceLoss(reference, 1.0), *accumulation]
    rows = batches(pairs, batch_size, flatmap_fn=list)
    loop = Loop(client, rows, steps=1, callbacks=callbacks if last else callbacks[::-1], normalize="none")
    (result,) = loop.steps()
    return [result.loss, *(result.metrics[name] for name in ("preferred", "margin", "unclipped_grad_l2:mean"))]


@pytest.mark.parametrize("last", [False, True], ids=["split before the loss is set", "split after it"])
@pytest.mark.parametrize(
    ("batch_size", "accumulation"), [(2, {"batches": 2}), (1, {"batches": 4}), (4, {"micro_batch": 2})], ids=str
)
def test_a_preference_step_does_not_depend_on_its_split(reference_of_pairs, batch_size, accumulation, last):
    whole = preference_step(*reference_of_pairs, 4)
    split = GradientAccumulation(**accumulation)
    assert preference_step(*reference_of_pairs, batch_size, split, last=last) == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize("last", [False, True], ids=["split before the loss is set", "split after it"])
def test_a_split_that_parts_a_pair_is_refused(reference_of_pairs, last):
    with pytest.raises(PlanError, match="needs whole pairs"):
        preference_step(*reference_of_pairs, 4, GradientAccumulation(micro_batch=3), last=last)


def test_preferences_are_learned():
    before, after = dpo.main(
        dpo.Config(model="tiny", pairs=8, test_pairs=8, steps=8, batch_size=8, learning_rate=5e-3, beta=1.0)
    )
    assert after >= before + 0.25


def test_an_instruction_is_distilled_into_the_weights():
    before, after = prompt_distillation.main(
        prompt_distillation.Config(model="tiny", texts=8, test_texts=2, steps=2, batch_size=4)
    )
    assert 0 <= before <= 1
    assert 0 <= after <= 1


def test_a_cut_reply_of_the_teacher_is_not_trained_as_complete(renderer):
    whole = conversation_to_datum([{"role": "user", "content": "ba"}, {"role": "assistant", "content": "BA"}], renderer)
    stop = renderer.get_stop_sequences()[0]
    assert inputs(prompt_distillation.distilled_datum(renderer, "ba", [66, 65, stop])) == inputs(whole)
    cut = inputs(prompt_distillation.distilled_datum(renderer, "ba", [66, 65]))
    assert cut["target_tokens"][-2:] == [66, 65]
    assert cut["weights"] == inputs(whole)["weights"][:-1]


def test_the_teachers_cut_replies_are_counted(capsys):
    prompt_distillation.main(
        prompt_distillation.Config(model="tiny", texts=4, test_texts=2, steps=1, batch_size=2, max_tokens=1)
    )
    assert "6 of 6 replies were cut at 1 tokens" in capsys.readouterr().out


def test_a_sweep_ranks_learning_rates_and_resumes(capsys):
    config = sweep.Config(
        learning_rates=(1e-6, 1e-2), model_name="tiny", batch_size=4, test_size=4, max_steps=3, folder="sweep"
    )
    losses = sweep.main(config)
    assert losses[1e-2] < losses[1e-6]
    assert sweep.main(config) == losses
    assert "<- best" in capsys.readouterr().out


def test_a_sum_is_right_or_not():
    assert arithmetic.is_right(" 12\n", 5, 7)
    assert not arithmetic.is_right("12.", 5, 7)
    assert arithmetic.draw(0, 3, 5) == arithmetic.draw(0, 3, 5) != arithmetic.draw(0, 4, 5)


def test_the_supervised_start_trains_the_answer(renderer):
    datum = conversation_to_datum([*arithmetic.question(5, 7), {"role": "assistant", "content": "12"}], renderer)
    assert sum(datum.loss_fn_inputs["weights"].tolist()) == 3  # "1", "2" and the stop token

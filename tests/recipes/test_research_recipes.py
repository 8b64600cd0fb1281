"""Recipes in their smallest setting run, learn something, and build correct datums."""

import asyncio
import json
import signal
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

import tinkerloop
from recipes import (
    arithmetic,
    custom_callback,
    dpo,
    low_level,
    off_policy_distillation,
    on_policy_distillation,
    open_the_hood,
    preference,
    prompt_distillation,
    rl_arithmetic,
    rl_guessing_game,
    rl_tool_use,
    sweep,
)
from recipes.stored import stored
from tests.recipes.run_files import newest_state, rollouts, steps
from tinkerloop.callbacks import GradientAccumulation
from tinkerloop.data import batches, conversation_to_datum
from tinkerloop.errors import PlanError, RolloutError
from tinkerloop.loop import Loop
from tinkerloop.renderers import Parsed, ParseTermination, get_renderer
from tinkerloop.rollouts import one_turn
from tinkerloop.tokenizers import get_tokenizer


@pytest.fixture(scope="module")
def renderer():
    return get_renderer("qwen3_instruct", get_tokenizer("tiny"))


def scores(folder):
    """Return the results of the evaluations in the metrics of a run, in order."""
    rows = map(json.loads, (Path(folder) / "metrics.jsonl").read_text().splitlines())
    return [value for row in rows for name, value in row.items() if name in ("test/reward", "test/preferred")]


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


def test_a_dry_run_of_a_callback_or_a_sweep_prints_its_size_and_writes_nothing(capsys):
    custom_callback.main(custom_callback.Config(run="run", steps=7, dry_run=True))
    assert "steps                7 (" in capsys.readouterr().out
    assert sweep.main(sweep.Config(max_steps=5, folder="run", dry_run=True)) == {}
    printed = capsys.readouterr().out
    assert "steps                5 (" in printed
    assert "the same for each of 3 learning rates" in printed
    assert "memory of the embedded engine: about" in printed
    assert not Path("run").exists()


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
    likelihoods = dpo.log_likelihoods(datums, client.forward(datums, "cross_entropy").result())
    return pairs, dict(zip(map(dpo.key, datums), likelihoods.tolist(), strict=True))


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
    config = dpo.Config(
        model="tiny", run="run", pairs=8, test_pairs=8, steps=8, batch_size=8, learning_rate=5e-3, beta=1.0
    )
    assert dpo.main(config) >= scores("run")[0] + 0.25


def test_a_sweep_ranks_learning_rates_and_resumes(capsys):
    config = sweep.Config(
        learning_rates=(1e-6, 1e-2), model_name="tiny", batch_size=4, test_size=4, max_steps=3, folder="sweep"
    )
    losses = sweep.main(config)
    assert losses[1e-2] < losses[1e-6]
    assert sweep.main(config) == losses
    assert "<- best" in capsys.readouterr().out


FEW = {"questions": 2, "group_size": 2}
SMALL = {
    rl_arithmetic: {"model": "tiny", "start_steps": 2, **FEW},
    rl_tool_use: {"model": "tiny", "start_conversations": 4, "start_steps": 2, "test_questions": 2, **FEW},
    rl_guessing_game: {"model": "tiny", "start_steps": 2, "largest": 3, "games": 2, "group_size": 2},
    on_policy_distillation: {"model": "tiny", "teacher_steps": 2, "start_steps": 1, **FEW},
    off_policy_distillation: {"model": "tiny", "start_steps": 2, "answers": 1, "top_k": 3, "batch_size": 4},
    prompt_distillation: {"model": "tiny", "texts": 4, "test_texts": 2, "batch_size": 2, "max_tokens": 4},
    dpo: {"model": "tiny", "pairs": 4, "test_pairs": 2, "batch_size": 2},
    preference: {"model": "tiny", "pairs": 8, "test_pairs": 2, "start_steps": 2, "reward_steps": 2, "questions": 2},
}


def sum_with_any_reward(pair, seed):
    """Return the environment of a sum that rewards any text in its own way: the tiny model is never right."""
    return one_turn(arithmetic.question(*pair), reward=lambda reply: zlib.crc32(reply.text.encode()) % 4)


@pytest.mark.parametrize("recipe", SMALL, ids=lambda recipe: recipe.__name__.split(".")[-1])
def test_a_recipe_trains_and_resumes_as_if_it_had_not_been_interrupted(recipe, monkeypatch):
    if hasattr(recipe, "ALL"):
        monkeypatch.setattr(recipe, "ALL", arithmetic.ALL[:8])  # the questions of the evaluations
    if recipe is rl_arithmetic:
        monkeypatch.setattr(recipe, "environment", sum_with_any_reward)

    def run(folder, steps):
        return recipe.main(recipe.Config(run=folder, steps=steps, save_every=1, **SMALL[recipe]))

    run("in_two", 1)
    score = run("in_two", 2)
    assert scores("in_two")[-1] == score
    run("at_once", 2)
    in_two, at_once = Path("in_two"), Path("at_once")
    assert rollouts(in_two) == rollouts(at_once)
    assert steps(in_two) == steps(at_once)
    assert newest_state(in_two) == newest_state(at_once)


def test_a_recipe_that_is_stopped_by_a_signal_says_so_last_and_goes_on(capsys, monkeypatch):
    def config(**options):
        return dpo.Config(run="run", steps=8, **SMALL[dpo], **options)

    def print_and_signal(*values, **options):
        if str(values[0]).startswith("step   5"):
            signal.raise_signal(signal.SIGTERM)
        print(*values, **options)

    with monkeypatch.context() as patch:
        patch.setattr(dpo, "print", print_and_signal, raising=False)
        dpo.main(config())
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1].endswith("the run is not complete (received SIGTERM): start it again to go on")
    assert "the run in run was stopped at step" in printed.err
    assert "it is resumed at step" in printed.err
    dpo.main(config())
    assert printed.out.splitlines()[-1].split(":")[0] == "unseen pairs whose better reply is more likely"
    assert "not complete" not in capsys.readouterr().out


@pytest.mark.soak
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("recipe", SMALL, ids=lambda recipe: recipe.__name__.split(".")[-1])
def test_a_recipe_improves_its_score_with_its_defaults(recipe, seed):
    assert recipe.main(recipe.Config(run="run", seed=seed)) > scores("run")[0]


@pytest.mark.soak
@pytest.mark.parametrize("seed", [0, 1])
def test_preferences_bring_the_score_that_the_recipe_states(seed):
    assert dpo.main(dpo.Config(run="run", seed=seed)) == 1.0
    assert scores("run")[0] < 0.3


def test_rewards_that_never_differ_are_an_error_and_not_an_endless_loop():
    config = rl_arithmetic.Config(model="tiny", run="run", start_steps=1, steps=1, questions=1, group_size=2)
    with pytest.raises(RolloutError, match="nothing to train on"):
        rl_arithmetic.main(config)


def test_distillation_brings_the_student_to_the_teacher(capsys, monkeypatch):
    monkeypatch.setattr(on_policy_distillation, "ALL", arithmetic.ALL[:20])
    on_policy_distillation.main(
        on_policy_distillation.Config(
            model="tiny", run="run", teacher_steps=30, start_steps=1, steps=6, questions=8, learning_rate=5e-3
        )
    )
    divergences = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines() if "reverse KL" in line]
    assert np.mean(divergences[-3:]) < np.mean(divergences[:3])


def test_the_teachers_cut_replies_are_counted(capsys):
    prompt_distillation.main(
        prompt_distillation.Config(model="tiny", run="run", texts=4, test_texts=2, steps=1, batch_size=2, max_tokens=1)
    )
    assert "6 of 6 replies were cut at 1 tokens" in capsys.readouterr().out


def test_the_rewards_of_a_game_in_which_the_number_is_found_sum_to_1():
    for guesses in (["8", "12", "10"], ["1", "nonsense", "15", "10"], ["20", "3", "2", "10"]):
        game = rl_guessing_game.GuessingGame(10, 15)
        outcomes = [game.answer(guess) for guess in guesses]
        assert [outcome.done for outcome in outcomes] == [False] * (len(guesses) - 1) + [True]
        assert sum(outcome.reward for outcome in outcomes) == pytest.approx(1)
        assert all(outcome.reward >= 0 for outcome in outcomes)


def test_a_guess_that_tells_nothing_new_has_the_reward_0():
    game = rl_guessing_game.GuessingGame(10, 15)
    assert game.answer("8").reward == pytest.approx(np.log(15 / 7) / np.log(15))
    assert [game.answer(guess).reward for guess in ("8", "5", "16", "x")] == [0, 0, 0, 0]


def test_the_better_reply_of_a_pair_has_more_capitals():
    pairs = preference.make_pairs(0, 30)
    capitals = [[sum(map(str.isupper, reply)) for reply in both] for _, *both in pairs]
    assert all(better > worse for better, worse in capitals)


def test_a_stored_value_is_computed_once():
    values = iter([[1.5], [2.5]])
    assert stored(Path("value.json"), lambda: next(values)) == [1.5]
    assert stored(Path("value.json"), lambda: next(values)) == [1.5]


def test_a_sum_is_right_or_not():
    def reward(text):
        parsed = Parsed({"role": "assistant", "content": text}, ParseTermination.STOP_SEQUENCE, (), ())
        return asyncio.run(arithmetic.environment((5, 7), 0).step(parsed)).reward

    assert (reward(" 12\n"), reward("12."), reward("13")) == (1, 0, 0)


def test_the_supervised_start_trains_the_answer(renderer):
    datum = conversation_to_datum([*arithmetic.question(5, 7), {"role": "assistant", "content": "12"}], renderer)
    assert sum(datum.loss_fn_inputs["weights"].tolist()) == 3  # "1", "2" and the stop token

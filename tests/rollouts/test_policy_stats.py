"""`PolicyStats`: its estimators against independent formulas, and what it logs in runs."""

import math
import re
import statistics
from pathlib import Path

import numpy as np
import pytest
import tinker

import tinkerloop
from tinkerloop.callbacks import GradientAccumulation
from tinkerloop.errors import PlanError
from tinkerloop.local.nn.losses import LOSSES
from tinkerloop.loop import Loop, MicroBatch, Plan, StepResult
from tinkerloop.rollouts import FailurePolicy, PolicyStats, Rollouts, one_turn, policy_datum
from tinkerloop.rollouts.policy_stats import CLIP_THRESHOLDS, policy_metrics

SAMPLER = [-1.0, -2.0, -0.5, -3.0]
TRAINER = [-1.25, -1.0, -0.5, -3.5]
ADVANTAGES = [1.0, 1.0, -1.0, -1.0]
PARAMS = tinker.SamplingParams(max_tokens=3)


def step_result(loss_fn="importance_sampling", config=None, weights=True):
    """Return the result of a step with one datum: two tokens that were not sampled between two that were, each time."""
    sampled = [False, True, True, False, False, True, True]
    datum = policy_datum([5] * 7, sampled, SAMPLER, ADVANTAGES, loss_fn=loss_fn)
    if not weights:
        del datum.loss_fn_inputs["weights"]
    trainer = np.full(6, -99.0, np.float32)
    trainer[np.array(sampled[1:])] = TRAINER
    output = tinker.ForwardBackwardOutput(
        loss_fn_output_type="ArrayRecord",
        loss_fn_outputs=[{"logprobs": tinker.TensorData.from_numpy(trainer)}],
        metrics={},
    )
    plan = Plan(0, (MicroBatch((datum,), loss_fn, config),), tinker.AdamParams())
    return StepResult(0, 0.0, {}, plan, (output,))


def test_the_estimates_are_those_of_the_published_formulas():
    ratios = [math.exp(p - q) for q, p in zip(SAMPLER, TRAINER, strict=True)]
    expected = {
        "kl_k1": statistics.fmean(-math.log(r) for r in ratios),
        "kl_k2": statistics.fmean(math.log(r) ** 2 / 2 for r in ratios),
        "kl_k3": statistics.fmean((r - 1) - math.log(r) for r in ratios),
        "log_ratio_min": -0.5,
        "log_ratio_max": 1.0,
        "ess": sum(ratios) ** 2 / sum(r * r for r in ratios) / 4,
        "entropy": 6.5 / 4,
        "sampled_tokens": 4.0,
    }
    assert policy_metrics(step_result()) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "loss_fn, config, share",
    [
        ("ppo", None, 0.5),  # ratio 2.7 with A > 0 and ratio 0.6 with A < 0; 0.78 with A > 0 keeps its gradient
        ("ppo", {"clip_high_threshold": 3.0}, 0.25),
        ("ppo", {"clip_low_threshold": 0.5}, 0.25),
        ("cispo", None, 0.0),
        ("cispo", {"clip_low_threshold": 0.8, "clip_high_threshold": 2.0}, 0.75),
    ],
)
def test_the_clipped_share_is_that_of_the_loss_and_its_thresholds(loss_fn, config, share):
    assert policy_metrics(step_result(loss_fn, config))["clip_fraction"] == share


@pytest.mark.parametrize("loss_fn", CLIP_THRESHOLDS)
def test_the_default_thresholds_are_those_of_the_engine(loss_fn):
    defaults = LOSSES[loss_fn].defaults
    assert CLIP_THRESHOLDS[loss_fn] == (defaults["clip_low_threshold"], defaults["clip_high_threshold"])


PAGE = Path(__file__).parents[2] / "sdk/tinkerloop/rollouts/metrics.md"


def test_the_page_lists_exactly_the_metrics_that_are_logged(service, renderer, tmp_path):
    async def environment(task, seed):
        return one_turn([{"role": "user", "content": str(task)}], lambda reply: (sum(reply.ids) % 7, {"<name>": 1}))

    client = service.create_lora_training_client()
    options = {"seconds": True, "environment": environment, "loss_fn": "ppo"}
    (row,) = run(client, renderer, tmp_path / "log", steps=1, **options)
    listed = re.findall(r"`((?:policy|rollouts)/\S+)`", PAGE.read_text(encoding="utf-8").partition("|---|")[2])
    assert sorted(listed) == sorted(name for name in row if name.startswith(("policy/", "rollouts/")))


def test_a_datum_without_weights_is_refused():
    with pytest.raises(PlanError, match="cannot see which tokens of a datum were sampled"):
        policy_metrics(step_result(weights=False))


# --- in runs ---


class PolicyStatsOfAnother(PolicyStats):
    """A second callback needs a name of its own."""


async def score(reply):
    return sum(reply.ids) % 7


async def environment(task, seed):
    return one_turn([{"role": "user", "content": str(task)}], score)


def run(client, renderer, log, *, steps, environment=environment, callbacks=(), optim=None, seconds=False, **options):
    """Return the rows of a run with `PolicyStats`, one for each step."""
    options = {"groups": 3, "group_size": 2, "sampling_params": PARAMS, "tasks": range(5)} | options
    rollouts = Rollouts(client, options.pop("tasks"), environment, renderer, log=log, **options)
    rows = []
    stats = PolicyStats(rollouts, solved=3, seconds=seconds)
    Loop(
        client,
        rollouts,
        steps=steps,
        callbacks=[stats, *callbacks],
        sinks=[lambda step, row: rows.append(dict(row))],
        loss_fn=options.get("loss_fn", "importance_sampling"),
        optim=optim,
    ).run()
    rollouts.close()
    return rows


def test_sampler_and_trainer_agree_on_policy_and_drift_apart_with_staleness(renderer, tmp_path):
    optim = tinker.AdamParams(learning_rate=3e-3)
    divergence = {}
    service = tinkerloop.connect("local")
    for staleness in (0, 1, 3):
        client = service.create_lora_training_client("tiny", rank=4, seed=0)
        rows = run(client, renderer, tmp_path / str(staleness), steps=6, staleness=staleness, optim=optim)
        assert [row["policy/staleness_max"] for row in rows] == [min(step, staleness) for step in range(6)]
        divergence[staleness] = [row["policy/kl_k3"] for row in rows]
    assert max(divergence[0]) <= 1e-6
    assert 1e-6 < statistics.fmean(divergence[1]) < statistics.fmean(divergence[3])


def test_a_row_has_the_rewards_of_all_groups_also_of_those_left_out(service, renderer, tmp_path):
    async def environment(task, seed):
        return one_turn([{"role": "user", "content": str(task)}], lambda reply: (task, {"length": len(reply.ids)}))

    (row,) = run(
        service.create_lora_training_client(), renderer, tmp_path / "log", steps=1, environment=environment,
        constant_groups="keep", groups=5,
    )  # fmt: skip
    expected = {
        "rollouts/groups": 5,
        "rollouts/trained": 1,
        "rollouts/dropped": 0,
        "rollouts/constant": 1,
        "rollouts/reward_mean": 2,
        "rollouts/reward_std": math.sqrt(2),
        "rollouts/reward_min": 0,
        "rollouts/reward_max": 4,
        "rollouts/reward_std_in_group": 0,
        "rollouts/solved": 0.4,
        "rollouts/turns_mean": 1,
        "rollouts/reply_tokens_max": 3,
        "rollouts/end_max_tokens": 1,
        "rollouts/end_done": 0,
        "rollouts/environment/length": row["rollouts/reply_tokens_mean"],
    }
    assert {name: row[name] for name in expected} == pytest.approx(expected)


def test_failures_and_dropped_groups_are_counted(service, renderer, tmp_path):
    async def environment(task, seed):
        if task == 0:
            raise OSError("no such task")
        return one_turn([{"role": "user", "content": str(task)}], score)

    options = {"constant_groups": "keep", "on_failure": FailurePolicy(then="drop"), "groups": 5, "further_tasks": 0}
    client = service.create_lora_training_client()
    (row,) = run(client, renderer, tmp_path / "log", steps=1, environment=environment, **options)
    assert (row["rollouts/dropped"], row["rollouts/trained"], row["rollouts/failures"]) == (0.2, 0.8, 2)


def test_substeps_log_the_rewards_once_and_the_policy_in_each_step(service, renderer, tmp_path):
    client = service.create_lora_training_client()
    rows = run(client, renderer, tmp_path / "log", steps=4, substeps=2, constant_groups="keep")
    assert ["rollouts/reward_mean" in row for row in rows] == [True, False, True, False]
    assert [row["policy/sampled_tokens"] > 0 for row in rows] == [True] * 4
    assert [row["policy/staleness_max"] for row in rows] == [0, 1, 0, 1]


def test_a_step_of_several_batches_has_the_rewards_of_all(service, renderer, tmp_path):
    client = service.create_lora_training_client()
    options = {"callbacks": [GradientAccumulation(2)], "constant_groups": "keep"}
    (row,) = run(client, renderer, tmp_path / "log", steps=1, **options)
    assert row["rollouts/groups"] == 6


def test_a_threshold_that_no_reward_can_reach_is_refused():
    with pytest.raises(PlanError, match="solved must be a finite number, got nan"):
        PolicyStats(None, solved=float("nan"))


def test_rollouts_of_another_loop_are_refused(service, renderer, tmp_path):
    client = service.create_lora_training_client()
    options = {"groups": 3, "group_size": 2, "sampling_params": PARAMS}
    other = Rollouts(client, range(5), environment, renderer, log=tmp_path / "other", **options)
    with pytest.raises(PlanError, match="pass the rollouts that are the batches of this loop"):
        run(client, renderer, tmp_path / "log", steps=1, callbacks=[PolicyStatsOfAnother(other)])


def test_equal_runs_log_equal_rows_and_seconds_only_if_asked(service, renderer, tmp_path):
    first, second, timed = (
        run(service.create_lora_training_client(), renderer, tmp_path / name, steps=2, seconds=name == "timed")
        for name in ("first", "second", "timed")
    )
    assert first == second
    added = {"rollouts/staleness_seconds", "rollouts/episode_seconds_mean", "rollouts/episode_seconds_max"}
    assert timed[0].keys() - first[0].keys() == added
    assert all(timed[0][name] > 0 for name in added)

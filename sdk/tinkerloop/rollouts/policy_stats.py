"""`PolicyStats`, which logs how far sampler and trainer are apart, and how the rollouts of each step went.

The estimators, for a token x that the sampler drew with probability q(x) and to which the trainer gives p(x), with the
log-ratio d = log p(x) - log q(x). Means are over the sampled tokens of a step, each counted once:

    KL(q || p), k1       mean of -d                                 unbiased; a single step may be below 0
    KL(q || p), k2       mean of d^2 / 2                            biased, with a lower variance
    KL(q || p), k3       mean of exp(d) - 1 - d                     unbiased, never below 0
    effective samples    (sum of exp(d))^2 / sum of exp(d)^2        as a share of the tokens: 1 if p = q
    entropy of q         mean of -log q(x)

Sources: Schulman (2020), "Approximating KL Divergence", for k1, k2 and k3; Kong (1992), "A Note on Importance Sampling
using Standardized Weights", for the effective sample size.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tinkerloop._lazy import tinker
from tinkerloop.datum_checks import POLICY_LOSSES
from tinkerloop.errors import PlanError
from tinkerloop.loop.callback import Callback
from tinkerloop.loop.events import Log, Requests, StepResult
from tinkerloop.loop.plan import MicroBatch, Plan
from tinkerloop.number_checks import check_finite_number
from tinkerloop.rollouts.delivered import Delivered
from tinkerloop.rollouts.rollouts import Rollouts
from tinkerloop.rollouts.trajectory import End

CLIP_THRESHOLDS: Mapping[str, tuple[float, float]] = {"ppo": (0.8, 1.2), "cispo": (0.0, 4.0)}
"""The bounds on the probability ratio of each loss that has them, if `loss_fn_config` does not set others."""


class PolicyStats(Callback):
    """Log what distinguishes a healthy run of reinforcement learning from a sick one.

    The metrics under `policy/` are logged for each step: how the log-probabilities of the trainer differ from those of
    the sampler. The metrics under `rollouts/` are logged once for each batch of rollouts, with the first step that is
    trained on it. `metrics.md` lists all of them. Micro-batches without a policy loss are left out.

    Args:
        rollouts: the batches of the loop.
        solved: a trajectory counts as solved if its reward is at least this.
        seconds: if true, also log how long before the step sampling began, and how long episodes took. Equal runs then
            log different rows.

    Raises:
        PlanError: `solved` is not a finite number.
    """

    def __init__(self, rollouts: Rollouts, *, solved: float = 1.0, seconds: bool = False):
        check_finite_number("solved", solved)
        self._rollouts, self._solved, self._seconds = rollouts, solved, seconds
        self._submitted: dict[int, dict[str, float]] = {}  # what is known when a step is queued, by step

    def on_plan(self, plan: Plan) -> Plan:
        delivered = self._rollouts.delivered_in_step
        if not delivered:
            raise PlanError(
                f"PolicyStats was given {self._rollouts}, which delivered nothing for step {plan.step}: pass the "
                "rollouts that are the batches of this loop"
            )
        metrics = {f"policy/{name}": value for name, value in _staleness(plan.step, delivered).items()}
        if new := [one for one in delivered if one.substep == 0]:
            metrics |= {f"rollouts/{name}": value for name, value in rollout_metrics(new, self._solved).items()}
        if self._seconds:
            metrics |= {f"rollouts/{name}": value for name, value in _seconds(delivered, time.perf_counter()).items()}
        self._submitted[plan.step] = metrics
        return plan

    def on_step(self, result: StepResult) -> Requests:
        metrics = {f"policy/{name}": value for name, value in policy_metrics(result).items()}
        return Log(metrics | self._submitted.pop(result.step))


def policy_metrics(result: StepResult) -> dict[str, float]:
    """Return the metrics of the sampled tokens of a step, without the prefix `policy/`; none without policy losses.

    Raises:
        PlanError: a datum does not have the weights from which the sampled tokens are known.
    """
    of_micro_batches = [
        (one, [_sampled(datum, output) for datum, output in zip(one.datums, outputs.loss_fn_outputs, strict=True)])
        for one, outputs in zip(result.plan.micro_batches, result.outputs, strict=True)
        if one.loss_fn in POLICY_LOSSES
    ]
    parts = [part for _, sampled in of_micro_batches for part in sampled]
    if not parts:
        return {}
    sampler, trainer, _ = np.concatenate(parts, axis=1)  # (S,) each
    log_ratio = trainer - sampler
    scaled = np.exp(log_ratio - log_ratio.max())  # the effective sample size does not depend on the scale
    with np.errstate(over="ignore"):  # the result is then infinite, as it should be
        k3 = float(np.mean(np.expm1(log_ratio) - log_ratio))
    metrics = {
        "kl_k1": float(-log_ratio.mean()),
        "kl_k2": float(np.mean(log_ratio**2) / 2),
        "kl_k3": k3,
        "log_ratio_min": float(log_ratio.min()),
        "log_ratio_max": float(log_ratio.max()),
        "ess": float(scaled.sum() ** 2 / (scaled**2).sum() / len(scaled)),
        "entropy": float(-sampler.mean()),
        "sampled_tokens": float(len(sampler)),
    }
    clipped = [_clipped(one, part) for one, sampled in of_micro_batches for part in sampled]
    if known := [one for one in clipped if one is not None]:
        metrics["clip_fraction"] = float(np.concatenate(known).mean())
    return metrics


def rollout_metrics(batches: Sequence[Delivered], solved: float = 1.0) -> dict[str, float]:
    """Return the metrics of batches of rollouts, without the prefix `rollouts/`.

    Groups that were left out of training count too, because a choice by reward would distort the means. Without
    trajectories, there are only the metrics of groups.
    """
    groups = [group for one in batches for group in one.groups]
    scored = [group for group in groups if group.trajectories]
    metrics = {
        "groups": float(len(groups)),
        "trained": sum(len(one.trained) for one in batches) / len(groups),
        "dropped": sum(one.dropped for one in batches) / len(groups),
        "failures": float(sum(one.failures for one in batches)),
        "further": float(sum(one.further for one in batches)),
    }
    if not scored:
        return metrics
    trajectories = [one for group in scored for one in group.trajectories]
    rewards = np.concatenate([group.rewards for group in scored])
    replies = np.concatenate([np.bincount(one.sampled_turns, minlength=len(one.turns)) for one in trajectories])
    metrics |= {
        "reward_mean": float(rewards.mean()),
        "reward_std": float(rewards.std()),
        "reward_min": float(rewards.min()),
        "reward_max": float(rewards.max()),
        "reward_std_in_group": float(np.mean([group.rewards.std() for group in scored])),
        "solved": float(np.mean(rewards >= solved)),
        "constant": sum(float(np.ptp(group.rewards)) == 0 for group in scored) / len(groups),
        "reply_tokens_mean": float(replies.mean()),
        "reply_tokens_max": float(replies.max()),
        "turns_mean": float(np.mean([len(one.turns) for one in trajectories])),
    }
    for end in End:
        metrics[f"end_{end.value}"] = float(np.mean([one.end is end for one in trajectories]))
    reported: dict[str, list[float]] = defaultdict(list)
    for one in trajectories:
        for turn in one.turns:
            for name, value in turn.metrics.items():
                reported[f"environment/{name}"].append(value)
    return metrics | {name: float(np.mean(values)) for name, values in reported.items()}


def _sampled(datum: tinker.Datum, output: Mapping[str, tinker.TensorData]) -> NDArray[np.float64]:
    """Return the sampler's and the trainer's log-probabilities and the advantages of the S sampled tokens, (3, S)."""
    inputs = datum.loss_fn_inputs
    if "weights" not in inputs:
        raise PlanError(
            "PolicyStats cannot see which tokens of a datum were sampled, because it has no weights: create datums "
            "with policy_datum or policy_datums"
        )
    is_sampled = inputs["weights"].to_numpy() > 0
    values = (inputs["logprobs"], output["logprobs"], inputs["advantages"])
    return np.stack([np.asarray(value.to_numpy(), np.float64)[is_sampled] for value in values])


def _clipped(micro_batch: MicroBatch, sampled: NDArray[np.float64]) -> NDArray[np.bool_] | None:
    """Return which tokens the loss clips, (S,); None if it does not clip single tokens.

    With ppo, these are the tokens without a gradient. With cispo, they are those with a bounded ratio.
    """
    if not isinstance(micro_batch.loss_fn, str) or micro_batch.loss_fn not in CLIP_THRESHOLDS:
        return None
    config = micro_batch.config or {}
    low, high = CLIP_THRESHOLDS[micro_batch.loss_fn]
    low, high = float(config.get("clip_low_threshold", low)), float(config.get("clip_high_threshold", high))
    sampler, trainer, advantages = sampled
    with np.errstate(over="ignore"):
        ratio = np.exp(trainer - sampler)
    above, below = ratio > high, ratio < low
    return (above & (advantages > 0)) | (below & (advantages < 0)) if micro_batch.loss_fn == "ppo" else above | below


def _staleness(step: int, delivered: Iterable[Delivered]) -> dict[str, float]:
    """Return how many steps were applied to the weights after those that sampled each trajectory of a step."""
    by_batch = {one.batch: one for one in delivered}.values()
    boundaries = [trajectory.boundary for one in by_batch for group in one.trained for trajectory in group.trajectories]
    if not boundaries:
        return {}
    return {"staleness_mean": step - float(np.mean(boundaries)), "staleness_max": float(step - min(boundaries))}


def _seconds(delivered: Sequence[Delivered], now: float) -> dict[str, float]:
    begun = [now - one.begun_at for one in delivered if one.begun_at is not None]
    metrics = {"staleness_seconds": max(begun)} if begun else {}
    new = [one for one in delivered if one.substep == 0 and one.begun_at is not None]
    if took := [trajectory.seconds for one in new for group in one.groups for trajectory in group.trajectories]:
        metrics |= {"episode_seconds_mean": float(np.mean(took)), "episode_seconds_max": max(took)}
    return metrics

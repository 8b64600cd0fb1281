"""Mean rewards, in evaluations and of rollouts, for the recipes of reinforcement learning. This is not a recipe."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np
import tinker

from tinkerloop.callbacks import Evaluate, sampled
from tinkerloop.clients import SamplingClientLike
from tinkerloop.renderers import Renderer
from tinkerloop.rollouts import Environment, Limits, Rollouts, Trajectory, run_episode


def evaluate_rewards(
    environment: Callable[[Any, int], Environment],
    tasks: Sequence[Any],
    renderer: Renderer,
    *,
    max_tokens: int,
    limits: Limits,
) -> Evaluate:
    """Return a callback that logs `test/reward`: the mean reward of one greedy episode for each task."""
    params = tinker.SamplingParams(max_tokens=max_tokens, temperature=0.0)

    async def score(client: SamplingClientLike) -> dict[str, float]:
        def episode(task: Any) -> Coroutine[Any, Any, Trajectory]:
            return run_episode(environment(task, 0), client, renderer, sampling_params=params, seed=0, limits=limits)

        trajectories = await asyncio.gather(*map(episode, tasks))
        return {"reward": float(np.mean([one.reward for one in trajectories]))}

    return Evaluate("test", sampled(score))


def mean_reward(rollouts: Rollouts) -> float:
    """Return the mean reward of all episodes of the newest batch, also of those that were not trained on."""
    assert rollouts.delivered is not None
    return float(np.concatenate([group.rewards for group in rollouts.delivered.groups]).mean())

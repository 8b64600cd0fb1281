"""Environments of skyrl-gym, driven by the real package."""

from __future__ import annotations

from typing import Any

import pytest

from tests.rollouts.conftest import ScriptedSampler, params, run
from tinkerloop.errors import RolloutError
from tinkerloop.rollouts import SkyRLEnvironment
from tinkerloop.rollouts.episodes import run_episode
from tinkerloop.rollouts.trajectory import End, Trajectory

skyrl_gym = pytest.importorskip("skyrl_gym")
QUESTION = [{"role": "user", "content": "2 + 2 = ? End with '#### ANSWER'."}]
EXTRAS = {"reward_spec": {"ground_truth": "4"}, "max_turns": 3}


def play(environment: Any, script: list[str]) -> Trajectory:
    sampler = ScriptedSampler(script)
    wrapped = SkyRLEnvironment(environment, QUESTION)
    return run(run_episode(wrapped, sampler, sampler.renderer, sampling_params=params(max_tokens=99), seed=0))  # type: ignore[arg-type]


@pytest.mark.parametrize("reply, reward", [("I think\n#### 4", 1.0), ("#### 5", 0.0), ("four", 0.0)])
def test_a_task_with_one_turn_is_rewarded(reply: str, reward: float) -> None:
    trajectory = play(skyrl_gym.make("gsm8k", extras=EXTRAS), [reply])
    assert (trajectory.reward, trajectory.end, len(trajectory.turns)) == (reward, End.DONE, 1)


def test_a_task_with_several_turns_is_rewarded_by_turn() -> None:
    trajectory = play(skyrl_gym.make("gsm8k_multi_turn", extras=EXTRAS), ["no idea", "#### 5", "#### 4"])
    assert [turn.reward for turn in trajectory.turns] == pytest.approx([0.0, 0.2 / 3, 1.0])
    assert trajectory.end is End.DONE
    assert [m["role"] for m in trajectory.messages] == ["user", "assistant"] * 3
    assert "'#### ANSWER'" in trajectory.messages[2]["content"]
    assert [turn.metrics for turn in trajectory.turns] == [{}, {}, {"steps": 3.0}]


def test_an_environment_that_replaces_a_reply_is_rejected() -> None:
    class Shortening(skyrl_gym.envs.base_text_env.BaseTextEnv):
        def step(self, action: str) -> dict[str, Any]:
            return {"observations": [], "reward": 0.0, "done": True, "postprocessed_action": action[:1]}

    with pytest.raises(RolloutError, match="NotImplementedError: the environment replaced the text of a reply"):
        play(Shortening(), ["four"])

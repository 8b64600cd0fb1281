"""Rollouts: what reinforcement learning and distillation sample, train on and log."""

from tinkerloop.rollouts.advantages import (
    Advantage,
    AdvantageFunction,
    centered,
    leave_one_out,
    no_baseline,
    per_turn,
    reference_kl,
    reverse_kl,
    standardized,
)
from tinkerloop.rollouts.curriculum import Curriculum, Shuffled, WeightedParts
from tinkerloop.rollouts.delivered import Delivered
from tinkerloop.rollouts.distillation import distillation_datum
from tinkerloop.rollouts.environments import Environment, Outcome, Start, one_turn
from tinkerloop.rollouts.episodes import FailurePolicy, Limits, run_episode, run_group
from tinkerloop.rollouts.policy_datum import group_datums, policy_datum, policy_datums
from tinkerloop.rollouts.policy_stats import PolicyStats
from tinkerloop.rollouts.rollout_log import read_rollouts
from tinkerloop.rollouts.rollouts import Rollouts
from tinkerloop.rollouts.skyrl import SkyRLEnvironment
from tinkerloop.rollouts.tools import Tool, ToolEnvironment
from tinkerloop.rollouts.trajectory import End, Group, SampledSpan, Trajectory, TrajectorySegment, Turn

__all__ = [
    "Advantage",
    "AdvantageFunction",
    "Curriculum",
    "Delivered",
    "End",
    "Environment",
    "FailurePolicy",
    "Group",
    "Limits",
    "Outcome",
    "PolicyStats",
    "Rollouts",
    "SampledSpan",
    "Shuffled",
    "SkyRLEnvironment",
    "Start",
    "Tool",
    "ToolEnvironment",
    "Trajectory",
    "TrajectorySegment",
    "Turn",
    "WeightedParts",
    "centered",
    "distillation_datum",
    "group_datums",
    "leave_one_out",
    "no_baseline",
    "one_turn",
    "per_turn",
    "policy_datum",
    "policy_datums",
    "read_rollouts",
    "reference_kl",
    "reverse_kl",
    "run_episode",
    "run_group",
    "standardized",
]

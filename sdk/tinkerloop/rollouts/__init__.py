"""Rollouts: what reinforcement learning and distillation sample, train on and log."""

from tinkerloop.rollouts.policy_datum import group_datums, policy_datum, policy_datums
from tinkerloop.rollouts.trajectory import End, Group, SampledSpan, Trajectory, TrajectorySegment, Turn

__all__ = [
    "End",
    "Group",
    "SampledSpan",
    "Trajectory",
    "TrajectorySegment",
    "Turn",
    "group_datums",
    "policy_datum",
    "policy_datums",
]

"""Rollouts: what reinforcement learning and distillation sample, train on and log."""

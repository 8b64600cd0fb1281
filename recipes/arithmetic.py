"""Sums of two digits, whose answers can be verified: a task of several recipes. This is not a recipe."""

from __future__ import annotations

import tinker

from tinkerloop.data import conversation_to_datum
from tinkerloop.renderers import Renderer
from tinkerloop.rollouts import Environment, one_turn

ALL = [(a, b) for a in range(10) for b in range(10)]


def question(a: int, b: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"{a} + {b} ="}]


def environment(pair: tuple[int, int], seed: int) -> Environment:
    """Return the environment of one sum. The reward of a correct answer is 1, and of any other 0."""
    return one_turn(question(*pair), reward=lambda reply: float(reply.text.strip() == str(sum(pair))))


def datums(renderer: Renderer) -> list[tinker.Datum]:
    """Return all hundred sums with their answers, to train on."""
    return [
        conversation_to_datum([*question(a, b), {"role": "assistant", "content": str(a + b)}], renderer) for a, b in ALL
    ]

"""The task of the reinforcement learning and distillation recipes: sums of two digits, whose answers can be verified.

This is not a recipe. It contains the questions, the check of an answer, and a short supervised training. The latter is
needed because the small base model has never seen a sum, and a model that is never right learns nothing from rewards.
"""

from __future__ import annotations

import random
from typing import Any

import tinker

from tinkerloop.data import conversation_to_datum
from tinkerloop.loop import Loop
from tinkerloop.renderers import Renderer

ALL = [(a, b) for a in range(10) for b in range(10)]


def question(a: int, b: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"{a} + {b} ="}]


def draw(seed: int, step: int, count: int) -> list[tuple[int, int]]:
    """Return the digit pairs of a step's questions. They are the same in every run with this seed."""
    return random.Random(f"{seed}/questions/{step}").sample(ALL, count)


def is_right(text: str, a: int, b: int) -> bool:
    return text.strip() == str(a + b)


def stop_at(renderer: Renderer, **params: Any) -> tinker.SamplingParams:
    return tinker.SamplingParams(max_tokens=6, stop=renderer.get_stop_sequences(), **params)


def reply_text(renderer: Renderer, tokens: list[int]) -> str:
    message, _ = renderer.parse_response(tokens)
    content = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def accuracy(sampler: Any, renderer: Renderer) -> float:
    """Return the fraction of all hundred sums that the model answers correctly with greedy sampling."""
    params = stop_at(renderer, temperature=0.0)
    futures = [sampler.sample(renderer.build_generation_prompt(question(a, b)), 1, params) for a, b in ALL]
    replies = [reply_text(renderer, future.result().sequences[0].tokens) for future in futures]
    return sum(is_right(reply, a, b) for reply, (a, b) in zip(replies, ALL, strict=True)) / len(ALL)


def supervised_start(client: Any, renderer: Renderer, *, steps: int, seed: int, learning_rate: float) -> None:
    """Train for `steps` supervised steps on 32 sums each, so that the model answers some sums correctly."""

    def batch(step: int) -> list[tinker.Datum]:
        return [
            conversation_to_datum([*question(a, b), {"role": "assistant", "content": str(a + b)}], renderer)
            for a, b in draw(seed, -1 - step, 32)
        ]

    Loop(client, [batch(step) for step in range(steps)], optim=tinker.AdamParams(learning_rate=learning_rate)).run()

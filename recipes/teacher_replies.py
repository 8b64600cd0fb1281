"""A teacher's replies and its most likely tokens, for the recipes of off-policy distillation. This is not a recipe."""

from __future__ import annotations

from collections.abc import Sequence

import tinker

from tinkerloop.clients import SamplingClientLike
from tinkerloop.renderers import Renderer
from tinkerloop.rollouts.distillation import Candidates

Scored = tuple[list[int], list[Candidates]]
"""The tokens of a reply, and for each of them the teacher's most likely tokens at its position."""


def teacher_replies(
    teacher: SamplingClientLike,
    renderer: Renderer,
    prompts: Sequence[tinker.ModelInput],
    params: tinker.SamplingParams,
    *,
    top_k: int,
) -> list[Scored]:
    """Return one reply to each prompt. If `params` have a seed, each prompt gets another one, counted from it."""
    futures = []
    for number, prompt in enumerate(prompts):
        seed = None if params.seed is None else params.seed + number
        own = params.model_copy(update={"seed": seed, "stop": renderer.get_stop_sequences()})
        futures.append(teacher.sample(prompt, 1, own))
    replies = [list(future.result().sequences[0].tokens) for future in futures]
    scores = [
        teacher.sample(
            prompt.append(tinker.EncodedTextChunk(tokens=reply)),
            1,
            tinker.SamplingParams(max_tokens=1),
            include_prompt_logprobs=True,
            topk_prompt_logprobs=top_k,
        )
        for prompt, reply in zip(prompts, replies, strict=True)
    ]
    return [
        (reply, score.result().topk_prompt_logprobs[-len(reply) :])
        for reply, score in zip(replies, scores, strict=True)
    ]

"""Prompt distillation: make a model behave as if it had been given an instruction, without giving it.

    python -m recipes.prompt_distillation
    python -m recipes.prompt_distillation instruction='Backwards: {}' steps=200
    python -m recipes.prompt_distillation --help

The teacher is the base model with the instruction in its prompt; its own replies become the training data of a
student that sees the bare text. The prompt's tokens are then saved on every call.

What you should see: the student's replies to unseen texts are the instructed teacher's in 0 % of the cases before, and
in all of them after 150 steps, a minute or two on one core.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import chz
import tinker

import tinkerloop
from recipes.arithmetic import reply_text
from tinkerloop.callbacks import LRSchedule
from tinkerloop.data import batches, conversation_to_datum
from tinkerloop.loop import Loop
from tinkerloop.loop.schedules import linear, warmup
from tinkerloop.renderers import Renderer

SYLLABLES = [consonant + vowel for consonant in "bdgklmnprstw" for vowel in "aeiou"]


@chz.chz
class Config:
    model: str = chz.field(default="recipes/base", doc="A model folder or a name.")
    renderer: str = chz.field(default="qwen3_instruct", doc="The model's chat format.")
    service: str = chz.field(default="local", doc="local, tinker, or a URL.")
    instruction: str = chz.field(default="Upper case: {}", doc="What the teacher is told; {} stands for the text.")
    texts: int = chz.field(default=240, doc="Texts the teacher replies to.")
    test_texts: int = chz.field(default=40, doc="Texts held out.")
    steps: int = chz.field(default=150, doc="Optimizer steps.")
    batch_size: int = chz.field(default=16, doc="Texts in a step.")
    learning_rate: float = chz.field(default=2e-3, doc="The highest learning rate.")
    seed: int = chz.field(default=0, doc="Of the texts, their order and the adapter.")


def make_texts(seed: int, count: int) -> list[str]:
    """Different texts of one to three invented words."""
    rng = random.Random(f"{seed}/texts")
    texts: dict[str, None] = {}
    while len(texts) < count:
        texts[" ".join("".join(rng.choices(SYLLABLES, k=2)) for _ in range(rng.randint(1, 3)))] = None
    return list(texts)


def replies(sampler: Any, renderer: Renderer, prompts: Sequence[str]) -> list[str]:
    """The greedy reply to each prompt."""
    params = tinker.SamplingParams(max_tokens=24, temperature=0.0, stop=renderer.get_stop_sequences())
    asked = [renderer.build_generation_prompt([{"role": "user", "content": prompt}]) for prompt in prompts]
    futures = [sampler.sample(prompt, 1, params) for prompt in asked]
    return [reply_text(renderer, future.result().sequences[0].tokens) for future in futures]


def main(config: Config) -> tuple[float, float]:
    service = tinkerloop.connect(config.service)
    renderer = tinkerloop.get_renderer(config.renderer, tinkerloop.get_tokenizer(config.model))
    texts = make_texts(config.seed, config.texts + config.test_texts)
    teacher = service.create_sampling_client(base_model=config.model)
    taught = replies(teacher, renderer, [config.instruction.format(text) for text in texts])
    print(f"the teacher: {config.instruction.format(texts[0])!r} -> {taught[0]!r}")

    datums = [
        conversation_to_datum([{"role": "user", "content": text}, {"role": "assistant", "content": reply}], renderer)
        for text, reply in zip(texts, taught, strict=True)
        if reply.strip()
    ]
    train = datums[: -config.test_texts]
    unseen, wanted = texts[-config.test_texts :], taught[-config.test_texts :]

    def agreement(sampler: Any) -> float:
        given = replies(sampler, renderer, unseen)
        return sum(a == b for a, b in zip(given, wanted, strict=True)) / len(unseen)

    before = agreement(teacher)
    client = service.create_lora_training_client(config.model, rank=32, seed=config.seed)
    Loop(
        client,
        batches(train, config.batch_size, epochs=None, shuffle=config.seed),
        steps=config.steps,
        callbacks=[LRSchedule(warmup(5, linear(config.learning_rate, 0.0, config.steps)))],
        sinks=[lambda step, row: print(f"step {step:3d}  loss {row['loss']:.3f}") if step % 10 == 0 else None],
    ).run()
    after = agreement(client.save_weights_and_get_sampling_client())
    print(f"without the instruction, like the teacher with it: {before:.0%} before, {after:.0%} after")
    return before, after


if __name__ == "__main__":
    chz.nested_entrypoint(main, allow_hyphens=True)

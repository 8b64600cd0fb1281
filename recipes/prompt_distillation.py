"""Prompt distillation: train a model to follow an instruction that is not in its prompt.

    python -m recipes.prompt_distillation
    python -m recipes.prompt_distillation instruction='Backwards: {}' steps=200
    python -m recipes.prompt_distillation --help

The teacher is the base model with the instruction in its prompt. The student is trained on the teacher's replies to
texts, but receives the texts without the instruction. So the prompts of the trained student are shorter.

What you should see: on unseen texts, the student's replies equal the teacher's in 0 % of the cases before training, and
in all cases after 150 steps. This takes a minute or two on one core.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import chz
import tinker

import tinkerloop
from recipes.arithmetic import reply_text
from recipes.command_line import run_from_command_line
from recipes.model_defaults import learning_rate_field, renderer_field
from tinkerloop.callbacks import LRSchedule
from tinkerloop.data import batches
from tinkerloop.loop import Loop
from tinkerloop.loop.schedules import linear, warmup
from tinkerloop.renderers import Renderer

SYLLABLES = [consonant + vowel for consonant in "bdgklmnprstw" for vowel in "aeiou"]


@chz.chz
class Config:
    model: str = chz.field(default="recipes/base", doc="Base model: a folder or a model name of the service.")
    renderer: str | None = renderer_field()
    service: str = chz.field(default="local", doc="Service to use: local, tinker, or a URL.")
    instruction: str = chz.field(default="Upper case: {}", doc="Instruction to the teacher; {} stands for the text.")
    texts: int = chz.field(default=240, doc="Number of texts to train on, with the teacher's replies.")
    test_texts: int = chz.field(default=40, doc="Number of texts held out for evaluation.")
    max_tokens: int = chz.field(default=64, doc="Largest number of tokens in a reply; a longer one is cut there.")
    steps: int = chz.field(default=150, doc="Number of optimizer steps.")
    batch_size: int = chz.field(default=16, doc="Texts per step.")
    learning_rate: float | None = learning_rate_field(2e-3)
    seed: int = chz.field(default=0, doc="Random seed for the texts, their order and the adapter.")


def make_texts(seed: int, count: int) -> list[str]:
    """Return `count` different texts. Each consists of one to three invented words."""
    rng = random.Random(f"{seed}/texts")
    texts: dict[str, None] = {}
    while len(texts) < count:
        texts[" ".join("".join(rng.choices(SYLLABLES, k=2)) for _ in range(rng.randint(1, 3)))] = None
    return list(texts)


def replies(sampler: Any, renderer: Renderer, prompts: Sequence[str], max_tokens: int) -> list[Any]:
    """Return the model's greedy reply to each prompt, as the sampled sequence with its stop reason."""
    params = tinker.SamplingParams(max_tokens=max_tokens, temperature=0.0, stop=renderer.get_stop_sequences())
    model_inputs = [renderer.build_generation_prompt([{"role": "user", "content": prompt}]) for prompt in prompts]
    futures = [sampler.sample(prompt, 1, params) for prompt in model_inputs]
    return [future.result().sequences[0] for future in futures]


def distilled_datum(renderer: Renderer, text: str, sampled: Sequence[int]) -> tinker.Datum:
    """Train the sampled tokens after the text alone: the stop token only where the teacher has sampled it."""
    prompt = renderer.build_generation_prompt([{"role": "user", "content": text}]).to_ints()
    return tinkerloop.make_datum([*prompt, *sampled], [0] * len(prompt) + [1] * len(sampled))


def main(config: Config) -> tuple[float, float]:
    service = tinkerloop.connect(config.service)
    renderer = tinkerloop.get_renderer(config.renderer, tinkerloop.get_tokenizer(config.model))
    texts = make_texts(config.seed, config.texts + config.test_texts)
    teacher = service.create_sampling_client(base_model=config.model)
    questions = [config.instruction.format(text) for text in texts]
    teacher_replies = replies(teacher, renderer, questions, config.max_tokens)
    print(f"the teacher: {questions[0]!r} -> {reply_text(renderer, teacher_replies[0].tokens)!r}")
    cut = sum(reply.stop_reason == "length" for reply in teacher_replies)
    if cut:
        print(f"{cut} of {len(texts)} replies were cut at {config.max_tokens} tokens; they are trained without an end")

    datums = [distilled_datum(renderer, text, one.tokens) for text, one in zip(texts, teacher_replies, strict=True)]
    train = datums[: -config.test_texts]
    unseen, expected = texts[-config.test_texts :], teacher_replies[-config.test_texts :]

    def agreement(sampler: Any) -> float:
        student_replies = replies(sampler, renderer, unseen, config.max_tokens)
        return sum(a.tokens == b.tokens for a, b in zip(student_replies, expected, strict=True)) / len(unseen)

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
    print(f"replies without the instruction that equal the teacher's with it: {before:.0%} before, {after:.0%} after")
    return before, after


if __name__ == "__main__":
    run_from_command_line(main)

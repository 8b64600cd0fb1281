"""Prompt distillation: train a model to follow an instruction that is not in its prompt.

    python -m recipes.prompt_distillation
    python -m recipes.prompt_distillation instruction='Backwards: {}' steps=200
    python -m recipes.prompt_distillation --help

The teacher is the model itself, with the instruction in its prompt. It replies once to every text. The student gets
the texts without the instruction. At each token of a reply, it is trained on the probabilities that the teacher gives
to its `top_k` most likely tokens. So the trained model does the same with shorter prompts.

The share of replies to unseen texts that equal the teacher's token for token is printed at the end, and is in
`metrics.jsonl` before and after training.

What you should see: the share rises from 0 % to 100 % with seed 0 and with seed 1.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import chz
import tinker

from recipes.command_line import run_from_command_line
from recipes.ending import end_with_score
from recipes.model_defaults import ModelOptions, learning_rate_field, service_and_renderer
from recipes.rewards import evaluate_rewards
from recipes.stored import stored
from recipes.teacher_replies import Scored, teacher_replies
from tinkerloop.callbacks import Checkpoint, LRSchedule, Preempt
from tinkerloop.data import batches
from tinkerloop.loop import Loop, Run, open_training_client, resolve
from tinkerloop.loop.schedules import linear, warmup
from tinkerloop.rollouts import Environment, Limits, distillation_datum, one_turn

SYLLABLES = [consonant + vowel for consonant in "bdgklmnprstw" for vowel in "aeiou"]


@chz.chz
class Config(ModelOptions):
    run: str = chz.field(default="runs/prompt_distillation", doc="Folder of the run. An interrupted run resumes.")
    instruction: str = chz.field(default="Upper case: {}", doc="Instruction to the teacher; {} stands for the text.")
    texts: int = chz.field(default=240, doc="Number of texts to train on, with the teacher's replies.")
    test_texts: int = chz.field(default=40, doc="Number of texts held out for evaluation.")
    max_tokens: int = chz.field(default=64, doc="Largest number of tokens in a reply; a longer one is cut there.")
    top_k: int = chz.field(default=4, doc="Number of the teacher's most likely tokens to train on at each position.")
    steps: int = chz.field(default=150, doc="Total number of optimizer steps.")
    batch_size: int = chz.field(default=16, doc="Texts per step.")
    learning_rate: float = learning_rate_field(2e-3)
    save_every: int = chz.field(default=30, doc="Save a checkpoint every this many steps.")
    seed: int = chz.field(default=0, doc="Random seed for the texts, their order and the adapter.")


def make_texts(seed: int, count: int) -> list[str]:
    """Return `count` different texts. Each consists of one to three invented words."""
    rng = random.Random(f"{seed}/texts")
    texts: dict[str, None] = {}
    while len(texts) < count:
        texts[" ".join("".join(rng.choices(SYLLABLES, k=2)) for _ in range(rng.randint(1, 3)))] = None
    return list(texts)


def main(config: Config) -> float:
    """Return the fraction of unseen texts to which the student replies as the teacher does."""
    service, renderer = service_and_renderer(config)
    texts = make_texts(config.seed, config.texts + config.test_texts)

    def prompts(texts: Sequence[str]) -> list[tinker.ModelInput]:
        return [renderer.build_generation_prompt([{"role": "user", "content": text}]) for text in texts]

    def teach() -> list[Scored]:
        teacher = resolve(service.create_sampling_client(base_model=config.model))
        params = tinker.SamplingParams(max_tokens=config.max_tokens, temperature=0.0)
        questions = prompts([config.instruction.format(text) for text in texts])
        return teacher_replies(teacher, renderer, questions, params, top_k=config.top_k)

    with Run(config.run, config=chz.asdict(config)) as run:
        replies = stored(run.folder / "teacher_replies.json", teach)
        print(f"the teacher replies to {texts[0]!r}: {renderer.parse_response(replies[0][0]).text!r}")
        stop = renderer.get_stop_sequences()
        if cut := sum(reply[-1] not in stop for reply, _ in replies):
            print(f"{cut} of {len(texts)} replies were cut at {config.max_tokens} tokens and trained without an end")
        datums = [distillation_datum(prompt, *reply) for prompt, reply in zip(prompts(texts), replies, strict=True)]
        expected = dict(zip(texts, (reply for reply, _ in replies), strict=True))

        def environment(text: str, seed: int) -> Environment:
            """Return the environment that rewards the student for the tokens of the teacher's reply."""
            message = [{"role": "user", "content": text}]
            return one_turn(message, lambda reply: float(list(reply.ids) == expected[text]))

        record = run.checkpoints.latest()
        client = open_training_client(service, record, base_model=config.model, rank=32, seed=config.seed)
        loop = Loop(
            client,
            batches(datums[: config.texts], config.batch_size, epochs=None, shuffle=config.seed),
            steps=config.steps,
            callbacks=[
                LRSchedule(warmup(5, linear(config.learning_rate, 0.0, config.steps))),
                evaluate_rewards(
                    environment, texts[config.texts :], renderer, max_tokens=config.max_tokens, limits=Limits()
                ),
                Checkpoint(every=config.save_every, keep_last=2),
                Preempt(),
            ],
            sinks=[run.metrics],
            checkpoints=run.checkpoints,
            record=record,
        )
        for result in loop.steps():
            if result.step % 10 == 0:
                print(f"step {result.step:3d}  cross-entropy {result.loss:.3f}")
        return end_with_score(run, loop.summary, "test/reward", "replies to unseen texts that equal the teacher's")


if __name__ == "__main__":
    run_from_command_line(main)

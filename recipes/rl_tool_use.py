"""Reinforcement learning over several turns: a model learns to use a dictionary.

    python -m recipes.rl_tool_use
    python -m recipes.rl_tool_use staleness=1 run=runs/stale
    python -m recipes.rl_tool_use --help

    user       Translate gabo
    assistant  <tool_call> {"name": "dictionary", "arguments": {"word": "gabo"}} </tool_call>
    tool       tine
    assistant  tine

The tool is a plain function. Its schema comes from its signature, and its errors become tool results that the model
sees. The words and their translations are invented, so nobody can know them without the tool. The reward is 1 if the
last reply is the translation, and 0 otherwise: nobody tells the model to look up the right word or to copy the result.

Rewards teach only a model that is right sometimes: if the reward of the first steps is 0, pass a larger `start_steps`.
The mean reward of the sampled episodes is printed after each step. The share of correct replies to unseen questions is
printed at the end, and is in `metrics.jsonl` before and after.

What you should see: the share rises from 72 % after the supervised start to 100 % with seed 0, and from 82 % to 98 %
with seed 1. With seed 0 the mean reward rises from 0.27 (first ten steps) to 0.67 (last ten steps).
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import chz
import tinker

from recipes.command_line import run_from_command_line
from recipes.ending import end_with_score
from recipes.model_defaults import (
    NOISY_LOSS_SHARE,
    SMALL,
    ModelOptions,
    held_out_field,
    learning_rate_field,
    service_and_renderer,
)
from recipes.rewards import evaluate_rewards, mean_reward
from recipes.supervised_start import open_client
from tinkerloop.callbacks import Checkpoint, LRSchedule, Preempt, Timing
from tinkerloop.data import conversation_to_datum
from tinkerloop.loop import Loop, Run
from tinkerloop.loop.schedules import constant, warmup
from tinkerloop.renderers import Parsed, Renderer
from tinkerloop.rollouts import Environment, Limits, PolicyStats, Rollouts, Start, Tool, ToolEnvironment

Task = tuple[str, str]
"""A word and its translation."""

SYLLABLES = [consonant + vowel for consonant in "bdgklmnprstw" for vowel in "aeiou"]
LIMITS = Limits(max_turns=3)
MAX_TOKENS = 80


@chz.chz
class Config(ModelOptions):
    run: str = chz.field(default="runs/rl_tool_use", doc="Folder of the run. A run that was interrupted resumes.")
    words: int = chz.field(default=1000, doc="Number of words in the dictionary.")
    start_steps: int = chz.field(default=66, doc="Number of supervised steps before reinforcement learning.")
    start_batch: int = chz.field(default=16, doc="Conversations in a supervised step.")
    start_conversations: int = chz.field(default=256, doc="Number of conversations of the supervised start.")
    steps: int = chz.field(default=40, doc="Total number of reinforcement-learning steps.")
    questions: int = chz.field(default=6, doc="Questions per step.")
    group_size: int = chz.field(default=6, doc="Episodes to sample for each question.")
    staleness: int = chz.field(default=0, doc="How many steps sampling is ahead of training.")
    learning_rate: float = learning_rate_field(5e-4, "Learning rate", share=NOISY_LOSS_SHARE)
    lora_rank: int = chz.field(default=32, doc="Rank of the LoRA adapter.")
    test_questions: int = held_out_field(50, "Number of questions held out for evaluation.")
    save_every: int = chz.field(default=10, doc="Save a checkpoint every this many steps.")
    seed: int = chz.field(default=0, doc="Random seed for the adapter, the questions and the samples.")


def make_tasks(seed: int, count: int) -> list[Task]:
    """Return `count` invented words with their translations, which are the same words in another order."""
    rng = random.Random(f"{seed}/tasks")
    words = rng.sample([first + second for first in SYLLABLES for second in SYLLABLES], count)
    return list(zip(words, rng.sample(words, count), strict=True))


def question(task: Task) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"Translate {task[0]}"}]


def reward(task: Task, reply: Parsed) -> float:
    """Return the reward of the last reply."""
    return float(reply.text == task[1])


def make_dictionary(tasks: Sequence[Task]) -> Tool:
    """Return the tool that translates the words of these tasks."""
    translations = dict(tasks)

    def dictionary(word: str) -> str:
        """Translate a word.

        Args:
            word: the word.
        """
        if word not in translations:
            raise ValueError(f"no word {word}")
        return translations[word]

    return Tool.from_function(dictionary)


class Translation(ToolEnvironment):
    """The environment of one question.

    The prompt has no declaration of the tool if `declare` is false: for the small base model, which has learned from
    short texts only, the declaration is too long. It learns the form of a call from the supervised start.
    """

    def __init__(self, task: Task, dictionary: Tool, declare: bool):
        super().__init__(question(task), [dictionary], lambda reply: reward(task, reply))
        self._declare = declare

    async def start(self) -> Start:
        start = await super().start()
        return start if self._declare else Start(start.messages)


def demonstration(task: Task, renderer: Renderer, dictionary: Tool, declare: bool) -> tinker.Datum:
    """Return the datum of a conversation in which the dictionary is used."""
    word, translation = task
    call = {"name": "dictionary", "arguments": {"word": word}}
    messages = [
        *question(task),
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]},
        {"role": "tool", "name": "dictionary", "content": translation},
        {"role": "assistant", "content": translation},
    ]
    return conversation_to_datum(messages, renderer, tools=[dictionary.declaration] if declare else None)


def main(config: Config) -> float:
    """Return the fraction of the held-out questions that the trained model answers correctly."""
    service, renderer = service_and_renderer(config)
    declare = config.model not in SMALL
    tasks = make_tasks(config.seed, config.words)
    dictionary = make_dictionary(tasks)
    test, others = tasks[: config.test_questions], tasks[config.test_questions :]
    shown, train = others[: config.start_conversations], others[config.start_conversations :]
    demonstrations = [demonstration(task, renderer, dictionary, declare) for task in shown]

    def environment(task: Task, seed: int) -> Environment:
        return Translation(task, dictionary, declare)

    with Run(config.run, config=chz.asdict(config)) as run:
        client, record = open_client(service, run, demonstrations, config)
        rollouts = Rollouts(
            client,
            train,
            environment,
            renderer,
            groups=config.questions,
            group_size=config.group_size,
            sampling_params=tinker.SamplingParams(max_tokens=MAX_TOKENS),
            log=run.folder / "rollouts.jsonl",
            constant_groups="keep",
            staleness=config.staleness,
            limits=LIMITS,
            seed=config.seed,
        )
        loop = Loop(
            client,
            rollouts,
            steps=config.steps,
            loss_fn="importance_sampling",
            callbacks=[
                LRSchedule(warmup(5, constant(config.learning_rate))),
                PolicyStats(rollouts),
                evaluate_rewards(environment, test, renderer, max_tokens=MAX_TOKENS, limits=LIMITS),
                Checkpoint(every=config.save_every, keep_last=2),
                Timing(file=run.folder / "timings.jsonl"),
                Preempt(),
            ],
            sinks=[run.metrics],
            checkpoints=run.checkpoints,
            record=record,
            ahead=0,
        )
        for result in loop.steps():
            print(f"step {result.step:3d}  reward {mean_reward(rollouts):.2f}")
        return end_with_score(run, loop.summary, "test/reward", "unseen questions answered correctly")


if __name__ == "__main__":
    run_from_command_line(main)

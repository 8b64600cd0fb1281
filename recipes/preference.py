"""Learning from preferences: train a reward model on pairs of replies, then use it as the reward.

    python -m recipes.preference
    python -m recipes.preference pairs=60 run=runs/few_pairs
    python -m recipes.preference --help

The three usual stages, each with its own adapter or steps on the same small model:

1. Supervised start: the model learns to say a word in three ways, with capitals, capitalised, or in small letters.
2. Reward model: somebody has compared two of these replies to each question, and prefers capitals. The model learns to
   answer "yes" for the better reply of each pair and "no" for the worse. Its probability of "yes" is the reward.
3. Reinforcement learning on this reward. The preference itself is only used to evaluate. The reward model has only seen
   replies that say the word, and is fooled by capitals that do not: each token is therefore penalised by how much less
   likely the policy of stage 1 finds it (`reference_kl`). Try `kl_penalty=0` to see the difference.

The share of unseen pairs about which the reward model is right is printed first. The share of unseen words to which the
greedy reply is the preferred one is printed at the end, and is in `metrics.jsonl` before and after.

What you should see: the reward model is right about 98 to 100 % of the pairs. The share of preferred replies rises
from 33 % to 93 % with seed 0, and from 40 % to 95 % with seed 1. Without the penalty it falls to 0 % with seed 0,
although the mean reward rises to 0.9.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence

import chz
import numpy as np
import tinker

from recipes.command_line import run_from_command_line
from recipes.ending import end_with_score
from recipes.model_defaults import (
    NOISY_LOSS_SHARE,
    ModelOptions,
    held_out_field,
    learning_rate_field,
    service_and_renderer,
)
from recipes.rewards import evaluate_rewards, mean_reward
from recipes.supervised_start import open_client, trained_sampler
from tinkerloop.callbacks import Checkpoint, LRSchedule, Preempt, Timing
from tinkerloop.clients import SamplingClientLike
from tinkerloop.data import conversation_to_datum
from tinkerloop.loop import Loop, Run
from tinkerloop.loop.futures import awaitable
from tinkerloop.loop.schedules import constant, warmup
from tinkerloop.renderers import Parsed, Renderer
from tinkerloop.rollouts import Environment, Limits, PolicyStats, Rollouts, one_turn, reference_kl

MAX_TOKENS = 12
STYLES = (str.lower, str.capitalize, str.upper)  # from the worst to the best


@chz.chz
class Config(ModelOptions):
    run: str = chz.field(default="runs/preference", doc="Folder of the run. A run that was interrupted resumes.")
    pairs: int = chz.field(default=240, doc="Number of pairs to train the reward model on.")
    test_pairs: int = held_out_field(60, "Number of pairs and words held out for evaluation.")
    start_steps: int = chz.field(default=40, doc="Number of supervised steps of the policy.")
    start_batch: int = chz.field(default=32, doc="Conversations in a supervised step.")
    reward_steps: int = chz.field(default=60, doc="Number of supervised steps of the reward model.")
    steps: int = chz.field(default=30, doc="Total number of reinforcement-learning steps.")
    questions: int = chz.field(default=8, doc="Questions per step.")
    group_size: int = chz.field(default=8, doc="Replies to sample for each question.")
    staleness: int = chz.field(default=0, doc="How many steps sampling is ahead of training.")
    learning_rate: float = learning_rate_field(5e-4, "Learning rate of reinforcement learning", share=NOISY_LOSS_SHARE)
    kl_penalty: float = chz.field(default=0.1, doc="Factor of the penalty for leaving the supervised policy.")
    lora_rank: int = chz.field(default=32, doc="Rank of the LoRA adapters.")
    save_every: int = chz.field(default=10, doc="Save a checkpoint every this many steps.")
    seed: int = chz.field(default=0, doc="Random seed for the words, the pairs, the adapters and the samples.")


def question(word: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"Say {word}"}]


def judgement(word: str, reply: str) -> list[dict[str, str]]:
    """Return the question to the reward model."""
    return [{"role": "user", "content": f"Say {word}\n{reply}\nGood?"}]


def make_pairs(seed: int, count: int) -> list[tuple[str, str, str]]:
    """Return pairs of replies as (word, better reply, worse reply)."""
    pairs = []
    for number in range(count):
        chance = random.Random(f"{seed}/pairs/{number}")
        word = "".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(3, 7)))
        worse, better = sorted(chance.sample(range(len(STYLES)), 2))
        pairs.append((word, STYLES[better](word), STYLES[worse](word)))
    return pairs


class RewardModel:
    def __init__(self, client: SamplingClientLike, renderer: Renderer):
        self._client, self._renderer = client, renderer

    async def probability(self, word: str, reply: str) -> float:
        """Return the probability of "yes": the estimated probability that the reply is the better one of a pair."""
        answer = [*judgement(word, reply), {"role": "assistant", "content": "yes"}]
        tokens, weights = self._renderer.build_supervised_example(answer)
        logprobs = await awaitable(self._client.compute_logprobs(tokens))
        return math.exp(math.fsum(logprobs[i] for i in np.flatnonzero(weights)))

    async def share_right(self, pairs: Sequence[tuple[str, str, str]]) -> float:
        """Return the fraction of pairs whose better reply gets the higher probability."""
        better, worse = [
            await asyncio.gather(*(self.probability(pair[0], pair[place]) for pair in pairs)) for place in (1, 2)
        ]
        return float(np.mean(np.greater(better, worse)))


def main(config: Config) -> float:
    """Return the fraction of unseen words for which the greedy reply is the preferred one."""
    service, renderer = service_and_renderer(config)
    pairs = make_pairs(config.seed, config.pairs + config.test_pairs)
    train, test = pairs[: config.pairs], pairs[config.pairs :]

    def datum(messages: list[dict[str, str]], reply: str) -> tinker.Datum:
        return conversation_to_datum([*messages, {"role": "assistant", "content": reply}], renderer)

    replies = [datum(question(word), reply) for word, *both in train for reply in both]
    verdicts = [
        datum(judgement(word, reply), verdict)
        for word, *both in train
        for reply, verdict in zip(both, ("yes", "no"), strict=True)
    ]

    with Run(config.run, config=chz.asdict(config)) as run:
        of_judge = chz.replace(config, start_steps=config.reward_steps)
        judge = RewardModel(trained_sampler(service, run.folder / "reward_model", verdicts, of_judge), renderer)
        print(f"the reward model is right about {asyncio.run(judge.share_right(test)):.0%} of {len(test)} unseen pairs")

        def judged(word: str, seed: int) -> Environment:
            async def reward(reply: Parsed) -> float:
                return await judge.probability(word, reply.text)

            return one_turn(question(word), reward)

        def preferred(word: str, seed: int) -> Environment:
            return one_turn(question(word), lambda reply: float(reply.text == STYLES[-1](word)))

        client, record = open_client(service, run, replies, config)
        rollouts = Rollouts(
            client,
            [word for word, *_ in train],
            judged,
            renderer,
            groups=config.questions,
            group_size=config.group_size,
            sampling_params=tinker.SamplingParams(max_tokens=MAX_TOKENS),
            log=run.folder / "rollouts.jsonl",
            advantages=reference_kl(config.kl_penalty),
            reference=trained_sampler(service, run.folder / "start", replies, config),
            staleness=config.staleness,
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
                evaluate_rewards(
                    preferred, [word for word, *_ in test], renderer, max_tokens=MAX_TOKENS, limits=Limits()
                ),
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
        return end_with_score(run, loop.summary, "test/reward", "preferred replies to unseen words")


if __name__ == "__main__":
    run_from_command_line(main)

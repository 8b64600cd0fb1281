"""Reinforcement learning with a reward for each turn: a model learns to guess a number by halving.

    python -m recipes.rl_guessing_game
    python -m recipes.rl_guessing_game largest=31 max_turns=5 run=runs/harder
    python -m recipes.rl_guessing_game --help

    user       Guess 1-15.
    assistant  8
    user       higher
    assistant  12
    user       lower
    assistant  10

The reward of a guess is the information that it gives: log(possible before / possible after) / log(largest), where
"possible" counts the numbers that fit all answers so far. The rewards of a game in which the number is found sum to 1,
in whichever way it is found. With four guesses, only halving always finds one of 15 numbers. Each guess is credited
with its own reward and a discounted share of the later ones, compared with the mean of the group at the same turn.

What you should see: the model begins with random guesses, and greedily always with the same ones. The share of the
information that greedy games find rises from 35 % to 85 % with seed 0, and from 23 % to 86 % with seed 1. It is printed
at the end, and is in `metrics.jsonl` before and after.
"""

from __future__ import annotations

import math
import random

import chz
import tinker

from recipes.command_line import run_from_command_line
from recipes.ending import end_with_score
from recipes.model_defaults import NOISY_LOSS_SHARE, ModelOptions, learning_rate_field, service_and_renderer
from recipes.rewards import evaluate_rewards, mean_reward
from recipes.supervised_start import open_client
from tinkerloop.callbacks import Checkpoint, LRSchedule, Preempt, Timing
from tinkerloop.data import conversation_to_datum
from tinkerloop.loop import Loop, Run
from tinkerloop.loop.schedules import constant, warmup
from tinkerloop.renderers import Parsed, Renderer
from tinkerloop.rollouts import Environment, Limits, Outcome, PolicyStats, Rollouts, Start, per_turn

MAX_TOKENS = 4


@chz.chz
class Config(ModelOptions):
    run: str = chz.field(default="runs/rl_guessing_game", doc="Folder of the run. A run that was interrupted resumes.")
    largest: int = chz.field(default=15, doc="The number to guess is from 1 to this one.")
    max_turns: int = chz.field(default=4, doc="Guesses in a game.")
    start_steps: int = chz.field(default=40, doc="Number of supervised steps, on games with random guesses.")
    start_batch: int = chz.field(default=32, doc="Conversations in a supervised step.")
    steps: int = chz.field(default=60, doc="Total number of reinforcement-learning steps.")
    games: int = chz.field(default=8, doc="Numbers to guess per step.")
    group_size: int = chz.field(default=8, doc="Games to sample for each number.")
    discount: float = chz.field(default=0.5, doc="How much the reward of a turn counts one turn earlier, from 0 to 1.")
    staleness: int = chz.field(default=0, doc="How many steps sampling is ahead of training.")
    learning_rate: float = learning_rate_field(1e-3, "Learning rate", share=NOISY_LOSS_SHARE)
    lora_rank: int = chz.field(default=32, doc="Rank of the LoRA adapter.")
    save_every: int = chz.field(default=10, doc="Save a checkpoint every this many steps.")
    seed: int = chz.field(default=0, doc="Random seed for the adapter, the games and the samples.")


class GuessingGame:
    def __init__(self, secret: int, largest: int):
        self._secret, self._largest = secret, largest
        self._possible = range(1, largest + 1)

    def start(self) -> Start:
        return Start([{"role": "user", "content": f"Guess 1-{self._largest}."}])

    def step(self, reply: Parsed) -> Outcome:
        return self.answer(reply.text.strip())

    def answer(self, text: str) -> Outcome:
        guess = int(text) if text.isdecimal() and text.isascii() else None
        if guess == self._secret:
            possible, answer = range(guess, guess + 1), "found"
        elif guess is None:
            possible, answer = self._possible, "a number, please"
        elif guess < self._secret:
            possible, answer = range(max(guess + 1, self._possible.start), self._possible.stop), "higher"
        else:
            possible, answer = range(self._possible.start, min(guess, self._possible.stop)), "lower"
        information = math.log(len(self._possible) / len(possible)) / math.log(self._largest)
        self._possible = possible
        return Outcome(information, [{"role": "user", "content": answer}], done=guess == self._secret)


def random_game(number: int, config: Config, renderer: Renderer) -> tinker.Datum:
    """Return the datum of a game with random guesses: it shows the form of a game, and nothing about how to guess."""
    chance = random.Random(f"{config.seed}/random game/{number}")
    game = GuessingGame(chance.randint(1, config.largest), config.largest)
    messages = [*game.start().messages]
    for _ in range(config.max_turns):
        guess = str(chance.randint(1, config.largest))
        outcome = game.answer(guess)
        messages += [{"role": "assistant", "content": guess}, *outcome.messages]
        if outcome.done:
            break
    return conversation_to_datum(messages[:-1], renderer)


def main(config: Config) -> float:
    """Return the mean reward of greedy games: the share of the information that the trained model finds."""
    service, renderer = service_and_renderer(config)
    secrets, limits = range(1, config.largest + 1), Limits(max_turns=config.max_turns)
    shown = [random_game(number, config, renderer) for number in range(128)]

    def environment(secret: int, seed: int) -> Environment:
        return GuessingGame(secret, config.largest)

    with Run(config.run, config=chz.asdict(config)) as run:
        client, record = open_client(service, run, shown, config)
        rollouts = Rollouts(
            client,
            secrets,
            environment,
            renderer,
            groups=config.games,
            group_size=config.group_size,
            sampling_params=tinker.SamplingParams(max_tokens=MAX_TOKENS),
            log=run.folder / "rollouts.jsonl",
            advantages=per_turn(discount=config.discount),
            constant_groups="keep",
            staleness=config.staleness,
            limits=limits,
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
                evaluate_rewards(environment, secrets, renderer, max_tokens=MAX_TOKENS, limits=limits),
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
        return end_with_score(run, loop.summary, "test/reward", "information found in greedy games")


if __name__ == "__main__":
    run_from_command_line(main)

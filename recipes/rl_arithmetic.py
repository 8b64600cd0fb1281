"""Reinforcement learning with a verifiable reward: groups of answers, centred rewards, and a policy loss.

    python -m recipes.rl_arithmetic
    python -m recipes.rl_arithmetic loss_fn=ppo staleness=1 run=runs/rl_ppo
    python -m recipes.rl_arithmetic --help

Each step samples `group_size` answers to each of `questions` questions. The advantage of an answer is its reward minus
the mean reward of its group. A group whose answers are all right or all wrong would change nothing; one of a further
question takes its place. With `staleness=1` the answers of the next step are sampled while this step is trained.

The mean reward of the sampled answers is printed after each step. The share of the hundred sums that are answered
correctly with greedy sampling is printed at the end, and is in `metrics.jsonl` before and after.

What you should see: the share rises from 66 % after the supervised start to 86 % with seed 0, and from 57 % to 82 %
with seed 1. The mean reward rises from 0.47 (first ten steps) to 0.60 (last ten steps).
"""

from __future__ import annotations

import chz
import tinker

from recipes.arithmetic import ALL, datums, environment
from recipes.command_line import run_from_command_line
from recipes.ending import end_with_score
from recipes.model_defaults import NOISY_LOSS_SHARE, ModelOptions, learning_rate_field, service_and_renderer
from recipes.rewards import evaluate_rewards, mean_reward
from recipes.supervised_start import open_client
from tinkerloop.callbacks import Checkpoint, LRSchedule, Preempt, Timing
from tinkerloop.loop import Loop, Run
from tinkerloop.loop.schedules import constant, warmup
from tinkerloop.rollouts import Limits, PolicyStats, Rollouts


@chz.chz
class Config(ModelOptions):
    run: str = chz.field(default="runs/rl_arithmetic", doc="Folder of the run. A run that was interrupted resumes.")
    start_steps: int = chz.field(default=90, doc="Number of supervised steps before reinforcement learning.")
    start_batch: int = chz.field(default=32, doc="Conversations in a supervised step.")
    steps: int = chz.field(default=100, doc="Total number of reinforcement-learning steps.")
    questions: int = chz.field(default=16, doc="Questions per step.")
    group_size: int = chz.field(default=8, doc="Answers to sample for each question.")
    staleness: int = chz.field(default=0, doc="How many steps sampling is ahead of training.")
    loss_fn: str = chz.field(default="importance_sampling", doc="Loss function: importance_sampling, ppo or cispo.")
    learning_rate: float = learning_rate_field(3e-4, "Learning rate", share=NOISY_LOSS_SHARE)
    lora_rank: int = chz.field(default=32, doc="Rank of the LoRA adapter.")
    save_every: int = chz.field(default=20, doc="Save a checkpoint every this many steps.")
    seed: int = chz.field(default=0, doc="Random seed for the adapter, the questions and the samples.")


def main(config: Config) -> float:
    """Return the fraction of all sums that the trained model answers correctly with greedy sampling."""
    service, renderer = service_and_renderer(config)

    with Run(config.run, config=chz.asdict(config)) as run:
        client, record = open_client(service, run, datums(renderer), config)
        rollouts = Rollouts(
            client,
            ALL,
            environment,
            renderer,
            groups=config.questions,
            group_size=config.group_size,
            sampling_params=tinker.SamplingParams(max_tokens=6),
            log=run.folder / "rollouts.jsonl",
            loss_fn=config.loss_fn,
            staleness=config.staleness,
            seed=config.seed,
        )
        loop = Loop(
            client,
            rollouts,
            steps=config.steps,
            loss_fn=config.loss_fn,
            callbacks=[
                LRSchedule(warmup(5, constant(config.learning_rate))),
                PolicyStats(rollouts),
                evaluate_rewards(environment, ALL, renderer, max_tokens=6, limits=Limits()),
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
        return end_with_score(run, loop.summary, "test/reward", "sums answered correctly")


if __name__ == "__main__":
    run_from_command_line(main)

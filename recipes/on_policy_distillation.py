"""On-policy distillation: the teacher scores every token that the student samples; the student trains on the scores.

    python -m recipes.on_policy_distillation
    python -m recipes.on_policy_distillation steps=80 staleness=1 run=runs/longer
    python -m recipes.on_policy_distillation --help

The teacher is the base model after supervised training on sums. The student is the base model after shorter training of
the same kind. The student samples answers. The advantage of each sampled token is log p_teacher - log p_student
(`reverse_kl`). The mean of the negative advantages estimates the reverse KL divergence, which training lowers (Agarwal
et al., "On-Policy Distillation of Language Models", 2024). The student trains only on answers that it has sampled, and
never sees a correct answer.

The divergence per token is printed after each step. The share of the hundred sums that the student answers correctly
with greedy sampling is printed at the end, and is in `metrics.jsonl` before and after distillation.

What you should see: the divergence falls, and the share rises from 58 % to 63 % with seed 0, and from 56 % to 75 % with
seed 1.
"""

from __future__ import annotations

import chz
import numpy as np
import tinker

from recipes.arithmetic import ALL, datums, environment
from recipes.command_line import run_from_command_line
from recipes.ending import end_with_score
from recipes.model_defaults import NOISY_LOSS_SHARE, ModelOptions, learning_rate_field, service_and_renderer
from recipes.rewards import evaluate_rewards
from recipes.supervised_start import open_client, trained_sampler
from tinkerloop.callbacks import Checkpoint, LRSchedule, Preempt, Timing
from tinkerloop.loop import Loop, Run
from tinkerloop.loop.schedules import constant, warmup
from tinkerloop.rollouts import Limits, PolicyStats, Rollouts, reverse_kl


@chz.chz
class Config(ModelOptions):
    run: str = chz.field(default="runs/on_policy_distillation", doc="Folder of the run. An interrupted run resumes.")
    teacher_steps: int = chz.field(default=150, doc="Number of supervised steps that train the teacher.")
    start_steps: int = chz.field(default=80, doc="Number of supervised steps of the student, before distillation.")
    start_batch: int = chz.field(default=32, doc="Conversations in a supervised step.")
    steps: int = chz.field(default=60, doc="Total number of distillation steps.")
    questions: int = chz.field(default=16, doc="Questions per step.")
    group_size: int = chz.field(default=8, doc="Answers to sample for each question.")
    staleness: int = chz.field(default=0, doc="How many steps sampling is ahead of training.")
    learning_rate: float = learning_rate_field(5e-4, "Learning rate", share=NOISY_LOSS_SHARE)
    lora_rank: int = chz.field(default=32, doc="Rank of the LoRA adapters.")
    save_every: int = chz.field(default=10, doc="Save a checkpoint every this many steps.")
    seed: int = chz.field(default=0, doc="Random seed for the adapters, the questions and the samples.")


def divergence(rollouts: Rollouts) -> float:
    """Return the estimate of the reverse KL divergence per token, from the newest batch."""
    assert rollouts.delivered is not None
    return -float(np.mean(np.concatenate([a for group in rollouts.delivered.groups for a in reverse_kl(group)])))


def main(config: Config) -> float:
    """Return the fraction of all sums that the distilled student answers correctly with greedy sampling."""
    service, renderer = service_and_renderer(config)

    with Run(config.run, config=chz.asdict(config)) as run:
        of_teacher = chz.replace(config, start_steps=config.teacher_steps)
        teacher = trained_sampler(service, run.folder / "teacher", datums(renderer), of_teacher)
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
            advantages=reverse_kl,
            reference=teacher,
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
            print(f"step {result.step:3d}  reverse KL per token {divergence(rollouts):.3f}")
        return end_with_score(run, loop.summary, "test/reward", "sums answered correctly")


if __name__ == "__main__":
    run_from_command_line(main)

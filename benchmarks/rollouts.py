"""Compare reinforcement learning with our loop and with the Cookbook's on a simulated remote service.

Two things are measured: the wall clock per step with the share of time in which the service's training side works, and
our own processor time per trajectory of 8 turns.

    python -m benchmarks.rollouts [--cookbook FOLDER]

FOLDER contains tinker-cookbook and the packages that its loop for reinforcement learning imports:
    pip install --no-deps --target FOLDER tinker-cookbook blobfile lxml termcolor
Without --cookbook, only our figures are printed. The benchmark needs no GPU and no API key: `simulated.py` simulates
the service.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import io
import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chz
import tinker

from benchmarks.simulated import Answer, Sampler, SimulatedService, cookbook_main
from tinkerloop.callbacks import Checkpoint
from tinkerloop.loop import Checkpoints, Loop, open_training_client
from tinkerloop.renderers import Renderer, get_renderer
from tinkerloop.rollouts import Outcome, PolicyStats, Rollouts, Start, one_turn, policy_datums, run_episode
from tinkerloop.tokenizers import get_tokenizer

RTT, SAMPLE, STEP = 0.05, 0.4, 0.25
"""Seconds of the network round trip, of one sample, and of the forward_backward and optim_step of one training step."""
GROUPS, GROUP_SIZE, MAX_TOKENS, TURNS = 4, 4, 16, 8


def renderer() -> Renderer:
    return get_renderer("qwen3_instruct", get_tokenizer("tiny"))


def score(ids: list[int]) -> float:
    return sum(ids) % 7


def ours(service: SimulatedService, folder: Path, steps: int, staleness: int) -> None:
    checkpoints = Checkpoints(folder)
    client = open_training_client(service, None)

    async def reward(reply: Any) -> float:
        return score(reply.ids)

    async def environment(task: int, seed: int) -> Any:
        return one_turn([{"role": "user", "content": f"task {task}"}], reward)

    rollouts = Rollouts(
        client,
        range(GROUPS * steps),
        environment,
        renderer(),
        groups=GROUPS,
        group_size=GROUP_SIZE,
        sampling_params=tinker.SamplingParams(max_tokens=MAX_TOKENS),
        log=folder / "rollouts.jsonl",
        staleness=staleness,
        constant_groups="keep",
    )
    Loop(
        client,
        rollouts,
        steps=steps,
        callbacks=[PolicyStats(rollouts), Checkpoint(every=10**9)],
        checkpoints=checkpoints,
        loss_fn="importance_sampling",
    ).run()
    rollouts.close()


def cookbook(service: SimulatedService, folder: Path, steps: int, staleness: int) -> None:
    """Run the Cookbook's loop: synchronous for staleness 0, else asynchronous and up to that many steps off policy."""
    from tinker_cookbook.rl import train  # pyright: ignore[reportMissingImports]
    from tinker_cookbook.rl.types import (  # pyright: ignore[reportMissingImports]
        Env,
        EnvGroupBuilder,
        RLDataset,
        RLDatasetBuilder,
        StepResult,
    )

    chat = renderer()

    class Task(Env):
        def __init__(self, number: int):
            self.number = number

        async def initial_observation(self) -> Any:
            messages = [{"role": "user", "content": f"task {self.number}"}]
            return chat.build_generation_prompt(messages), chat.get_stop_sequences()

        async def step(self, action: Any, *, extra: Any = None) -> Any:
            chat.parse_response(action)
            return StepResult(
                reward=score(action),
                episode_done=True,
                next_observation=tinker.ModelInput.empty(),
                next_stop_condition=chat.get_stop_sequences(),
            )

    class Builder(EnvGroupBuilder):
        def __init__(self, number: int):
            self.number = number

        async def make_envs(self) -> Any:
            return [Task(self.number) for _ in range(GROUP_SIZE)]

    class Data(RLDataset):
        def get_batch(self, index: int) -> Any:
            return [Builder(index * GROUPS + slot) for slot in range(GROUPS)]

        def __len__(self) -> int:
            return steps

    @chz.chz
    class DataBuilder(RLDatasetBuilder):
        async def __call__(self) -> Any:
            return Data(), None

    off_policy = train.AsyncConfig(
        max_steps_off_policy=staleness, groups_per_batch=GROUPS, loss_fn="importance_sampling"
    )
    config = train.Config(
        learning_rate=1e-4,
        dataset_builder=DataBuilder(),
        model_name="tiny",
        recipe_name="benchmark",
        max_tokens=MAX_TOKENS,
        log_path=str(folder),
        eval_every=0,
        save_every=0,
        async_config=off_policy if staleness else None,
        num_groups_to_log=0,
        rollout_json_export=True,
    )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        asyncio.run(cookbook_main(service, "rl")(config))


def wall_clock(with_cookbook: bool, steps: int, scale: float, rounds: int) -> None:
    print(
        f"\nTime per step and busy share of the training side over {steps} steps of {GROUPS * GROUP_SIZE} episodes;\n"
        f"round trip {RTT * scale:.3f} s, sampling {SAMPLE * scale:.3f} s, step {STEP * scale:.3f} s; medians of "
        f"{rounds} rounds. Ideal: what the arithmetic of the service allows."
    )
    print(f"{'':34}{'s / step':>10}{'ideal':>10}{'ratio':>8}{'busy':>8}")
    runs: list[tuple[str, Callable[..., None], int, bool]] = [
        ("ours, staleness 0", ours, 0, True),
        ("ours, staleness 0, tinker < 0.38", ours, 0, False),
        ("ours, staleness 1", ours, 1, True),
        ("ours, staleness 1, tinker < 0.38", ours, 1, False),
    ]
    if with_cookbook:
        runs += [("Cookbook, sync", cookbook, 0, True), ("Cookbook, one step off-policy", cookbook, 1, True)]
    results: dict[str, list[tuple[float, float]]] = {name: [] for name, *_ in runs}
    for _ in range(rounds):
        for name, run, staleness, has_futures in runs:
            service = SimulatedService(
                rtt=RTT * scale, step=STEP * scale, save=STEP * scale, sample=SAMPLE * scale,
                has_future_snapshots=has_futures,
            )  # fmt: skip
            with tempfile.TemporaryDirectory() as folder:
                run(service, Path(folder), steps, staleness)
            # With staleness 1, short and long steps alternate: an even number of them is measured.
            results[name].append(service.between_steps(skip=1 + steps % 2))
    for name, _, staleness, _ in runs:
        seconds, busy = (statistics.median(column) for column in zip(*results[name], strict=True))
        # A batch needs a step, a snapshot of its weights and a sample; with staleness k, k + 1 batches are under way.
        ideal = scale * max((STEP + RTT + SAMPLE + RTT) / (staleness + 1), STEP)
        print(f"{name:34}{seconds:10.3f}{ideal:10.3f}{seconds / ideal:8.2f}{busy:8.1%}")


# --- our own processor time ---


class Plain:
    """An environment of 8 turns with plain methods."""

    def __init__(self) -> None:
        self.turns = 0

    def start(self) -> Start:
        return Start([{"role": "user", "content": "Guess a number from 1 to 9."}])

    def step(self, reply: Any) -> Outcome:
        self.turns += 1
        if self.turns == TURNS:
            return Outcome(1.0, done=True)
        return Outcome(0.0, [{"role": "user", "content": "Wrong. Guess again."}])


class Coroutines(Plain):
    """The same with coroutine functions."""

    async def start(self) -> Start:  # type: ignore[override]
        return super().start()

    async def step(self, reply: Any) -> Outcome:  # type: ignore[override]
        return super().step(reply)


class Instant:
    """A sampling client whose replies are there at once."""

    def __init__(self) -> None:
        service = SimulatedService(rtt=0.0, sample=0.0)
        self.answer = Sampler(service).sample(
            None, 1, tinker.SamplingParams(max_tokens=MAX_TOKENS, stop=renderer().get_stop_sequences(), seed=0)
        )

    def sample(self, *args: Any, **options: Any) -> Answer:
        return self.answer


def overhead(episodes: int) -> None:
    """Print our processor time per trajectory. The kinds of work are measured in turns, one episode at a time."""
    chat, client = renderer(), Instant()
    params = tinker.SamplingParams(max_tokens=MAX_TOKENS)
    sampled = client.answer.value.sequences[0]

    async def client_alone() -> None:
        for _ in range(TURNS):
            await client.sample()

    async def chat_format_alone() -> None:
        environment = Plain()
        episode = chat.episode(environment.start().messages, on_rewrite="segment")
        for _ in range(TURNS):
            episode.prompt()
            reply = episode.add_sampled(sampled.tokens, sampled.logprobs)
            if messages := environment.step(reply).messages:
                episode.add(messages)

    async def episode_of(environment: Any) -> Any:
        return await run_episode(environment, client, chat, sampling_params=params, seed=0)

    async def measure() -> dict[str, list[float]]:
        trajectory = await episode_of(Coroutines())

        async def datums() -> None:
            policy_datums(trajectory, 0.5)

        async def log_line() -> None:
            json.dumps(trajectory.to_json())

        kinds: dict[str, Callable[[], Any]] = {
            "client alone": client_alone,
            "chat format and environment alone": chat_format_alone,
            "episode, coroutine methods": lambda: episode_of(Coroutines()),
            "episode, plain methods": lambda: episode_of(Plain()),
            "datums": datums,
            "line of the log": log_line,
        }
        spent: dict[str, list[float]] = {name: [] for name in kinds}
        for _ in range(episodes):
            for name, work in kinds.items():
                began = time.process_time()
                await work()
                spent[name].append(1e3 * (time.process_time() - began))
        return spent

    gc.collect()
    gc.freeze()
    spent = asyncio.run(measure())
    print(f"\nProcessor time per trajectory of {TURNS} turns, in ms, over {episodes} episodes:")
    print(f"{'':36}{'10 %':>8}{'median':>8}")
    for name, values in spent.items():
        print(f"  {name:34}{statistics.quantiles(values, n=10)[0]:8.3f}{statistics.median(values):8.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cookbook", help="The folder in which tinker-cookbook is installed; see above.")
    parser.add_argument("--only", choices=["wall", "overhead"], help="Run only this part.")
    parser.add_argument("--steps", type=int, default=20, help="The number of training steps of each run (default: 20).")
    parser.add_argument("--scale", type=float, default=1.0, help="Multiply all simulated times by this (default: 1).")
    parser.add_argument("--rounds", type=int, default=3, help="The number of rounds (default: 3).")
    arguments = parser.parse_args()
    if arguments.cookbook:
        sys.path.insert(0, arguments.cookbook)
    logging.disable(logging.CRITICAL)
    if arguments.only in (None, "overhead"):
        overhead(episodes=100 * arguments.rounds)
    if arguments.only in (None, "wall"):
        wall_clock(bool(arguments.cookbook), arguments.steps, arguments.scale, arguments.rounds)


if __name__ == "__main__":
    main()

"""Show the rollouts of a run: the messages, the reward and tokens of each reply, and how each episode ended.

Shown is the newest batch of rollouts in `rollouts.jsonl`, or the one given by --step. Control characters, which could
change the terminal, are shown as symbols.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinkerloop.cli.number_options import at_least
from tinkerloop.cli.text_options import non_empty_path
from tinkerloop.errors import CheckpointError
from tinkerloop.rollouts.rollout_log import read_rollouts
from tinkerloop.rollouts.trajectory import Group, Trajectory
from tinkerloop.terminal import one_line, printable

ROLLOUTS_FILE = "rollouts.jsonl"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", type=non_empty_path, help="A run folder with a rollouts.jsonl, or the path of such a file."
    )
    parser.add_argument(
        "--step",
        type=at_least(0),
        help="The batch of rollouts to show, counted from 0 (default: the newest). It is the number of the step, "
        "unless the run has substeps or accumulates gradients.",
    )
    order = parser.add_mutually_exclusive_group()
    order.add_argument("--best", action="store_true", help="Show trajectories with the highest rewards first.")
    order.add_argument("--worst", action="store_true", help="Show trajectories with the lowest rewards first.")
    parser.add_argument(
        "--count", type=at_least(0), default=4, help="The number of trajectories to show (default: 4); 0 shows all."
    )


def run(arguments: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.text import Text

    groups = batch_of_rollouts(arguments.run, arguments.step)
    episodes = [(group, member, one) for group in groups for member, one in enumerate(group.trajectories)]
    if arguments.best or arguments.worst:
        episodes.sort(key=lambda episode: episode[2].reward, reverse=arguments.best)  # stable: then by slot and number
    shown = episodes[: arguments.count or None]
    console = Console(highlight=False)
    for text, style in (*batch_lines(groups, len(shown)), *(line for one in shown for line in trajectory_lines(*one))):
        console.print(Text(text, style=style), soft_wrap=True)
    return 0


def batch_of_rollouts(place: Path, number: int | None) -> list[Group]:
    """Return the groups of batch `number` in the rollouts of a run; None: of the newest batch.

    Raises:
        CheckpointError: the run has no rollouts, or no such batch.
    """
    file = place / ROLLOUTS_FILE if place.is_dir() or place.suffix != ".jsonl" else place
    groups: list[Group] = []
    first = newest = None
    for group in read_rollouts(file) if file.exists() else ():
        first, newest = group.batch if first is None else first, group.batch
        if number is None and groups and groups[0].batch != newest:
            groups = []
        if number in (None, newest):
            groups.append(group)
    if newest is None:
        raise CheckpointError(
            f"{file} has no rollouts: pass the folder of a run that is trained on Rollouts and has finished a batch, "
            "or the path that was passed to Rollouts(log=...)"
        )
    if not groups:
        raise CheckpointError(f"{file} has no batch {number} of rollouts; it has batches {first} to {newest}")
    return groups


Line = tuple[str, str]
"""A text without control characters other than line ends, and its style."""


def batch_lines(groups: Sequence[Group], shown: int) -> Iterator[Line]:
    """Yield lines about all trajectories of a batch, and the errors of its dropped groups."""
    rewards = np.concatenate([group.rewards for group in groups])
    line = f"batch {groups[0].batch}: {len(rewards)} trajectories in {len(groups)} groups, {shown} shown"
    if len(rewards):
        line += f"; reward {rewards.mean():.4g} (from {rewards.min():.4g} to {rewards.max():.4g})"
    yield line, "bold"
    for group in groups:
        if not group.trajectories:
            yield f"slot {group.slot} was dropped: {one_line(group.failures[-1])}", "red"


def trajectory_lines(group: Group, member: int, trajectory: Trajectory) -> Iterator[Line]:
    """Yield the lines of one trajectory: a title, then the messages. Replies have their reward and termination."""
    yield "", ""
    yield (
        f"slot {group.slot}, episode {member}: reward {trajectory.reward:.4g}, end: {trajectory.end.value}, "
        f"{sum(len(segment.tokens) for segment in trajectory.segments)} tokens, {trajectory.sampled_tokens} sampled "
        f"from the weights of boundary {trajectory.boundary}; task {group.task}",
        "bold",
    )
    sampled = np.bincount(trajectory.sampled_turns, minlength=len(trajectory.turns))
    replies = [i for i, message in enumerate(trajectory.messages) if message["role"] == "assistant"]
    turn_of = {place: turn for turn, place in enumerate(replies[-len(trajectory.turns) :])}  # examples may come before
    for place, message in enumerate(trajectory.messages):
        title = one_line(message["role"])
        if place in turn_of:
            turn = trajectory.turns[turn_of[place]]
            values = {"reward": turn.reward, **turn.metrics}
            numbers = ", ".join(f"{one_line(name)} {value:.4g}" for name, value in values.items())
            title += f"  [{numbers}; {sampled[turn_of[place]]} tokens, {turn.termination.value}]"
        yield title, "green" if place in turn_of else "cyan"
        for text, style in _contents(message):
            yield "  " + printable(text).replace("\n", "\n  "), style


def _contents(message: Mapping[str, Any]) -> Iterator[Line]:
    """Yield the reasoning, the text, the images and the tool calls of a message."""
    if reasoning := message.get("reasoning_content"):
        yield reasoning, "dim"
    content = message["content"]
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        yield ("[image]", "dim") if part["type"] == "image_url" else (part["text"], "")
    for call in message.get("tool_calls", ()):
        yield f"call {call['function']['name']}({call['function']['arguments']})", "magenta"
    for call in message.get("unparsed_tool_calls", ()):
        yield f"call that cannot be parsed ({call['error']}): {call['raw_text']}", "red"

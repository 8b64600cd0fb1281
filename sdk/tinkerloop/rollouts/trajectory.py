"""Trajectories: what was sampled in one episode, as values that are written to one line of JSON and read back equal.

A trajectory has the tokens (with their log-probabilities) that training needs, and the messages and rewards that people
read. Each line of `rollouts.jsonl` is one `Group`: the trajectories of one task. Rewards, metrics and log-probabilities
are finite numbers. Lines are therefore read with `read_lines(path, restore_numbers=False)`, so that a message whose
text is "NaN" stays a text.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinkerloop._lazy import tinker
from tinkerloop.errors import RolloutError
from tinkerloop.renderers import ParseTermination
from tinkerloop.renderers.openai_messages import to_openai_message
from tinkerloop.renderers.rendered import model_input


class End(StrEnum):
    """Why an episode ended."""

    DONE = "done"
    """The environment returned `done`."""
    MAX_TURNS = "max_turns"
    """The limit on the number of turns was reached."""
    MAX_TOKENS = "max_tokens"
    """The limit on the number of tokens was reached: a reply was cut, or no token was left for the next one.

    This is also the end of an episode whose environment returned `done` for a reply that was cut.
    """
    BROKEN_REPLY = "broken_reply"
    """No message could follow the last reply: it broke off inside a block, continued after its end, or has a part
    that the chat format cannot express."""


class SampledSpan(NamedTuple):
    """The tokens `start` to `stop - 1` of a segment, which were sampled in turn number `turn`."""

    start: int
    stop: int
    turn: int


@dataclass(frozen=True)
class TrajectorySegment:
    """One token sequence of a trajectory. There are several only if the chat format rewrote earlier turns.

    Attributes:
        tokens: the N token ids, not shifted. At the positions of images they are 0.
        sampled: the spans of sampled tokens, in order. All other tokens were rendered.
        logprobs: the log-probabilities of the sampled tokens under the weights that sampled them, in order.
        reference_logprobs: those of the same tokens under a reference model or a teacher; None if there is none.
        images: the images in order, each as (position of its first token, chunk).

    Raises:
        RolloutError: there is not one finite log-probability for each sampled token.
    """

    tokens: tuple[int, ...]
    sampled: tuple[SampledSpan, ...]
    logprobs: tuple[float, ...]
    reference_logprobs: tuple[float, ...] | None = None
    images: tuple[tuple[int, tinker.types.ImageChunk], ...] = ()

    def __post_init__(self) -> None:
        count = sum(stop - start for start, stop, _ in self.sampled)
        for name in ("logprobs", "reference_logprobs"):
            values: tuple[float, ...] | None = getattr(self, name)
            if values is not None and not (len(values) == count and math.isfinite(math.fsum(values))):
                raise RolloutError(
                    f"{name} must be {count} finite numbers, one for each sampled token, got {len(values)} "
                    f"of which {sum(map(math.isfinite, values))} are finite"
                )

    @property
    def model_input(self) -> tinker.ModelInput:
        """All tokens and images, as a prompt."""
        return model_input(list(self.tokens), self.images)

    @property
    def turn_index(self) -> NDArray[np.int32]:
        """The turn that sampled each token, (N,) int32; -1 for tokens that were not sampled."""
        turns = np.full(len(self.tokens), -1, np.int32)
        for start, stop, turn in self.sampled:
            turns[start:stop] = turn
        return turns


@dataclass(frozen=True)
class Turn:
    """One sampled reply, and the answer of the environment to it.

    Attributes:
        reward: the reward for the reply.
        termination: how the reply ended.
        metrics: the metrics that the environment returned.

    Raises:
        RolloutError: the reward or a metric is not a finite number.
    """

    reward: float
    termination: ParseTermination
    metrics: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in (("the reward", self.reward), *self.metrics.items()):
            if not math.isfinite(value):
                raise RolloutError(f"{name} of a turn must be a finite number, got {value!r}")


@dataclass(frozen=True)
class Trajectory:
    """One episode: its token sequences, its turns, its conversation and how it ended.

    Attributes:
        segments: the token sequences; usually one.
        turns: the turns in order; at least one.
        messages: the whole conversation as messages that `readable_message` returned.
        end: why the episode ended.
        boundary: the boundary whose weights sampled it: exactly steps 0 to `boundary - 1` had been applied.
        seed: the random seed of its samples.
        seconds: how long it took. Not compared and not written, so that equal runs write equal lines.
    """

    segments: tuple[TrajectorySegment, ...]
    turns: tuple[Turn, ...]
    messages: tuple[Mapping[str, Any], ...]
    end: End
    boundary: int
    seed: int
    seconds: float = field(default=0.0, compare=False)

    @property
    def reward(self) -> float:
        """The sum of the rewards of all turns."""
        return sum(turn.reward for turn in self.turns)

    @property
    def sampled_tokens(self) -> int:
        """The number of sampled tokens in all segments."""
        return sum(len(segment.logprobs) for segment in self.segments)

    @property
    def sampled_turns(self) -> NDArray[np.int32]:
        """The turn of each of the S sampled tokens of all segments, in order, (S,) int32."""
        turns = [segment.turn_index for segment in self.segments]
        return np.concatenate([one[one >= 0] for one in turns])

    def to_json(self) -> dict[str, Any]:
        """Return the trajectory as JSON-serializable values, from which `from_json` creates an equal one."""
        return {
            "segments": [_segment_to_json(segment) for segment in self.segments],
            "turns": [
                {"reward": turn.reward, "termination": turn.termination.value, "metrics": dict(turn.metrics)}
                for turn in self.turns
            ],
            "messages": [dict(message) for message in self.messages],
            "end": self.end.value,
            "boundary": self.boundary,
            "seed": self.seed,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Trajectory:
        """Return the trajectory that `to_json` returned as `value`."""
        return cls(
            segments=tuple(map(_segment_from_json, value["segments"])),
            turns=tuple(
                Turn(turn["reward"], ParseTermination(turn["termination"]), turn["metrics"]) for turn in value["turns"]
            ),
            messages=tuple(value["messages"]),
            end=End(value["end"]),
            boundary=value["boundary"],
            seed=value["seed"],
        )


@dataclass(frozen=True)
class Group:
    """The trajectories of one task: several episodes that differ only in the seeds of their samples.

    Attributes:
        batch: the number of the batch of rollouts that the group belongs to, from 0.
        slot: the number of the group in its batch, from 0.
        trajectories: its trajectories; none if the group was dropped because an environment failed.
        failures: the errors of environments in this group, as text: those after which an episode was repeated, and the
            one that dropped the group.
        task: the number of the task in the sequence of tasks.
    """

    batch: int
    slot: int
    trajectories: tuple[Trajectory, ...]
    failures: tuple[str, ...] = ()
    task: int = 0

    @property
    def rewards(self) -> NDArray[np.float64]:
        """The reward of each trajectory, (G,) float64."""
        return np.array([trajectory.reward for trajectory in self.trajectories], np.float64)

    def to_json(self) -> dict[str, Any]:
        """Return the group as JSON-serializable values, from which `from_json` creates an equal one."""
        return {
            "batch": self.batch,
            "slot": self.slot,
            "task": self.task,
            "trajectories": [trajectory.to_json() for trajectory in self.trajectories],
            "failures": list(self.failures),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Group:
        """Return the group that `to_json` returned as `value`."""
        trajectories = tuple(map(Trajectory.from_json, value["trajectories"]))
        return cls(value["batch"], value["slot"], trajectories, tuple(value["failures"]), value["task"])


IMAGE_PLACEHOLDER = "data:,image"
"""The URL of every image in a readable message. The images themselves are in the segments of the trajectory."""


def readable_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message in the shape of OpenAI's API, with a placeholder for each image.

    A sampled reply may have reasoning after its text, which that shape cannot express: all reasoning comes first.

    Raises:
        RenderError: the message has the wrong shape.
    """
    content = message.get("content") if isinstance(message, Mapping) else None
    if isinstance(content, Sequence) and not isinstance(content, str):
        image = {"type": "image_url", "image_url": {"url": IMAGE_PLACEHOLDER}}
        kinds = [part.get("type") if isinstance(part, Mapping) else None for part in content]
        in_order = sorted(zip(kinds, content, strict=True), key=lambda one: one[0] != "thinking")
        parts = [image if kind in ("image", "image_url") else part for kind, part in in_order]
        message = {**message, "content": parts}
    return to_openai_message(message)


def _segment_to_json(segment: TrajectorySegment) -> dict[str, Any]:
    value: dict[str, Any] = {
        "tokens": list(segment.tokens),
        "sampled": [list(span) for span in segment.sampled],
        "logprobs": list(segment.logprobs),
    }
    if segment.reference_logprobs is not None:
        value["reference_logprobs"] = list(segment.reference_logprobs)
    if segment.images:
        value["images"] = [
            {
                "position": position,
                "data": base64.b64encode(image.data).decode(),
                "format": image.format,
                "expected_tokens": image.expected_tokens,
            }
            for position, image in segment.images
        ]
    return value


def _segment_from_json(value: Mapping[str, Any]) -> TrajectorySegment:
    reference: Sequence[float] | None = value.get("reference_logprobs")
    return TrajectorySegment(
        tokens=tuple(value["tokens"]),
        sampled=tuple(SampledSpan(*span) for span in value["sampled"]),
        logprobs=tuple(map(float, value["logprobs"])),  # float, because a file has "-Infinity" as text
        reference_logprobs=None if reference is None else tuple(map(float, reference)),
        images=tuple(
            (
                image["position"],
                tinker.types.ImageChunk(
                    data=base64.b64decode(image["data"]),
                    format=image["format"],
                    expected_tokens=image["expected_tokens"],
                ),
            )
            for image in value.get("images", ())
        ),
    )

"""A trajectory is written to one line of JSON and read back equal."""

from __future__ import annotations

import math
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinker
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rollouts.conftest import tiny_renderer
from tinkerloop.errors import RolloutError
from tinkerloop.loop.jsonl import append_line, encode, read_lines
from tinkerloop.renderers import ParseTermination
from tinkerloop.rollouts.trajectory import (
    End,
    Group,
    SampledSpan,
    Trajectory,
    TrajectorySegment,
    Turn,
    readable_message,
)

TEXTS = st.text(max_size=8) | st.sampled_from(["NaN", "-Infinity", "\u2028", "\x00\x1b[2J", "𝒳\ufeff", '"\\u00e9"\n'])
FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)
IMAGES = st.builds(
    tinker.types.ImageChunk, data=st.binary(max_size=20), format=st.just("png"), expected_tokens=st.integers(1, 9)
)


@st.composite
def segments(draw: st.DrawFn) -> TrajectorySegment:
    lengths = draw(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=3))
    position, spans = 0, []
    for turn, (rendered, sampled) in enumerate(lengths):
        spans.append(SampledSpan(position + rendered, position + rendered + sampled, turn))
        position += rendered + sampled
    logprobs = st.lists(FINITE, min_size=sum(b for _, b in lengths), max_size=sum(b for _, b in lengths)).map(tuple)
    return TrajectorySegment(
        tokens=tuple(draw(st.lists(st.integers(0, 2**31), min_size=position, max_size=position))),
        sampled=tuple(spans),
        logprobs=draw(logprobs),
        reference_logprobs=draw(st.none() | logprobs),
        images=tuple(draw(st.lists(st.tuples(st.integers(0, 99), IMAGES), max_size=2))),
    )


PARTS = st.builds(lambda text: {"type": "text", "text": text}, TEXTS) | st.just({"type": "image", "image": b"\x89PNG"})
ARGUMENTS = st.sampled_from(["{}", '{"a": "\\ud800"}', '{"é": [1, null]}'])
MESSAGES = st.builds(
    lambda role, content, extra: {"role": role, "content": content, **extra},
    st.just("assistant"),
    TEXTS | st.lists(PARTS, max_size=3),
    st.fixed_dictionaries(
        {},
        optional={
            "reasoning_content": TEXTS,
            "tool_calls": st.builds(lambda text: [{"id": "c", "name": "f", "arguments": text}], ARGUMENTS),
            "unparsed_tool_calls": st.builds(lambda text: [{"raw_text": text, "error": "not JSON"}], TEXTS),
        },
    ),
)
TURNS = st.builds(Turn, FINITE, st.sampled_from(ParseTermination), st.dictionaries(TEXTS, FINITE, max_size=2))
TRAJECTORIES = st.builds(
    Trajectory,
    segments=st.lists(segments(), max_size=2).map(tuple),
    turns=st.lists(TURNS, max_size=3).map(tuple),
    messages=st.lists(MESSAGES.map(readable_message), max_size=3).map(tuple),
    end=st.sampled_from(End),
    boundary=st.integers(0, 9),
    seed=st.integers(0, 2**70),
    seconds=st.floats(0, 9),
)
GROUPS = st.builds(
    Group,
    st.integers(0, 9),
    st.integers(0, 9),
    st.lists(TRAJECTORIES, max_size=2).map(tuple),
    st.lists(TEXTS, max_size=2).map(tuple),
)


@settings(max_examples=25)
@given(group=GROUPS)
def test_a_line_is_read_back_equal(group: Group, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("rollouts") / "rollouts.jsonl"
    append_line(path, group.to_json())
    (row,) = read_lines(path, restore_numbers=False)
    assert Group.from_json(row) == group
    assert encode(Group.from_json(row).to_json()) == path.read_bytes()


def test_a_message_that_reads_NaN_stays_a_text(tmp_path: Path) -> None:
    message = readable_message({"role": "user", "content": "NaN"})
    path = tmp_path / "rollouts.jsonl"
    append_line(path, Group(0, 0, (Trajectory((), (), (message,), End.DONE, 0, 0),)).to_json())
    (row,) = read_lines(path, restore_numbers=False)
    assert Group.from_json(row).trajectories[0].messages == (message,)
    assert math.isnan(next(read_lines(path))["trajectories"][0]["messages"][0]["content"])


def test_equal_episodes_write_equal_lines_although_one_took_longer() -> None:
    fast, slow = (Trajectory((), (), (), End.DONE, 0, 0, seconds=seconds) for seconds in (0.1, 9.0))
    assert fast == slow
    assert encode(fast.to_json()) == encode(slow.to_json())


def test_images_of_messages_are_replaced_by_a_placeholder() -> None:
    parts: list[Any] = [{"type": "text", "text": "this: "}, {"type": "image", "image": np.zeros((2, 2, 3), np.uint8)}]
    assert readable_message({"role": "user", "content": parts})["content"] == [
        {"type": "text", "text": "this: "},
        {"type": "image_url", "image_url": {"url": "data:,image"}},
    ]


@settings(max_examples=25)
@given(ids=st.lists(st.integers(0, 270), max_size=20), text=st.text(string.printable, max_size=20))
def test_every_sampled_reply_is_a_readable_message(ids: list[int], text: str) -> None:
    renderer = tiny_renderer()
    calling = renderer.tokenizer.encode(f"<tool_call>\n{text}\n</tool_call>")
    for sampled in (ids, calling, [*ids, *calling]):
        message, _ = renderer.parse_response(sampled)
        encode(readable_message(message))


def test_reasoning_after_the_text_of_a_reply_comes_first_in_its_readable_message() -> None:
    parts = [{"type": "text", "text": "4"}, {"type": "thinking", "thinking": "really?"}]
    assert readable_message({"role": "assistant", "content": parts}) == {
        "role": "assistant",
        "content": "4",
        "reasoning_content": "really?",
    }


@pytest.mark.parametrize("reward", [math.nan, math.inf])
def test_a_reward_that_is_not_finite_is_rejected(reward: float) -> None:
    with pytest.raises(RolloutError, match="the reward of a turn must be a finite number"):
        Turn(reward, ParseTermination.STOP_SEQUENCE)


@pytest.mark.parametrize("logprobs", [(), (-1.0,), (-1.0, math.nan), (-1.0, -math.inf), (-1.0, -1.0, -1.0)])
def test_each_sampled_token_needs_one_finite_logprob(logprobs: tuple[float, ...]) -> None:
    with pytest.raises(RolloutError, match="must be 2 finite numbers, one for each sampled token"):
        TrajectorySegment((1, 2, 3), (SampledSpan(1, 3, 0),), logprobs)


def test_the_turn_index_of_a_token_is_the_turn_that_sampled_it() -> None:
    segment = TrajectorySegment((1, 2, 3, 4, 5), (SampledSpan(1, 3, 0), SampledSpan(4, 5, 1)), (-1.0, -1.0, -1.0))
    assert segment.turn_index.tolist() == [-1, 0, 0, -1, 1]

"""`tinkerloop rollouts RUN`."""

import json
import re

import pytest

from tinkerloop.cli.main import main
from tinkerloop.renderers import ParseTermination
from tinkerloop.rollouts import End, Group, SampledSpan, Trajectory, TrajectorySegment, Turn

HOSTILE = "a\x1b]52;c;eA==\x07\x1b[2J\x9b\r\u202eb"
UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]")


def trajectory(rewards, text="4"):
    """Return a trajectory with one turn of two sampled tokens for each reward."""
    turns = range(len(rewards))
    messages = [{"role": "user", "content": "2 + 2 ="}, {"role": "assistant", "content": "an example"}]
    for turn in turns:
        messages += [{"role": "user", "content": f"question {turn}"}, {"role": "assistant", "content": text}]
    segment = TrajectorySegment(
        tokens=(1,) * (3 + 4 * len(rewards)),
        sampled=tuple(SampledSpan(3 + 4 * turn, 5 + 4 * turn, turn) for turn in turns),
        logprobs=(-1.0,) * (2 * len(rewards)),
    )
    return Trajectory(
        segments=(segment,),
        turns=tuple(Turn(reward, ParseTermination.STOP_SEQUENCE, {"close": 0.5}) for reward in rewards),
        messages=tuple(messages),
        end=End.MAX_TURNS,
        boundary=3,
        seed=0,
    )


@pytest.fixture
def write(tmp_path):
    def write(*groups):
        text = "".join(json.dumps(group.to_json()) + "\n" for group in groups)
        (tmp_path / "rollouts.jsonl").write_text(text)
        return str(tmp_path)

    return write


@pytest.fixture
def show(capsys):
    def show(*arguments, status=0):
        assert main(["rollouts", *arguments]) == status
        captured = capsys.readouterr()
        return captured.err if status else captured.out

    return show


def test_a_trajectory_is_shown_with_its_messages_rewards_tokens_and_end(write, show):
    assert show(write(Group(0, 0, (trajectory([0.25, 2.0]),), task=17))).splitlines() == [
        "batch 0: 1 trajectories in 1 groups, 1 shown; reward 2.25 (from 2.25 to 2.25)",
        "",
        "slot 0, episode 0: reward 2.25, end: max_turns, 11 tokens, 4 sampled from the weights of boundary 3; task 17",
        "user",
        "  2 + 2 =",
        "assistant",
        "  an example",
        "user",
        "  question 0",
        "assistant  [reward 0.25, close 0.5; 2 tokens, stop_sequence]",
        "  4",
        "user",
        "  question 1",
        "assistant  [reward 2, close 0.5; 2 tokens, stop_sequence]",
        "  4",
    ]


def rewards_in(out):
    return [float(one) for one in re.findall(r"episode \d+: reward ([\d.]+),", out)]


@pytest.mark.parametrize(
    "options, expected",
    [
        ([], [2, 5, 3, 4]),
        (["--count", "2"], [2, 5]),
        (["--count", "0"], [2, 5, 3, 4, 1]),
        (["--best"], [5, 4, 3, 2]),
        (["--worst", "--count", "1"], [1]),
        (["--step", "0"], [9]),
        (["--step", "1"], [2, 5, 3, 4]),
    ],
)
def test_trajectories_of_a_batch_are_chosen_by_step_order_and_count(write, show, options, expected):
    groups = [
        Group(0, 0, (trajectory([9]),)),
        Group(1, 0, tuple(trajectory([reward]) for reward in (2, 5, 3))),
        Group(1, 1, tuple(trajectory([reward]) for reward in (4, 1))),
    ]
    assert rewards_in(show(write(*groups), *options)) == expected


def test_a_dropped_group_is_shown_with_its_error(write, show):
    out = show(write(Group(0, 0, (trajectory([1]),)), Group(0, 1, (), ("the environment failed in step()",))))
    assert "slot 1 was dropped: the environment failed in step()" in out


def test_nothing_that_was_sampled_or_raised_reaches_the_terminal(write, show):
    out = show(write(Group(0, 0, (trajectory([1], HOSTILE),)), Group(0, 1, (), (HOSTILE,))))
    assert out.count("a␛]52;c;eA==␇␛[2J[U+009B]␍[U+202E]b") == 2
    assert not UNSAFE.search(out)


def test_calls_reasoning_and_images_are_shown(write, show):
    one = trajectory([1])
    reply = {
        "role": "assistant",
        "content": [{"type": "image_url", "image_url": {"url": "data:,image"}}, {"type": "text", "text": "so"}],
        "reasoning_content": "hm",
        "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}],
        "unparsed_tool_calls": [{"raw_text": "<oops", "error": "not JSON"}],
    }
    changed = Trajectory(**{**vars(one), "messages": (*one.messages[:-1], reply)})
    out = show(write(Group(0, 0, (changed,))))
    shown = ["  hm", "  [image]", "  so", '  call add({"a": 1})', "  call that cannot be parsed (not JSON): <oops"]
    assert out.splitlines()[-5:] == shown


def test_a_run_without_rollouts_and_a_missing_batch_are_named(write, show, tmp_path):
    assert f"{tmp_path / 'rollouts.jsonl'} has no rollouts: pass the folder of a run" in show(str(tmp_path), status=2)
    folder = write(Group(0, 0, (trajectory([1]),)), Group(1, 0, (trajectory([1]),)))
    assert "has no batch 5 of rollouts; it has batches 0 to 1" in show(folder, "--step", "5", status=2)

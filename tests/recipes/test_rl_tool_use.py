"""The recipe with tools: its environment, and real processes that are killed while they sample, train and save."""

import asyncio
import json
import random
import sys
import time

import pytest

from recipes import rl_tool_use
from tests.processes import Process, timed
from tests.recipes.run_files import newest_state, rollouts
from tinkerloop.messages import Message, ToolCall
from tinkerloop.renderers import Parsed, ParseTermination, get_renderer
from tinkerloop.rollouts import read_rollouts
from tinkerloop.tokenizers import get_tokenizer

# The tiny model is never right. Here any text is rewarded in its own way, so that rewards differ and training goes on.
PROGRAM = """
import zlib
from recipes import rl_tool_use
from recipes.command_line import run_from_command_line
rl_tool_use.reward = lambda task, reply: zlib.crc32(reply.text.encode("utf-8", "backslashreplace")) % 4
run_from_command_line(rl_tool_use.main)
"""
SMALL = [
    "model=tiny", "start_steps=2", "start_conversations=8", "steps=6", "save_every=2", "questions=2", "group_size=2",
    "staleness=1", "test_questions=2", "lora_rank=4",
]  # fmt: skip


def start(folder):
    return Process(PROGRAM, f"run={folder}", *SMALL, output=folder.with_name(f"{folder.name}.log"))


def outcome(folder):
    """Return the rollouts, the metrics and the newest checkpoint of a run, to the bit."""
    record = json.loads((folder / "checkpoints.jsonl").read_text().splitlines()[-1])
    return rollouts(folder), (folder / "metrics.jsonl").read_text(), newest_state(folder), record["cursor"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing happened to: its folder, and its duration in seconds from the first file on."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    _, duration = timed([sys.executable, "-c", PROGRAM, f"run={folder}", *SMALL], folder / "config.json")
    rewards = [group.rewards for group in read_rollouts(folder / "rollouts.jsonl")]
    assert any(one.min() < one.max() for one in rewards), "no rewards differ, so nothing is trained"
    return folder, duration


def kill_and_resume(folder, whole, moments):
    for moment in moments:
        process = start(folder)
        process.wait_for(folder / "starts.jsonl")
        time.sleep(moment * whole[1])
        process.kill()
    start(folder).finish()
    assert outcome(folder) == outcome(whole[0])


@pytest.mark.slow
def test_killed_at_a_random_moment_it_ends_bit_identical(whole, tmp_path):
    kill_and_resume(tmp_path / "run", whole, [random.Random("kill").uniform(0.2, 0.9)])


@pytest.mark.soak
@pytest.mark.parametrize("trial", range(10))
def test_killed_at_thirty_random_moments_it_ends_bit_identical(whole, tmp_path, trial):
    chance = random.Random(f"kill/{trial}")
    kill_and_resume(tmp_path / "run", whole, [chance.uniform(0, 1) for _ in range(3)])


def test_the_rollouts_are_logged_with_the_weights_that_sampled_them(whole):
    boundaries = [
        (group.batch, one.boundary)
        for group in read_rollouts(whole[0] / "rollouts.jsonl")
        for one in group.trajectories
    ]
    assert {(batch, max(batch - 1, 0)) for batch in range(6)} <= set(boundaries)


TASKS = [("gabo", "tine"), ("tine", "gabo")]
DICTIONARY = rl_tool_use.make_dictionary(TASKS)


def test_the_dictionary_translates_and_errors_say_what_is_wrong():
    environment = rl_tool_use.Translation(TASKS[0], DICTIONARY, True)

    def answer(arguments):
        call = ToolCall(ToolCall.FunctionBody("dictionary", json.dumps(arguments)))
        message = Message(role="assistant", content="", tool_calls=[call])
        outcome = asyncio.run(environment.step(Parsed(message, ParseTermination.STOP_SEQUENCE, (), ())))
        return outcome.messages[0]["content"]

    assert answer({"word": "gabo"}) == "tine"
    assert "no word gabi" in answer({"word": "gabi"})
    assert "do not fit" in answer({"words": "gabo"})


def test_every_word_has_one_translation_which_is_a_word_of_the_dictionary():
    words, translations = zip(*rl_tool_use.make_tasks(0, 50), strict=True)
    assert len(set(words)) == 50
    assert set(words) == set(translations)


@pytest.mark.parametrize("declare", [True, False])
def test_the_tool_is_declared_unless_the_model_is_too_small(declare):
    start = asyncio.run(rl_tool_use.Translation(TASKS[0], DICTIONARY, declare).start())
    assert [tool["name"] for tool in start.tools] == (["dictionary"] if declare else [])


def test_a_demonstration_trains_the_call_and_the_last_reply():
    renderer = get_renderer("qwen3_instruct", get_tokenizer("tiny"))
    datum = rl_tool_use.demonstration(TASKS[0], renderer, DICTIONARY, False)
    targets = datum.loss_fn_inputs["target_tokens"].to_numpy()
    trained = targets[datum.loss_fn_inputs["weights"].to_numpy() > 0].tolist()
    text = renderer.tokenizer.decode(trained)
    assert text.count("<|im_end|>") == 2
    assert '{"word": "gabo"}' in text
    assert text.endswith("tine<|im_end|>")
    assert "user" not in text

"""Episodes keep what was sampled, and say so when a format would not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.renderers.chats import everyones_tokenizer, renderer
from tinkerloop.errors import EpisodeError
from tinkerloop.renderers import get_renderer

EXTENDING = ["qwen3_instruct", "llama3", "kimi_k26_preserve_thinking", "glm5_3_max_reasoning", "role_colon"]
QUESTION = [{"role": "user", "content": "q"}]
ANSWER = [{"role": "user", "content": "and?"}]


def sample(name: str, messages: list[Any], reply: dict[str, Any]) -> list[int]:
    """The ids a model would sample to say `reply`."""
    example = renderer(name).build_supervised_example([*messages, reply])
    return [t for t, w in zip(example.tokens, example.weights, strict=True) if w]


@pytest.mark.parametrize("name", EXTENDING)
def test_an_episode_of_canonical_replies_is_the_rendered_conversation(name: str) -> None:
    ours = renderer(name)
    assert ours.has_extension_property
    messages: list[Any] = list(QUESTION)
    episode = ours.episode(messages)
    for turn in range(3):
        assert episode.prompt() == ours.build_generation_prompt(messages)
        reply = {"role": "assistant", "content": f"answer {turn}"}
        episode.add_sampled(sample(name, messages, reply))
        messages += [reply, *ANSWER]
        episode.add(ANSWER)
    assert episode.prompt() == ours.build_generation_prompt(messages)
    (example,) = episode.examples()
    assert [int(i) for i in np.unique(example.message_index[example.weights > 0])] == [1, 3, 5]


@pytest.mark.parametrize("name", ["qwen3_instruct", "kimi_k26_preserve_thinking", "glm5_3_max_reasoning"])
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_any_sampled_ids_survive_verbatim(name: str, data: st.DataObject) -> None:
    ours = renderer(name)
    episode = ours.episode(QUESTION)
    before = list(episode.tokens)
    sampled = data.draw(st.lists(st.integers(0, 255), max_size=12))
    if name != "qwen3_instruct":
        sampled = [*sampled, ours._assembler.ids["</think>"], 97]
    ended = data.draw(st.booleans())
    sampled = [*sampled, ours.get_stop_sequences()[0]] if ended else sampled
    logprobs = [-0.5] * len(sampled)
    episode.add_sampled(sampled, logprobs)
    episode.add(ANSWER)
    assert episode.prompt().to_ints()[: len(before) + len(sampled)] == before + sampled
    (example,) = episode.examples()
    assert np.flatnonzero(example.weights).tolist() == list(range(len(before), len(before) + len(sampled)))
    assert [x for x in episode.segments[0].logprobs if x] == logprobs


def test_a_call_is_kept_as_the_model_spaced_it() -> None:
    ours = renderer("qwen3_instruct")
    episode = ours.episode(QUESTION, tools=[{"name": "f", "description": "", "parameters": {}}])
    call = ours._assembler.ids
    spaced = everyones_tokenizer().encode('\n{ "name":"f",  "arguments":{"x":1} }\n', add_special_tokens=False)
    sampled = [call["<tool_call>"], *spaced, call["</tool_call>"], call["<|im_end|>"]]
    parsed = episode.add_sampled(sampled)
    assert parsed.message["tool_calls"][0].function.name == "f"
    before = list(episode.tokens)
    episode.add([{"role": "tool", "content": "1"}])
    assert episode.tokens[: len(before)] == before
    assert ours.decode(episode.tokens[len(before) :]).startswith("\n<|im_start|>user\n<tool_response>\n1")


def test_rewritten_history_is_refused_or_begins_a_segment() -> None:
    reply = {"role": "assistant", "content": "a", "reasoning_content": "because"}
    ids = sample("qwen3", QUESTION, reply)
    refusing = renderer("qwen3").episode(QUESTION)
    refusing.add_sampled(ids)
    with pytest.raises(EpisodeError, match=r"writes messages\[1\] differently"):
        refusing.add(ANSWER)
    splitting = renderer("qwen3").episode(QUESTION, on_rewrite="segment")
    splitting.add_sampled(ids)
    splitting.add(ANSWER)
    assert splitting.prompt() == renderer("qwen3").build_generation_prompt([*QUESTION, reply, *ANSWER])
    splitting.add_sampled(sample("qwen3", [*QUESTION, reply, *ANSWER], {"role": "assistant", "content": "b"}))
    assert [bool(example.weights.any()) for example in splitting.examples()] == [True, True]


def test_the_order_of_turns_is_held() -> None:
    episode = renderer("qwen3_instruct").episode(QUESTION)
    with pytest.raises(EpisodeError, match="no reply yet"):
        episode.add(ANSWER)
    episode.add_sampled(sample("qwen3_instruct", QUESTION, {"role": "assistant", "content": "a"}))
    with pytest.raises(EpisodeError, match="two replies"):
        episode.add_sampled([1])
    with pytest.raises(EpisodeError, match="add the messages"):
        episode.prompt()
    with pytest.raises(EpisodeError, match="assistant's message"):
        episode.add([{"role": "assistant", "content": "b"}])


def test_nothing_follows_a_reply_that_broke_off_inside_its_reasoning() -> None:
    ours = renderer("kimi_k26_preserve_thinking")
    episode = ours.episode(QUESTION)
    episode.add_sampled([104, 109])
    with pytest.raises(EpisodeError, match="truncated inside its REASONING"):
        episode.add(ANSWER)


def test_logprobs_must_match_the_ids() -> None:
    with pytest.raises(EpisodeError, match="expected 2 logprobs"):
        renderer("qwen3_instruct").episode(QUESTION).add_sampled([97, 98], [-1.0])


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5", "deepseekv3_thinking", "gpt_oss_medium_reasoning", "kimi_k26"])
def test_split_examples_each_begin_with_the_prompt_they_were_sampled_from(name: str) -> None:
    ours = get_renderer(name, everyones_tokenizer())
    messages: list[Any] = []
    for turn in range(3):
        messages += [
            {"role": "user", "content": f"q{turn}"},
            {"role": "assistant", "content": f"a{turn}", "reasoning_content": f"r{turn}"},
        ]
    examples = ours.build_supervised_examples(messages, "all_assistant_messages")
    assert len(examples) == 3
    for i, example in enumerate(examples):
        prompt = ours.build_generation_prompt(messages[: 2 * i + 1]).to_ints()
        assert example.tokens[: len(prompt)] == prompt
        assert np.flatnonzero(example.weights).tolist() == list(range(len(prompt), len(example)))


@pytest.mark.parametrize("name", EXTENDING)
def test_a_format_that_keeps_history_needs_one_example(name: str) -> None:
    ours = renderer(name)
    messages = [{"role": r, "content": f"{r} {i}"} for i, r in enumerate(["user", "assistant"] * 3)]
    (example,) = ours.build_supervised_examples(messages, "all_assistant_messages")
    whole = ours.build_supervised_example(messages, "all_assistant_messages")
    assert example.tokens == whole.tokens
    assert example.weights.tolist() == whole.weights.tolist()

"""Episodes keep sampled tokens unchanged, and raise an error if the format would rewrite them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.renderers.chats import everyones_tokenizer, renderer
from tinkerloop.errors import EpisodeError, RenderError
from tinkerloop.renderers import get_renderer
from tinkerloop.testing._invariant import sampled as sampled_tokens

EXTENDING = ["qwen3_instruct", "llama3", "kimi_k26_preserve_thinking", "glm5_3_max_reasoning", "role_colon"]
QUESTION = [{"role": "user", "content": "q"}]
ANSWER = [{"role": "user", "content": "and?"}]


def sample(name: str, messages: list[Any], reply: dict[str, Any], tools: Any = None) -> list[int]:
    """Return the ids that a model would sample as the message `reply`."""
    return sampled_tokens(renderer(name).build_supervised_example([*messages, reply], tools=tools))


@pytest.mark.parametrize("name", ["deepseekv3", "glm5_3_max_reasoning", "role_colon"])
def test_a_system_message_that_the_format_cannot_append_is_refused_or_begins_a_segment(name: str) -> None:
    messages = [*QUESTION, {"role": "assistant", "content": "a"}, {"role": "system", "content": "s"}, *ANSWER]
    refusing, splitting = (renderer(name).episode(QUESTION, on_rewrite=how) for how in ("refuse", "segment"))
    for episode in (refusing, splitting):
        episode.add_sampled(sample(name, QUESTION, messages[1]))
    with pytest.raises(EpisodeError, match="in another way than it was sampled"):
        refusing.add(messages[2:])
    splitting.add(messages[2:])
    assert splitting.prompt() == renderer(name).build_generation_prompt(messages)


@pytest.mark.parametrize("name", ["qwen3_disable_thinking", "qwen3_5_disable_thinking", "nemotron3_disable_thinking"])
def test_a_reply_that_reasons_though_its_prompt_rules_it_out_is_kept_and_followed(name: str) -> None:
    ours, ids = renderer(name), renderer(name)._assembler.ids
    sampled = [ids["<think>"], 104, ids["</think>"], 97]
    for end in ([], [ids["<|im_end|>"]]):
        episode = ours.episode(QUESTION, on_rewrite="segment")
        before = list(episode.tokens)
        episode.add_sampled([*sampled, *end])
        episode.add(ANSWER)
        assert episode.segments[0].tokens[: len(before) + len(sampled)] == before + sampled


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
    with pytest.raises(EpisodeError, match=r"would write messages\[1\] in another way"):
        refusing.add(ANSWER)
    splitting = renderer("qwen3").episode(QUESTION, on_rewrite="segment")
    splitting.add_sampled(ids)
    splitting.add(ANSWER)
    assert splitting.prompt() == renderer("qwen3").build_generation_prompt([*QUESTION, reply, *ANSWER])
    splitting.add_sampled(sample("qwen3", [*QUESTION, reply, *ANSWER], {"role": "assistant", "content": "b"}))
    assert [bool(example.weights.any()) for example in splitting.examples()] == [True, True]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpt_oss_no_sysprompt", {"role": "tool", "content": "r"}),
        ("kimi_k26", {"role": "tool", "content": "r"}),
        ("role_colon", {"role": "user", "content": "x\n\nUser: y"}),
        ("qwen3", {"role": "user", "content": [{"type": "image", "image": b"x"}]}),
    ],
)
def test_a_refusal_leaves_the_episode_as_it_was(name: str, message: dict[str, Any]) -> None:
    asked = [{"role": "user", "content": "q"}]
    one, other = (renderer(name).episode(asked, on_rewrite="segment") for _ in range(2))
    answered = [*asked, {"role": "assistant", "content": "a"}]
    sampled = renderer(name).build_supervised_example(answered).tokens[len(one.tokens) :]
    for episode in (one, other):
        episode.add_sampled(sampled)
    with pytest.raises(RenderError):
        one.add([message])
    for episode in (one, other):
        episode.add([{"role": "user", "content": "r"}])
        episode.add_sampled(sampled)
    assert (one.messages, one.tokens) == (other.messages, other.tokens)


GLM_CALL = "</think><tool_call>f</tool_call>"
GEMMA_CALL = "<|tool_call>call:f{}<tool_call|>"


@pytest.mark.parametrize(
    ("name", "sampled", "role", "begins"),
    [
        ("glm5_3_max_reasoning", "</think>a<|user|>", "user", "next"),
        ("glm5_3_max_reasoning", "</think>a<|observation|>", "user", "<|user|>next"),
        ("glm5_3_max_reasoning", "</think>a<|endoftext|>", "user", "<|user|>next"),
        ("glm5_3_max_reasoning", "</think>a", "user", "<|user|>next"),
        ("glm5_3_max_reasoning", f"{GLM_CALL}<|user|>", "user", "next"),
        ("glm5_3_max_reasoning", f"{GLM_CALL}<|user|>", "tool", "<|observation|><tool_response>next"),
        ("glm5_3_max_reasoning", f"{GLM_CALL}<|observation|>", "tool", "<tool_response>next"),
        ("glm4_5_disable_thinking", "a<|observation|>", "user", "<|user|>\nnext"),
        ("glm4_7_disable_thinking", "a<|observation|>", "user", "<|user|>next"),
        ("gemma4_thinking", f"{GEMMA_CALL}<|tool_response>", "tool", "response:f"),
        ("gemma4_thinking", f"{GEMMA_CALL}<turn|>", "tool", "<|tool_response>response:f"),
        ("gemma4_thinking", GEMMA_CALL, "tool", "<|tool_response>response:f"),
        ("gemma4_thinking", "a<|tool_response>", "user", "\n<|turn>user\nnext"),
    ],
)
def test_a_turn_has_one_header_whatever_token_the_model_stopped_with(
    name: str, sampled: str, role: str, begins: str
) -> None:
    episode = renderer(name).episode(QUESTION)
    episode.add_sampled(everyones_tokenizer().encode(sampled, add_special_tokens=False))
    before = len(episode.tokens)
    episode.add([{"role": role, "content": "next"}])
    assert renderer(name).decode(episode.tokens[before:]).startswith(begins)


def test_the_order_of_turns_is_held() -> None:
    episode = renderer("qwen3_instruct").episode(QUESTION)
    with pytest.raises(EpisodeError, match="no reply yet"):
        episode.add(ANSWER)
    episode.add_sampled(sample("qwen3_instruct", QUESTION, {"role": "assistant", "content": "a"}))
    with pytest.raises(EpisodeError, match="two replies"):
        episode.add_sampled([1])
    with pytest.raises(EpisodeError, match="directly after a reply"):
        episode.prompt()
    with pytest.raises(EpisodeError, match="an assistant message"):
        episode.add([{"role": "assistant", "content": "b"}])


@pytest.mark.parametrize(
    "ids, logprobs", [([104, 105], [0.0, float("nan")]), ([104, 105], [float("-inf"), 0.0]), ([104, -5], None)]
)
def test_ids_and_logprobs_that_no_service_can_sample_are_refused(ids: list[int], logprobs: list[float] | None) -> None:
    episode = renderer("qwen3_instruct").episode(QUESTION)
    before = list(episode.tokens)
    with pytest.raises(EpisodeError, match="must be at least 0, and their logprobs finite"):
        episode.add_sampled(ids, logprobs)
    assert episode.tokens == before


def test_messages_of_an_iterator_are_kept() -> None:
    episode = renderer("qwen3_instruct").episode(iter(QUESTION))
    episode.add_sampled(sample("qwen3_instruct", QUESTION, {"role": "assistant", "content": "a"}))
    episode.add(message for message in ANSWER)
    assert [message["content"] for message in episode.messages] == ["q", "a", "and?"]


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


def test_an_unknown_answer_to_rewriting_is_refused() -> None:
    with pytest.raises(EpisodeError, match="'refuse' or 'segment', got 'split'"):
        renderer("qwen3").episode([{"role": "user", "content": "q"}], on_rewrite="split")  # type: ignore[arg-type]

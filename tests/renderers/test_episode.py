"""Episodes keep sampled tokens unchanged, and raise an error if the format would rewrite them."""

from __future__ import annotations

from itertools import dropwhile, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.renderers.chats import TOOLS, conversations, everyones_tokenizer, renderer
from tests.renderers.test_invariants import FEW, SOME, every_format, fitted, takes_tools
from tinkerloop.errors import EpisodeError, RenderError
from tinkerloop.renderers import Episode, Part, get_renderer

EXTENDING = ["qwen3_instruct", "llama3", "kimi_k26_preserve_thinking", "glm5_3_max_reasoning", "role_colon"]
QUESTION = [{"role": "user", "content": "q"}]
ANSWER = [{"role": "user", "content": "and?"}]


def sample(name: str, messages: list[Any], reply: dict[str, Any], tools: Any = None) -> list[int]:
    """Return the ids that a model would sample as the message `reply`."""
    example = renderer(name).build_supervised_example([*messages, reply], tools=tools)
    return [t for t, w in zip(example.tokens, example.weights, strict=True) if w]


def episode_of(name: str, messages: list[Any], tools: Any = None) -> Episode | None:
    """Return an episode that starts a new segment if the format rewrites history; None if it has no episodes."""
    if name == "template":
        with pytest.raises(RenderError, match="cannot append to a conversation"):
            renderer(name).episode(messages)
        return None
    return renderer(name).episode(messages, tools, on_rewrite="segment")


@every_format
@FEW
@given(messages=conversations(late_system=True, max_turns=2), declare=st.booleans())
def test_an_episode_of_canonical_replies_is_the_rendered_conversation(name, messages, declare) -> None:
    ours, messages = renderer(name), fitted(name, messages)
    tools = TOOLS if declare and takes_tools(name) else None
    replies = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    episode = episode_of(name, messages[: replies[0]], tools)
    for i, end in pairwise([*replies, len(messages)]) if episode else ():
        asked = ours.build_generation_prompt(episode.messages, tools=tools)
        assert ours.decode(episode.tokens) == ours.decode(asked.to_ints())
        spaced = any(m["role"] == "assistant" and m["content"][:1].isspace() for m in messages[:i])
        assert episode.prompt() == asked or spaced or not ours.has_extension_property
        episode.add_sampled(sample(name, messages[:i], messages[i], tools))
        if i + 1 < end:
            episode.add(messages[i + 1 : end])
    if episode:
        assert {int(i) for e in episode.examples() for i in e.message_index[e.weights > 0]} == set(replies)
        late = any(message["role"] == "system" for message in messages[1:])
        assert len(episode.segments) == 1 or late or not ours.has_extension_property


@every_format
@SOME
@given(data=st.data(), messages=conversations(max_turns=1))
def test_any_sampled_ids_survive_verbatim(name, data, messages) -> None:
    """After sampling any ids that end with a stop token, the next prompt begins with the earlier prompt and these ids.

    If the format rewrites history, the ids form a separate segment instead. No message can be appended to a reply that
    stopped inside its reasoning or a tool call, or that has reasoning after its text.
    """
    ours, reply = renderer(name), fitted(name, messages)[-1]
    inner = sorted({*ours._assembler.ids.values()} - {ours._assembler.ids[end] for end in ours.grammar.ends})
    sampled = sample(name, QUESTION, reply)[:-1] if data.draw(st.booleans()) and not ours.grammar.stop_texts else []
    for _ in range(data.draw(st.integers(0, 6))):
        at = data.draw(st.integers(0, len(sampled)))
        sampled.insert(at, data.draw(st.integers(0, 255) | st.sampled_from(inner or [0])))
    stop = data.draw(st.sampled_from(ours.get_stop_sequences()))
    sampled += everyones_tokenizer().encode(stop, add_special_tokens=False) if isinstance(stop, str) else [stop]
    episode = episode_of(name, QUESTION)
    if episode is None:
        return
    before, logprobs = list(episode.tokens), [-0.5] * len(sampled)
    parsed = episode.add_sampled(sampled, logprobs)
    content = parsed.message["content"]
    kinds = ["text"] if isinstance(content, str) else [part["type"] for part in content]
    if parsed.broke_off_in is not None or "thinking" in dropwhile(lambda kind: kind == "thinking", kinds):
        with pytest.raises(EpisodeError, match="no message can follow"):
            episode.add(ANSWER)
    else:
        episode.add(ANSWER)
        assert len(episode.segments) == 1 or not ours.has_extension_property
        assert len(episode.segments[0].tokens) > len(before) + len(sampled) or len(episode.segments) == 2
    assert episode.segments[0].tokens[: len(before) + len(sampled)] == before + sampled
    example = episode.examples()[0]
    assert np.flatnonzero(example.weights).tolist() == list(range(len(before), len(before) + len(sampled)))
    assert [x for x in episode.segments[0].logprobs if x] == logprobs


@every_format
def test_what_cannot_follow_a_reply_is_refused(name) -> None:
    episode = episode_of(name, QUESTION)
    if episode is None:
        return
    (reply,) = fitted(name, [{"role": "assistant", "content": "a", "reasoning_content": "some thought"}])
    sampled = sample(name, QUESTION, reply)
    episode.add_sampled(sampled)
    with pytest.raises(EpisodeError, match="contain an assistant message"):
        episode.add([*ANSWER, {"role": "assistant", "content": "b"}])
    if "system" in renderer(name).roles:
        tools = [{"name": "f", "description": "", "parameters": {}}]
        with pytest.raises(EpisodeError, match="tools cannot be declared among the new"):
            episode.add([{"role": "system", "content": "", "tools": tools}])
    if "reasoning_content" in reply:
        whole = renderer(name).build_supervised_example([*QUESTION, reply])
        thought = int(np.sum((whole.weights > 0) & (whole.parts == Part.REASONING)))
        cut = episode_of(name, QUESTION)
        cut.add_sampled(sampled[: thought - 2])
        with pytest.raises(EpisodeError, match="truncated inside its REASONING"):
            cut.add(ANSWER)


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

"""A gpt-oss reply loses nothing that was sampled, shows nothing else, and is clean only if every header is known."""

from __future__ import annotations

from typing import Any

import pytest

from tests.renderers.chats import everyones_tokenizer, renderer
from tinkerloop.renderers import Part

USER = {"role": "user", "content": "q"}

NEXT = "<|end|><|start|>assistant"
THOUGHT = "<|channel|>analysis<|message|>t" + NEXT
ANSWER = "<|channel|>final<|message|>x<|return|>"
CALL = "<|channel|>commentary to=functions.f <|constrain|>json<|message|>"


def parsed(spelled: str) -> Any:
    ids = everyones_tokenizer().encode(spelled, add_special_tokens=False)
    parser = renderer("gpt_oss_no_sysprompt").parser()
    for token_id in ids:
        parser.feed([token_id])
    streamed = parser.finish()[1]
    assert streamed == renderer("gpt_oss_no_sysprompt").parse_response(ids)
    return streamed


def text_of(message: Any) -> str:
    content = message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return "".join(part["text"] for part in parts if part["type"] == "text")


@pytest.mark.parametrize(
    ("spelled", "text"),
    [
        (ANSWER, "x"),
        (THOUGHT + ANSWER, "x"),
        ("<|channel|>commentary<|message|>see " + NEXT + ANSWER, "see x"),
        ("<|channel|>final <|constrain|>json<|message|>{}<|return|>", "{}"),
    ],
)
def test_a_reply_with_known_headers_is_clean(spelled: str, text: str) -> None:
    message, termination = parsed(spelled)
    assert termination
    assert text_of(message) == text


@pytest.mark.parametrize(
    ("spelled", "text"),
    [
        ("hello<|return|>", "hello"),
        ("Plain answer." + NEXT + ANSWER, "Plain answer.x"),
        (THOUGHT + "hello<|return|>", "<|start|>assistanthello"),
        ("<|channel|>analysis<|message|>t<|end|>hello<|return|>", "hello"),
        ("<|channel|>??<|message|>hm" + NEXT + ANSWER, "<|channel|>??<|message|>hmx"),
        ("<|channel|>finale<|message|>x<|return|>", "<|channel|>finale<|message|>x"),
        ("<|message|>x<|return|>", "<|message|>x"),
        ("so " + ANSWER, "so <|channel|>final<|message|>x"),
        ("so<|start|>assistant" + ANSWER, "sox"),
        ("<|start|>assistant" + ANSWER, "<|start|>assistant<|channel|>final<|message|>x"),
        ("<|channel|>final<|message|>x<|end|><|start|>user" + ANSWER, "x<|start|>user<|channel|>final<|message|>x"),
        ("<|channel|>final<|message|>x" + NEXT + ANSWER, "xx"),
        ("<|channel|>final<|message|>x<|end|><|return|>", "x"),
        ("<|channel|>final<|message|>x<|call|>", "x"),
        ("<|channel|>final<|message|>x<|constrain|>y<|return|>", "x<|constrain|>y"),
        (THOUGHT + "<|return|>", ""),
        ("<|return|>", ""),
    ],
)
def test_any_other_reply_is_malformed_and_keeps_its_text(spelled: str, text: str) -> None:
    message, termination = parsed(spelled)
    assert termination == "malformed"
    assert text_of(message) == text
    assert "tool_calls" not in message


@pytest.mark.parametrize(
    ("spelled", "text"), [("hello", "hello"), (THOUGHT, ""), ("<|channel|>final", ""), ("<|channel|>finale", None)]
)
def test_a_reply_cut_in_a_header_is_truncated_and_keeps_text_that_begins_no_header(spelled: str, text: Any) -> None:
    message, termination = parsed(spelled)
    assert termination == "truncated"
    assert text_of(message) == (spelled if text is None else text)


@pytest.mark.parametrize(
    ("before", "raw", "end", "termination"),
    [
        ("", CALL + "{bad<|call|>", "", "stop_sequence"),
        ("", CALL + '{"a": 1', "", "truncated"),
        (THOUGHT.removesuffix("<|start|>assistant"), "<|start|>assistant" + CALL[:-11], "<|return|>", "malformed"),
        ("", "<|channel|>commentary to=functions.f", "", "truncated"),
        ("", " to=functions.f<|message|>{}<|call|>", "", "malformed"),
        ("", "<|channel|>commentary to=functions.<|message|>{}<|call|>", "", "stop_sequence"),
        ("", " to=functions.f<|channel|>commentary to=functions.g<|message|>{}<|call|>", "", "malformed"),
        ("", "<|channel|>?? to=functions.f<|message|>{}<|call|>", "", "malformed"),
    ],
)
def test_a_call_that_cannot_be_read_is_unparsed_and_exactly_as_it_was_sampled(
    before: str, raw: str, end: str, termination: str
) -> None:
    reply = parsed(before + raw + end)
    assert reply.termination == termination
    assert [call.raw_text for call in reply.message["unparsed_tool_calls"]] == [raw]
    assert "tool_calls" not in reply.message
    assert text_of(reply.message) == ""
    assert reply.broke_off_in is (None if raw.endswith("<|call|>") else Part.TOOL_CALL)


def test_a_call_that_another_token_ends_is_malformed() -> None:
    for end in ("<|return|>", "<|end|>", NEXT + ANSWER):
        message, termination = parsed(CALL + "{}" + end)
        assert termination == "malformed"
        assert message["tool_calls"][0].function.name == "f"
    assert parsed(CALL + "{}<|call|>").termination


@pytest.mark.parametrize(
    ("name", "declared", "recipient"),
    [
        ("f", [], "functions.f"),
        ("browser.search", [], "browser.search"),
        ("functions.a.b", [], "functions.a.b"),
        ("a.b", ["a.b"], "functions.a.b"),
    ],
)
def test_a_call_of_a_built_in_tool_has_no_functions_before_its_name(name: str, declared: Any, recipient: str) -> None:
    ours, tools = renderer("gpt_oss_no_sysprompt"), [{"name": tool, "parameters": {}} for tool in declared]
    call = {"id": "1", "function": {"name": name, "arguments": "{}"}}
    chat = [USER, {"role": "assistant", "content": "", "tool_calls": [call]}]
    trained = ours.build_supervised_example(chat, tools=tools)
    assert ours.decode(trained.tokens).endswith(
        f"assistant to={recipient}<|channel|>commentary json<|message|>{{}}<|call|>"
    )
    sampled = [token for token, weight in zip(trained.tokens, trained.weights, strict=True) if weight]
    assert ours.parse_response(sampled, tools=tools).message["tool_calls"][0].function.name == name
    answered = ours.build_generation_prompt([*chat, {"role": "tool", "content": "r", "tool_call_id": "1"}], tools=tools)
    assert f"<|call|><|start|>{recipient} to=assistant<|channel|>" in ours.decode(answered.to_ints())

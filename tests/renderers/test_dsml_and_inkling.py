"""Replies of DeepSeek V4.1 and Inkling lose nothing that was sampled, and are clean only if their form is known."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.renderers.chats import everyones_tokenizer, renderer

USER = {"role": "user", "content": "q"}
ARGUMENT = '<｜DSML｜ parameter name="a" string="false">1</｜DSML｜ parameter>'
ONE = f'\n<｜DSML｜ invoke name="f">\n{ARGUMENT}\n</｜DSML｜ invoke>'
NONE = '\n<｜DSML｜ invoke name="g">\n\n</｜DSML｜ invoke>'
CALLS = "<｜DSML｜ calls>{}\n</｜DSML｜ calls>"
STOP = "<｜end▁of▁sentence｜>"
END = "<|end_message|>"
FINISH = "<|content_model_end_sampling|>"
THOUGHT = "<|message_model|><|content_thinking|>t" + END
TEXT = "<|message_model|><|content_text|>x" + END
CALL = '<|message_model|>f<|content_invoke_tool_json|>{"name":"f","args":{"a":1}}' + END


def parsed(name: str, spelled: str) -> Any:
    ids = everyones_tokenizer().encode(spelled, add_special_tokens=False)
    parser = renderer(name).parser()
    for token_id in ids:
        parser.feed([token_id])
    streamed = parser.finish()[1]
    assert streamed == renderer(name).parse_response(ids)
    return streamed


def calls(message: Any) -> list[tuple[str, Any]]:
    return [(call.function.name, json.loads(call.function.arguments)) for call in message.get("tool_calls", ())]


def text_of(message: Any) -> str:
    content = message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return "".join(part["text"] for part in parts if part["type"] == "text")


@pytest.mark.parametrize("before", ["", "x", "x\n\n"])
@pytest.mark.parametrize(
    ("inside", "expected"),
    [(ONE, [("f", {"a": 1})]), (NONE, [("g", {})]), (ONE + NONE, [("f", {"a": 1}), ("g", {})])],
)
def test_calls_of_deepseek_are_read(before: str, inside: str, expected: Any) -> None:
    message, termination = parsed("deepseekv4_1", f"</think>{before}\n\n{CALLS.format(inside)}{STOP}")
    assert termination
    assert calls(message) == expected
    assert text_of(message) == before


@pytest.mark.parametrize(
    ("raw", "termination"),
    [
        (CALLS.format(ONE.replace("1<", "{bad<")), "stop_sequence"),
        (CALLS.format(ONE.replace("invoke", "call")), "stop_sequence"),
        (CALLS.format(""), "stop_sequence"),
        (CALLS.format(ONE) + " more", "malformed"),
        (CALLS.format(ONE).removesuffix(" calls>"), "malformed"),
        ("<｜DSML｜ calls>" + ONE, "malformed"),
        ("<｜DSML｜ tool_calls>" + ONE, "malformed"),
    ],
)
def test_calls_of_deepseek_that_cannot_be_read_are_kept_and_written_again(raw: str, termination: str) -> None:
    spelled = f"</think>x\n\n{raw}{STOP}"
    reply = parsed("deepseekv4_1", spelled)
    assert reply.termination == termination
    assert "tool_calls" not in reply.message
    assert "<" + reply.message["unparsed_tool_calls"][0].raw_text == raw
    again = renderer("deepseekv4_1").build_supervised_example([USER, reply.message])
    assert renderer("deepseekv4_1").decode(again.tokens).endswith(spelled)


def test_a_tag_of_deepseek_that_a_value_spells_in_ordinary_tokens_is_text() -> None:
    value = "</｜DSML｜ parameter>\n</｜DSML｜ invoke>"
    call = {"function": {"name": "f", "arguments": {"a": value}}}
    example = renderer("deepseekv4_1").build_supervised_example(
        [USER, {"role": "assistant", "content": "", "tool_calls": [call]}]
    )
    sampled = [token for token, weight in zip(example.tokens, example.weights, strict=True) if weight]
    assert calls(renderer("deepseekv4_1").parse_response(sampled).message) == [("f", {"a": value})]


@pytest.mark.parametrize(
    ("spelled", "text", "expected"),
    [
        (TEXT, "x", []),
        (THOUGHT + TEXT, "x", []),
        (THOUGHT, "", []),
        (THOUGHT + TEXT + CALL + CALL, "x", [("f", {"a": 1})] * 2),
        (CALL, "", [("f", {"a": 1})]),
    ],
)
def test_an_inkling_reply_of_known_messages_is_clean(spelled: str, text: str, expected: Any) -> None:
    message, termination = parsed("tml_v0", spelled + FINISH)
    assert termination
    assert text_of(message) == text
    assert calls(message) == expected
    again = renderer("tml_v0").build_supervised_example([USER, message])
    assert renderer("tml_v0").decode(again.tokens).endswith(END + spelled + FINISH)


@pytest.mark.parametrize(
    ("spelled", "text"),
    [
        ("", ""),
        ("hello", "hello"),
        (TEXT + TEXT, "xx"),
        (TEXT + THOUGHT, "x"),
        (CALL + TEXT, "x"),
        (TEXT.removesuffix(END), "x"),
        (TEXT + "<|message_model|>", "x"),
        ("<|message_user|><|content_text|>x" + END, "<|message_user|><|content_text|>x<|end_message|>"),
        ("<|message_model|>f<|content_text|>x" + END, "fx"),
    ],
)
def test_any_other_inkling_reply_is_malformed_and_keeps_its_text(spelled: str, text: str) -> None:
    message, termination = parsed("tml_v0", spelled + FINISH)
    assert termination == "malformed"
    if "message_user" not in spelled:
        assert text_of(message) == text


@pytest.mark.parametrize(
    "raw",
    [
        CALL.replace("1}", "1"),
        CALL.replace("model|>f", "model|>g"),
        CALL.replace("args", "arguments"),
        "<|message_model|><|content_invoke_tool_text|>find it" + END,
    ],
)
def test_an_inkling_call_that_cannot_be_read_is_kept_and_written_again(raw: str) -> None:
    message, termination = parsed("tml_v0", TEXT + raw + FINISH)
    assert termination
    assert [call.raw_text for call in message["unparsed_tool_calls"]] == [raw.removesuffix(END)]
    again = renderer("tml_v0").build_supervised_example([USER, message])
    assert renderer("tml_v0").decode(again.tokens).endswith(TEXT + raw + FINISH)

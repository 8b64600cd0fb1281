"""The table in `sdk/tinkerloop/data/README.md`: what a message may look like, and who rejects it."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

import tinkerloop.data
from tinkerloop.data import Conversation, RawRow, conversation_to_datum, parse_conversation
from tinkerloop.errors import DataError, RenderError, TinkerloopError
from tinkerloop.message_checks import read_conversation, read_message
from tinkerloop.message_values import MessageError
from tinkerloop.messages import ToolCall, UnparsedToolCall
from tinkerloop.renderers import get_renderer
from tinkerloop.tokenizers import get_tokenizer

README = Path(tinkerloop.data.__file__).parent / "README.md"
USER = {"role": "user", "content": "q"}
REPLY = {"role": "assistant", "content": "a"}
IMAGE = "data:image/png;base64,aGVsbG8="


def user(content: Any, **other: Any) -> list[Any]:
    return [{"role": "user", "content": content, **other}, REPLY]


def reply(content: Any = "a", **other: Any) -> list[Any]:
    return [USER, {"role": "assistant", "content": content, **other}]


def call(*calls: Any, **other: Any) -> list[Any]:
    return reply("", tool_calls=list(calls), **other)


def function(arguments: Any, **other: Any) -> list[Any]:
    return call({"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}, **other})


def result(**message: Any) -> list[Any]:
    return [*function("{}"), {"role": "tool", **message}, REPLY]


def tools(*declarations: Any, messages: Any = None) -> tuple[Any, Any]:
    return messages or [USER, REPLY], list(declarations)


DECLARED = {"type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "object"}}}

# The first cell of a row of the table -> conversations that it describes.
CASES: dict[str, list[Any]] = {
    # the list
    "no messages": [[]],
    "something that is not a list of messages": ["text", {"role": "user"}, None, 3],
    "a tuple of messages, or messages of any mapping type": [(USER, REPLY), [MappingProxyType(USER), REPLY]],
    "a message that is not a dictionary": [["hi", REPLY], [None, REPLY]],
    # keys
    "a null under any key": [
        reply(name=None, weight=None, trainable=None, tool_calls=None, tools=None, reasoning=None)
    ],
    "a bookkeeping key (`id`, `timestamp`, `source`)": [user("q", id=0), user("q", timestamp="now", source="x")],
    "any other unknown key with a value": [user("q", colour="red"), reply(score=0), user("q", images=["a.png"])],
    "an unknown key with a value in a part or a call (`max_pixels`, `cache_control`, `parameters`)": [
        user([{"type": "text", "text": "q", "cache_control": {"type": "ephemeral"}}]),
        user([{"type": "image", "image": IMAGE, "max_pixels": 1024}]),
        reply([{"type": "text", "text": "a", "weight": 0.0}]),
        call({"name": "f", "arguments": {}, "parameters": {"a": 1}}),
        function({"a": 1}, result="3"),
        call({"function": {"name": "f", "arguments": "{}", "output": "3"}}),
        call({"function": {"name": "f", "arguments": "{}"}, "name": "g"}),
        call({"function": {"name": "f", "arguments": "{}"}, "type": "custom"}),
    ],
    "the flag `loss`, `train` or `training` of a reply": [reply(loss=False), reply(train=True), reply(training=0)],
    "such a flag that is not true or false, contradicts `weight`, or trains another role": [
        reply(loss=0.5),
        reply(train="yes"),
        reply(loss=True, train=False),
        reply(loss=False, weight=2),
        reply(loss=True, weight=0),
        user("q", train=True),
    ],
    "a call under `function_call`, and a result of the role `function`": [
        reply(function_call={"name": "f", "arguments": "{}"}),
        [*reply(None, function_call={"name": "f"}), {"role": "function", "name": "f", "content": "x"}, REPLY],
    ],
    'an unknown key with null, "", [] or {}': [user("q", refusal=None, audio="", annotations=[], extra={})],
    # roles
    "no role, or a role that is not a string": [[{"content": "q"}, REPLY], [{"role": 3, "content": "q"}, REPLY]],
    "an unknown role (`critic`, `human`, `User`)": [
        [{"role": r, "content": "q"}, REPLY] for r in ("critic", "human", "User")
    ],
    "`developer`, in a chat format without that role": [[{"role": "developer", "content": "x"}, USER, REPLY]],
    "no assistant message": [[USER, USER]],
    # content
    "text": [user("q"), user("naïve 😀")],
    "a list of text parts": [
        user([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]),
        user(({"type": "text", "text": "a"},)),
    ],
    "a plain string in a list of parts": [user(["hi"])],
    "a part of an unknown type, or without a type": [
        user([{"type": "audio"}]),
        user([{"text": "a"}]),
        user([{"type": ["text"]}]),
    ],
    "a text or thinking part without its string": [
        user([{"type": "text"}]),
        reply([{"type": "thinking", "thinking": 3}]),
    ],
    "a part with the content of two kinds": [
        user([{"type": "text", "text": "a", "image": IMAGE}]),
        user([{"type": "image", "image": IMAGE, "text": "a"}]),
    ],
    "an image part without an image": [
        user([{"type": "image", "image": ""}]),
        user([{"type": "image_url", "image_url": {}}]),
    ],
    'an image URL with a `detail` other than "auto"': [
        user([{"type": "image_url", "image_url": {"url": IMAGE, "detail": "low"}}]),
    ],
    "an image, in a chat format without images": [user([{"type": "image", "image": IMAGE}])],
    "content of another type": [user(3), user({"text": "a"}), user(b"q"), user({"type": "text", "text": "a"})],
    "an unpaired surrogate in any text": [
        user("a\ud83d"),
        user([{"type": "text", "text": "\ud83d"}]),
        reply(name="\ud83d"),
    ],
    "no content or null, and nothing else": [[{"role": "user"}, REPLY], user(None), reply(None)],
    "no content or null, beside tool calls (parsed or unparsed)": [
        reply(None, tool_calls=[{"name": "f"}]),
        [USER, {"role": "assistant", "tool_calls": [{"name": "f"}]}],
        reply(None, unparsed_tool_calls=[{"raw_text": "{", "error": "cut"}]),
    ],
    "no content or null, in a tool's result": [result(content=None), result()],
    "empty or blank content, and nothing else": [
        user(""),
        user(" \n"),
        user([]),
        user([{"type": "text", "text": ""}]),
        reply(""),
    ],
    "empty content beside tool calls, or in a tool's result": [call({"name": "f"}), result(content="")],
    "reasoning and no content": [reply("", reasoning_content="hm"), reply(None, reasoning="hm")],
    # reasoning
    "reasoning under one of `reasoning_content`, `reasoning`, `thinking`, or as a thinking part first": [
        reply(reasoning_content="hm"),
        reply(reasoning="hm"),
        reply(thinking="hm"),
        reply([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}]),
    ],
    "reasoning that is not a string": [reply(reasoning_content=["hm"]), reply(thinking=True)],
    "reasoning given more than once": [reply(reasoning="hm", thinking="hm")],
    "a thinking part after text": [reply([{"type": "text", "text": "a"}, {"type": "thinking", "thinking": "hm"}])],
    "reasoning or tool calls of another role": [user("q", reasoning="hm"), user("q", tool_calls=[{"name": "f"}])],
    # tool calls
    'a call in OpenAI\'s shape, flat (`{"name", "arguments"}`), or a `ToolCall`': [
        function('{"a": 1}'),
        function({"a": 1}),
        call({"name": "f", "arguments": {"a": 1}}),
        call({"name": "f", "arguments": "{}", "function": None, "id": None}),
        call(ToolCall(ToolCall.FunctionBody("f", '{"a": 1}'))),
    ],
    'no arguments, null, "" or {}': [
        call({"function": {"name": "f"}}),
        call({"name": "f"}),
        function(None),
        function(""),
        function({}),
        call(ToolCall(ToolCall.FunctionBody("f", ""))),
    ],
    "arguments that are not JSON, or repeat a key": [
        function('{"a": 1, "a": 2}'),
        function('{"a": [{"b": 1, "b": 1}]}'),
        function('{"a": 1e999}'),
        function('{"a":'),
        function("f(1)"),
        function(" "),
        function('{"a": NaN}'),
        call({"name": "f", "arguments": "{oops"}),
        call(ToolCall(ToolCall.FunctionBody("f", "{oops"))),
    ],
    "arguments that are JSON, but not an object": [
        function("[1]"),
        function([1]),
        function(3),
        function("null"),
        function('"x"'),
    ],
    "arguments as a dictionary that is not JSON-serializable": [function({"a": float("nan")}), function({"a": {1}})],
    "arguments with more than 100 lists and objects inside each other": [
        function('{"a": ' * 101 + "1" + "}" * 101),
        function({"a": json.loads("[" * 100 + "]" * 100)}),
    ],
    "arguments under another name (`parameters`, `input`)": [call({"name": "f", "parameters": {"a": 1}})],
    "a call without a name": [
        call({"function": {}}),
        call({"id": "1"}),
        call({"name": ""}),
        call("f"),
        function("{}", function={"name": 3}),
    ],
    "an id that is not a string": [function("{}", id=7), result(content="x", tool_call_id=["1"])],
    "`tool_calls` that is empty": [reply(tool_calls=[]), reply(tool_calls=""), reply(tool_calls={})],
    "`tool_calls` that is not a list": [reply(tool_calls={"name": "f"}), reply(tool_calls="f"), reply(tool_calls=5)],
    "a result of a call that was made, or without an id": [result(content="x", tool_call_id="1"), result(content="x")],
    "a result of a call that was never made": [result(content="x", tool_call_id="2")],
    "unparsed calls": [
        reply("", unparsed_tool_calls=[{"raw_text": "{", "error": "cut"}]),
        reply("", unparsed_tool_calls=[UnparsedToolCall("{", "cut")]),
    ],
    "unparsed calls without `raw_text`, or not in a list": [
        reply(unparsed_tool_calls=[{"error": "x"}]),
        reply(unparsed_tool_calls=["{"]),
        reply(unparsed_tool_calls=[{"raw_text": "{", "error": "cut", "name": "f"}]),
        reply(unparsed_tool_calls=3),
    ],
    # other keys
    "a finite `weight`, also negative": [reply(weight=0.5), reply(weight=-1)],
    "any other `weight`": [
        reply(weight="1"),
        reply(weight=True),
        reply(weight=float("nan")),
        reply(weight=1e39),
        reply(weight=10**400),
    ],
    "`trainable` that is not true or false": [reply(trainable=1), reply(trainable="yes")],
    "`name` or `tool_call_id` that is not a string": [user("q", name=3), result(content="x", tool_call_id=3)],
    # tools
    "tools in OpenAI's shape, or bare": [
        tools(DECLARED),
        tools(DECLARED["function"]),
        tools({"type": "function", **DECLARED["function"]}),
        tools({**DECLARED["function"], "strict": True}),
        ([{"role": "system", "content": "s", "tools": [DECLARED]}, USER, REPLY], None),
    ],
    "no tools: null or empty": [([USER, REPLY], value) for value in (None, [], "", {})],
    "tools that are not a list": [([USER, REPLY], value) for value in ("f", 5, 0, DECLARED)],
    "a tool without a name, or with parameters that are not a JSON schema": [
        tools({"function": {}}),
        tools({"name": ""}),
        tools("f"),
        tools({"name": "f", "parameters": [1]}),
        tools({"name": "f", "parameters": {"city": {"type": "string"}}}),
        tools({"name": "f", "parameters": {"type": {"type": "string"}}}),
        tools({"name": "f", "description": "\ud800"}),
    ],
    "a tool of another type, with keys beside `function`, or with `input_schema`": [
        tools({"type": "custom", "name": "f"}),
        tools({**DECLARED, "strict": True}),
        tools({"name": "f", "input_schema": {"type": "object", "properties": {}}}),
        tools({"name": "f", "inputSchema": {"type": "object", "properties": {}}}),
    ],
    "tools on a message that is not a system message at the start": [user("q", tools=[DECLARED])],
    "tools declared twice": [
        tools(DECLARED, messages=[{"role": "system", "content": "s", "tools": [DECLARED]}, USER, REPLY])
    ],
}


def table() -> dict[str, list[str]]:
    """Return first cell -> the other cells, of the table in the README."""
    text = README.read_text(encoding="utf-8").partition("| a message with ")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines()[2:]]
    return {case: others for case, *others in rows}


@pytest.fixture(scope="module")
def renderer() -> Any:
    return get_renderer("qwen3", get_tokenizer("tiny"))


def outcome(function: Any) -> str:
    try:
        function()
    except TinkerloopError:
        return "rejected"
    else:
        return "accepted"


def test_the_table_has_a_row_for_each_case() -> None:
    assert list(table()) == list(CASES)


@pytest.mark.parametrize("case", CASES)
def test_a_message_is_accepted_and_refused_where_the_table_says(renderer: Any, case: str) -> None:
    in_renderer, in_datum, in_file = (cell.partition(" ")[0].strip(",:") for cell in table()[case][:3])
    for conversation in CASES[case]:
        has_tools = isinstance(conversation, tuple) and isinstance(conversation[0], list)
        messages, declared = conversation if has_tools else (conversation, None)
        raw = RawRow("chats.jsonl", 1, {"messages": messages, "tools": declared})
        seen = (
            outcome(lambda m=messages, t=declared: renderer.build_supervised_example(m, tools=t)),
            outcome(lambda m=messages, t=declared: conversation_to_datum(m, renderer, tools=t)),
            outcome(lambda r=raw: parse_conversation(r)),
        )
        assert seen == (in_renderer, in_datum, in_file), conversation


def test_renderers_and_datums_disagree_only_about_what_makes_a_row_training_data() -> None:
    differing = {case for case, (in_renderer, in_datum, *_) in table().items() if in_renderer != in_datum}
    assert differing == {
        "empty or blank content, and nothing else",
        "reasoning and no content",
    }


def test_a_row_with_a_bad_message_says_the_same_with_its_file_and_line() -> None:
    messages = function("[1]")
    problem = "messages[1]: the arguments of 'f' must be a JSON object, got list; keep a sampled call that is not JSON"
    with pytest.raises(RenderError) as bare:
        read_conversation(messages)
    assert str(bare.value).startswith(problem)
    with pytest.raises(DataError) as located:
        parse_conversation(RawRow("chats.jsonl", 7, json.dumps({"messages": messages}).encode()))
    assert str(located.value) == f"chats.jsonl:7: {bare.value}"
    assert isinstance(located.value.remedy, str)


def test_an_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(MessageError("a problem", place="messages[0]", remedy="a remedy")))
    assert (str(error), error.place, error.remedy) == ("messages[0]: a problem; a remedy", "messages[0]", "a remedy")


def test_arguments_are_read_as_they_were_written() -> None:
    for arguments, text in ((' {"a":1}\n', ' {"a":1}\n'), ({"a": "é"}, '{"a": "é"}'), ("", "{}"), (None, "{}")):
        assert read_message(function(arguments)[1]).tool_calls[0].function.arguments == text


def test_an_iterator_of_messages_keeps_its_tools() -> None:
    messages = [{"role": "system", "content": "s", "tools": [DECLARED]}, USER]
    assert read_conversation(iter(messages)).tools == (DECLARED["function"],)  # type: ignore[arg-type]


def test_a_parsed_conversation_holds_plain_dictionaries() -> None:
    raw = RawRow("chats.jsonl", 1, {"messages": [USER | {"id": 3}, *function(None)[1:]]})
    parsed = parse_conversation(raw)
    assert parsed == Conversation([USER, function(None)[1]], None, {}, "chats.jsonl", 1)

"""Arguments of calls are nested so far that every function can process them, and no further."""

from __future__ import annotations

from typing import Any

import pytest

from tests.renderers.chats import everyones_tokenizer, renderer
from tinkerloop.data.file_readers import parse_line
from tinkerloop.errors import RenderError
from tinkerloop.message_checks import read_message
from tinkerloop.renderers.parsing.call_syntaxes import read_gemma, read_python
from tinkerloop.strict_json import DEEPEST, STRICT_JSON
from tinkerloop.tool_checks import read_tools


def nested(depth: int) -> str:
    """Return JSON with lists and objects in turn inside each other."""
    value = "1"
    for i in range(depth):
        value = f"[{value}]" if i % 2 else f'{{"k": {value}}}'
    return value


def lists(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize("write", [nested, lists])
@pytest.mark.parametrize("depth", [DEEPEST + 1, 985, 5000])
def test_a_value_that_is_nested_too_deeply_is_refused(write: Any, depth: int) -> None:
    for decode in (STRICT_JSON.decode, STRICT_JSON.raw_decode):
        with pytest.raises(ValueError, match="more than 100 lists and objects are inside each other"):
            decode(write(depth))
    assert STRICT_JSON.decode(write(DEEPEST))


@pytest.mark.parametrize("text", ['"' + "[" * 300 + '"', "1" * 300, "[" + "[], {}," * 300 + "[]]", '{"a": "x"}'])
def test_a_long_value_is_not_a_deep_one(text: str) -> None:
    assert STRICT_JSON.decode(text)


@pytest.mark.parametrize("is_text", [True, False])
def test_arguments_of_a_message_have_the_same_limit_as_text_and_as_an_object(is_text: bool) -> None:
    def message(depth: int) -> dict[str, Any]:
        arguments = f'{{"a": {lists(depth - 1)}}}'
        call = {"name": "f", "arguments": arguments if is_text else STRICT_JSON.decode(arguments)}
        return {"role": "assistant", "content": "", "tool_calls": [call]}

    assert read_message(message(DEEPEST)).tool_calls
    deeper = message(DEEPEST)
    if is_text:
        deeper = message(DEEPEST + 1)
    else:
        deeper["tool_calls"][0]["arguments"] = {"b": deeper["tool_calls"][0]["arguments"]}
    with pytest.raises(RenderError, match="the arguments of 'f' are not JSON: more than 100 lists"):
        read_message(deeper)


def test_a_declaration_that_is_nested_too_deeply_is_refused() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(DEEPEST):
        schema = {"properties": {"a": schema}}
    with pytest.raises(RenderError, match="'f' is not JSON-serializable: more than 100 lists"):
        read_tools([{"name": "f", "parameters": schema}])


def test_a_column_of_a_row_that_nothing_reads_may_be_nested_more_deeply() -> None:
    assert parse_line(f'{{"messages": [], "tree": {lists(300)}}}'.encode(), "file", 2)["messages"] == []


CALLS = {
    "qwen3": '<tool_call>\n{{"name":"f","arguments":{{"a":{}}}}}\n</tool_call>',
    "llama3": '{{"name":"f","parameters":{{"a":{}}}}}',
    "llama4": '{{"name":"f","parameters":{{"a":{}}}}}',
    "mistral_v3": '[TOOL_CALLS] [{{"name":"f","arguments":{{"a":{}}}}}]',
    "gemma4": "<|tool_call>call:f{{a:{}}}<tool_call|>",
    "tml_v0": '<|message_model|>f<|content_invoke_tool_json|>{{"name":"f","args":{{"a":{}}}}}<|end_message|>',
    "kimi_k2": '<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{{"a":{}}}<|tool_call_end|>',
}


@pytest.mark.parametrize("name", CALLS)
def test_a_sampled_call_that_is_nested_too_deeply_is_not_parsed(name: str) -> None:
    """Some depths just below Python's limit raised an error."""
    ours, encode = renderer(name), everyones_tokenizer().encode
    for depth in (DEEPEST - 5, DEEPEST + 1, *range(880, 1000), 5000):
        ids = encode(CALLS[name].format(lists(depth)), add_special_tokens=False)
        message: Any = ours.parse_response([*ids, ours.get_stop_sequences()[0]], messages=[]).message
        assert ("tool_calls" in message) is (depth < DEEPEST), depth


@pytest.mark.parametrize(("read", "call"), [(read_gemma, "call:f{{a:{}}}"), (read_python, "f(a={})")])
def test_the_readers_that_read_no_json_have_the_same_limit(read: Any, call: str) -> None:
    assert hasattr(read(call.format(lists(DEEPEST - 5)))[0], "function")
    assert "more than 100 lists" in read(call.format(lists(DEEPEST + 1)))[0].error
    assert hasattr(read(call.format(lists(5000)))[0], "error")

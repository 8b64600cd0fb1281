"""A call that repeats an argument is kept as it was sampled, as an unparsed call, because one value would be lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tinkerloop.messages import ToolCall, UnparsedToolCall
from tinkerloop.renderers.gemma_calls import QUOTE, read_quoted_call
from tinkerloop.renderers.parsing import call_syntaxes
from tinkerloop.renderers.text_calls import read_text_calls
from tinkerloop.renderers.tool_calls import (
    read_identified_call,
    read_json_call,
    read_keyed_call,
    read_message_call,
    read_named_call,
    read_xml_call,
)


def xml(name: str) -> str:
    return f"<function=f>\n<parameter=a>\n1\n</parameter>\n<parameter={name}>\n2\n</parameter>\n</function>"


def of_text(fields: list[str]) -> Any:
    ((_, call),) = read_text_calls(fields[0])
    return call


def of_syntax(reader: Callable[..., Any]) -> Callable[[list[str]], Any]:
    def read(fields: list[str]) -> Any:
        (call,) = reader(fields[0])
        return call

    return read


READERS: dict[str, tuple[Callable[[list[str]], Any], Callable[[str], list[str]]]] = {
    "JSON": (read_json_call, lambda k: [f'{{"name": "f", "arguments": {{"a": 1, "{k}": 2}}}}']),
    "JSON, inside": (read_json_call, lambda k: [f'{{"name": "f", "arguments": {{"x": [{{"a": 1, "{k}": 2}}]}}}}']),
    "JSON in other words": (read_json_call, lambda k: [f'{{"arguments": {{"a": 1, "{k}": 2}}, "name": "f"}}']),
    "XML": (read_xml_call, lambda k: [xml(k)]),
    "keys and values": (read_keyed_call, lambda k: ["f", "a", "", "1", "", k, "", "2", ""]),
    "a name and JSON": (read_named_call, lambda k: ["f", f'{{"a": 1, "{k}": 2}}']),
    "a name, an id and JSON": (read_identified_call, lambda k: ["f", "123456789", f'{{"a": 1, "{k}": 2}}']),
    "a message": (read_message_call, lambda k: ["f", f'{{"name":"f","args":{{"a":1,"{k}":2}}}}']),
    "Gemma 4": (read_quoted_call, lambda k: f"call:f{{a:1,{k}:{QUOTE}2{QUOTE}}}".split(QUOTE)),
    "text in JSON": (of_text, lambda k: [f'{{"name": "f", "parameters": {{"a": 1, "{k}": 2}}}}']),
    "template: JSON": (
        of_syntax(call_syntaxes.read_json),
        lambda k: [f'{{"name": "f", "arguments": {{"a": 1, "{k}": 2}}}}'],
    ),
    "template: functions": (
        lambda f: of_syntax(lambda b: call_syntaxes.read_functions(b, json_scalars=True))(f),
        lambda k: [xml(k)],
    ),
    "template: invokes": (
        of_syntax(call_syntaxes.read_invokes),
        lambda k: [f'<invoke name="f"><parameter name="a">1</parameter><parameter name="{k}">2</parameter></invoke>'],
    ),
    "template: keys": (
        of_syntax(call_syntaxes.read_keys),
        lambda k: [f"f<arg_key>a</arg_key><arg_value>1</arg_value><arg_key>{k}</arg_key><arg_value>2</arg_value>"],
    ),
    "template: a name and JSON": (of_syntax(call_syntaxes.read_named_json), lambda k: [f'f[ARGS]{{"a": 1, "{k}": 2}}']),
    "template: Python": (of_syntax(call_syntaxes.read_python), lambda k: [f"[f(a=1, {k}=2)]"]),
    "template: Python, inside": (of_syntax(call_syntaxes.read_python), lambda k: [f"[f(x={{'a': 1, '{k}': 2}})]"]),
    "template: Gemma 4": (of_syntax(call_syntaxes.read_gemma), lambda k: [f"call:f{{a:1,{k}:2}}"]),
}


@pytest.mark.parametrize("form", READERS)
def test_a_repeated_argument_is_not_lost(form: str) -> None:
    read, written = READERS[form]
    assert isinstance(read(written("b")), ToolCall)
    assert isinstance(read(written("a")), UnparsedToolCall)


@pytest.mark.parametrize(
    "read, body",
    [
        (read_json_call, '{"name": "f", "arguments": {}, "parameters": {"a": 1}}'),
        (read_json_call, '{"name": "f", "arguments": {}, "id": 5}'),
        (read_json_call, r'{"name": "f", "arguments": {}, "id": "\ud800"}'),
        (of_syntax(call_syntaxes.read_json), '{"name": "f", "arguments": {}, "parameters": {}}'),
        (of_syntax(call_syntaxes.read_json), '{"name": "g", "function": {"name": "f", "arguments": {}}}'),
        (of_syntax(call_syntaxes.read_json), '{"name": "f", "arguments": {}, "id": 5}'),
        (of_syntax(call_syntaxes.read_json), '{"name": "f", "arguments": {}, "type": "custom"}'),
        (of_syntax(call_syntaxes.read_json), r'{"name": "\ud800", "arguments": {}}'),
        (of_syntax(call_syntaxes.read_invokes), '<invoke name="f"></invoke><invoke name="g"></calls>'),
        (of_syntax(call_syntaxes.read_invokes), '<invoke name="f"></invoke><b>'),
    ],
)
def test_what_a_call_cannot_hold_is_not_lost(read: Callable[[list[str]], Any], body: str) -> None:
    assert read([body]).raw_text == body


def test_an_id_of_a_json_call_is_kept() -> None:
    call = read_json_call(['{"name": "f", "arguments": {}, "id": "c1"}'])
    assert isinstance(call, ToolCall)
    assert call.id == "c1"


@pytest.mark.parametrize("repeated", ["[f(a=1, a=2)]", "[f(x={'a': 1, 'a': 2})]"])
def test_a_list_in_python_that_repeats_an_argument_is_text_without_a_declaration(repeated: str) -> None:
    assert read_text_calls(repeated) == [(repeated, None)]
    ((_, call),) = read_text_calls(repeated, [{"name": "f"}])
    assert isinstance(call, UnparsedToolCall)


@pytest.mark.parametrize("value", ["1e999", "(1, 2)", "{1: 2}", "{1}", "b'x'", "1j"])
def test_a_value_in_python_without_an_equal_in_json_is_not_changed(value: str) -> None:
    (call,) = call_syntaxes.read_python(f"[f(a={value})]")
    assert isinstance(call, UnparsedToolCall)

"""llama3 writes a call as ordinary text. Every form of call that models sample is read, and none is hidden in text."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.renderers.chats import everyones_tokenizer, renderer, tokenizer_with
from tinkerloop.errors import RenderError
from tinkerloop.renderers import StreamingTextDelta, StreamingToolCallDelta, get_renderer
from tinkerloop.renderers.text_calls import find_call
from tinkerloop.tokenizers.encoders import encoder_of

F = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}
F1 = [("f", {"a": 1})]


def parsed(spelled: str, tools: Any = None) -> Any:
    ids = everyones_tokenizer().encode(spelled, add_special_tokens=False)
    return renderer("llama3").parse_response(ids, tools=tools)


def calls(message: Any) -> list[tuple[str, Any]]:
    return [(call.function.name, json.loads(call.function.arguments)) for call in message.get("tool_calls", ())]


@pytest.mark.parametrize("end", ["<|eot_id|>", "<|eom_id|>", "\n<|eot_id|>"])
@pytest.mark.parametrize(
    ("spelled", "expected"),
    [
        ('{"name": "f", "parameters": {"a": 1}}', F1),
        ('{"name":"f","parameters":{"a":1}}', F1),
        ('\n\n{\n  "name": "f",\n  "parameters": {\n    "a": 1\n  }\n}', F1),
        ('{"parameters": {"a": 1}, "name": "f"}', F1),
        ('{"name": "f", "arguments": {"a": 1}}', F1),
        ('{"arguments": {"a": 1}, "name": "f"}', F1),
        ('{"type": "function", "name": "f", "parameters": {"a": 1}}', F1),
        ('{"type": "function", "function": "f", "parameters": {"a": 1}}', F1),
        ('{"function": "f", "parameters": {"a": 1}}', F1),
        ('{"type": "function", "function": {"name": "f", "parameters": {"a": 1}}}', F1),
        ('{"name": "f", "parameters": "{\\"a\\": 1}"}', F1),
        ('{"type": "function", "name": "f"}', [("f", {})]),
        ('{"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {}}', [*F1, ("g", {})]),
        ('{"name": "f", "parameters": {"a": 1}}\n{"name": "g", "parameters": {}}', [*F1, ("g", {})]),
        ('[{"name": "f", "parameters": {"a": 1}}, {"name": "g", "parameters": {}}]', [*F1, ("g", {})]),
        ('<|python_tag|>{"name": "f", "parameters": {"a": 1}}', F1),
        ('<|python_tag|>{"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {}}', [*F1, ("g", {})]),
        ('<|python_tag|>brave_search.call(query="Who is \\"X\\"?")', [("brave_search", {"query": 'Who is "X"?'})]),
        ('<function=f>{"a": 1}</function>', F1),
        ("[f(a=1)]", F1),
        ("[get.it(city='Bern', days=[1, None]), g()]", [("get.it", {"city": "Bern", "days": [1, None]}), ("g", {})]),
    ],
)
def test_a_call_is_read_in_every_form_that_models_sample(spelled: str, expected: Any, end: str) -> None:
    message, termination = parsed(spelled + end)
    assert calls(message) == expected
    assert message["content"] == ""
    assert "unparsed_tool_calls" not in message
    assert termination


@pytest.mark.parametrize(
    "spelled",
    [
        '{"name": "f", "parameters": {"a": 1}',
        '{"name": "f", "parameters": {"a": True}}',
        "{'name': 'f', 'parameters': {'a': 1}}",
        '{"name": "f", "param',
        '{"name": "Bob"',
        '{"type": "function", "na',
        '{"name": "f", "parameters": [1]}',
        '{"name": "f", "parameters": null}',
        '{"name": "f", "parameters": {"a": 1}, "note": "x"}',
        '{"name": "f", "parameters": {}, "arguments": {"a": 1}}',
        '{"name": 3, "type": "function", "parameters": {}}',
        '{"name": "f", "parameters": {"a": NaN}}',
        '{"name": "\\ud800", "parameters": {}}',
        '[{"name": "f", "parameters": {}}, 3]',
        "<|python_tag|>print(1)",
        '<|python_tag|>f.call("x")',
        '<|python_tag|>f.call(x=b"y")',
        "<|python_tag|>",
        "<function=f>{</function>",
        '<function=f>{"a": 1}',
        'Sure:\n{"name": "f", "parameters": {"a": 1}',
    ],
)
def test_what_looks_like_a_call_but_cannot_be_read_is_an_unparsed_call(spelled: str) -> None:
    message, _ = parsed(spelled + "<|eot_id|>")
    assert "tool_calls" not in message
    (call,) = message["unparsed_tool_calls"]
    assert message["content"] + call.raw_text == spelled.replace("Sure:\n", "Sure:")
    assert call.error


@pytest.mark.parametrize(
    "spelled",
    [
        '{"name": "Bob", "age": 3}',
        '{"answer": {"name": "f"}, "parameters": 3}',
        "{",
        "[1, 2]",
        "[f(x), g(x)]",
        "[a link](https://example.com)",
        "A set {x | x > 1}, a <b>tag</b> and {name} ",
        "if (a) { name(b); }",
        "",
        " \n",
    ],
)
def test_ordinary_text_and_json_stay_text(spelled: str) -> None:
    message, termination = parsed(spelled + "<|eot_id|>")
    assert message == {"role": "assistant", "content": spelled}
    assert termination


def test_a_call_beside_text_is_read_if_its_tool_is_declared() -> None:
    spelled = 'I will look.\n\n{"name": "f", "parameters": {"a": 1}}\nThen we see.<|eot_id|>'
    message, _ = parsed(spelled, tools=[F])
    assert calls(message) == F1
    assert message["content"] == "I will look.\nThen we see."
    message, _ = parsed(spelled)
    assert "tool_calls" not in message
    assert message["unparsed_tool_calls"][0].raw_text == '{"name": "f", "parameters": {"a": 1}}'
    assert "may be a quotation" in message["unparsed_tool_calls"][0].error


def test_a_declared_name_alone_is_a_call_without_arguments() -> None:
    assert calls(parsed('{"name": "f"}<|eot_id|>', tools=[F]).message) == [("f", {})]
    assert parsed('{"name": "f"}<|eot_id|>').message["content"] == '{"name": "f"}'


def test_a_call_in_the_form_of_the_format_keeps_the_text_of_its_arguments() -> None:
    message, _ = parsed('{"name": "f", "parameters": {"a":  1e2}}<|eot_id|>')
    assert message["tool_calls"][0].function.arguments == '{"a":  1e2}'


@pytest.mark.parametrize(
    "spelled",
    [
        'Look: {x} [a](b) \n {"name": "f", "parameters": {"a": 1}} ; {"name": "g", "parameters": {}} so',
        'a { "nam { "name": "Bob" } <|python_tag|>f.call(a=1)',
        'x <function=f>{"a": 1}</function> [f(a=1)] {',
    ],
)
def test_streaming_a_call_in_text_gives_the_message_for_every_chunking(spelled: str) -> None:
    ids = everyones_tokenizer().encode(spelled + "<|eot_id|>", add_special_tokens=False)
    whole = renderer("llama3").parse_response(ids, tools=[F])
    for size in (1, 2, 3, 7, 1000):
        parser = renderer("llama3").parser(tools=[F])
        deltas = [delta for i in range(0, len(ids), size) for delta in parser.feed(ids[i : i + size])]
        last, streamed = parser.finish()
        assert streamed == whole
        text = "".join(delta.text for delta in deltas + last if isinstance(delta, StreamingTextDelta))
        assert text == whole.message["content"]
        assert any(isinstance(delta, StreamingToolCallDelta) for delta in deltas)


def test_text_that_cannot_be_a_call_is_not_held_back() -> None:
    for spelled in ('{"answer": ', "[link](", "<b> and {x}", "[1, "):
        assert find_call(spelled) == len(spelled)
    for spelled, start in (("x {", 2), ('x { "na', 2), ("x <func", 2), ('x [{"name"', 2), ("x [f.g(", 2)):
        assert find_call(spelled) == start


def test_the_python_tag_begins_a_call_only_as_a_control_token() -> None:
    spelled, ours = "<|python_tag|>f.call(a=1)", renderer("llama3")
    ordinary = [*encoder_of(everyones_tokenizer()).encode(spelled), *ours.get_stop_sequences()[:1]]
    assert ours.parse_response(ordinary).message == {"role": "assistant", "content": spelled}
    assert calls(parsed(spelled + "<|eot_id|>").message) == F1


def test_a_call_before_the_python_tag_is_read_too() -> None:
    message, _ = parsed('{"name": "f", "parameters": {"a": 1}}<|python_tag|>g.call()<|eom_id|>', tools=[F])
    assert calls(message) == [*F1, ("g", {})]


def test_a_trained_reply_that_spells_the_python_tag_is_refused() -> None:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "<|python_tag|>f.call()"}]
    with pytest.raises(RenderError, match=r"spells '<\|python_tag\|>'"):
        get_renderer("llama3", everyones_tokenizer()).build_supervised_example(messages)


def test_sampling_stops_where_a_call_awaits_its_result() -> None:
    ids = everyones_tokenizer().convert_tokens_to_ids(["<|eot_id|>", "<|eom_id|>"])
    assert renderer("llama3").get_stop_sequences() == ids
    older = get_renderer(
        "llama3", tokenizer_with(["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"])
    )
    assert len(older.get_stop_sequences()) == 1

"""Properties of every chat format. Each check of `tinkerloop.testing` runs for every built-in renderer name.

A format that cannot have a property declares this (`has_extension_property`, `disables_reasoning`, `UNCLAIMED` in
`chats.py`) or raises an error. Both what a format claims and what it does not claim are checked. Control tokens are
tokens such as <|im_end|> that structure a conversation. The properties, and what checks them:

 1 examples begin with the prompt           prompt_is_a_prefix, a_prompt_for_any_role_...; images: test_images
 2 all sampled tokens have a weight         prompt_is_a_prefix, masks_grow_..., marks_and_weights_...
 3 a trained reply parses to the message    a_reply_parses_back
 4 any sampled ids survive                  any_sampled_ids_survive, any_order_of_turns_keeps_the_samples
 5 has_extension_property is right          extension_property_holds
 6 parsing never raises                     parsing_never_raises
 7 spans account for all ids                parsing_never_raises
 8 deltas fold to the message               deltas_join_to_the_message, no_cut_shows_in_the_deltas
 9 no text is a control token               no_text_becomes_a_control_token; roles: roles_are_a_closed_set
10 no text becomes one by parsing           a_quoted_tag_is_text
11 ids equal the official template's        test_parity, test_goldens (formats that have one)
12 texts equal the official template's      test_parity, test_goldens
13 ids differ only at the prompt's end      test_parity (`ids_with_seams`)
14 masks grow from mode to mode             masks_grow_from_mode_to_mode
15 only sampled tokens are trained          split_examples_train_each_reply_as_sampled
16 each trained reply has one stop token    every_reply_has_one_stop
17 no trained token raises an error         training_nothing_is_refused
18 chunks are merged and none is empty      every_token_has_one_span_and_message
19 every token has its message              every_token_has_one_span_and_message
20 parsing restores argument values         tool_arguments_come_back, declared_arguments_come_back_exactly
21 rendering is pure, byte for byte         rendering_is_pure; across processes: test_processes
22 copies and threads render the same       rendering_is_pure
23 images are counted                       images_are_counted_and_never_trained, tests/images, test_images
24 a cut inside reasoning is reasoning      a_cut_inside_reasoning_is_reasoning
25 nothing after a cut is trained           truncation_trains_nothing_after_the_cut; images: test_images
26 an episode is the rendered conversation  an_episode_equals_the_rendered_conversation
27 other messages after a reply raise       what_cannot_follow_a_reply_is_refused, any_sampled_ids_survive
28 backends agree                           tests/tokenizers
29 to OpenAI's message format and back      messages_survive_openais_shape
30 beginning tokens occur exactly once      a_sequence_begins_once
"""

from __future__ import annotations

import json

import pytest
import torch

from tests.renderers.chats import CHECKS, NAMES, claims, everyones_tokenizer, renderer
from tinkerloop.renderers import get_renderer
from tinkerloop.renderers.template import TemplateOptions
from tinkerloop.testing import check_renderer
from tinkerloop.testing._invariant import sampled

every_format = pytest.mark.parametrize("name", NAMES)

EXAMPLES = {
    "no_text_becomes_a_control_token": 15,
    "parsing_never_raises": 15,
    "deltas_join_to_the_message": 15,
    "a_quoted_tag_is_text": 15,
    "any_sampled_ids_survive": 15,
    "extension_property_holds": 25,
    "rendering_is_pure": 2,
}
"""The numbers of examples that are not 4. `test_fuzz` (`pytest -m soak`) tries 500 for every name and check."""
FIRST = {renderer(name).family: name for name in reversed(NAMES)}
"""The first name of each family. The other names differ in options only, and are tried with a third of the examples."""

REWRITING = """\
{%- for m in messages -%}
    {{- '<|im_start|>' + m.role + '\\n' -}}
    {{- '<think>' + m.reasoning_content + '</think>' if loop.last and m.reasoning_content else '' -}}
    {{- m.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{{- '<|im_start|>assistant\\n' if add_generation_prompt else '' -}}
"""
"""A chat template that rewrites history, as the renderer `template` must expect of every template."""


@every_format
@pytest.mark.parametrize("check", CHECKS)
def test_every_format_has_the_property(name: str, check: str) -> None:
    ours = renderer(name)
    if (name, check) == ("template", "extension_property_holds"):
        ours = get_renderer(name, everyones_tokenizer(), options=TemplateOptions(REWRITING))
    examples = EXAMPLES.get(check, 4)
    examples = examples if name == FIRST[ours.family] else max(examples // 3, 1)
    check_renderer(ours, examples=examples, only=check, claims=claims(name))


@every_format
def test_a_tensor_of_ids_is_read_as_the_list_of_them(name):
    ours = renderer(name)
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    ids = ours.build_supervised_example(messages).tokens
    assert ours.parse_response(torch.tensor(ids)) == ours.parse_response(ids)
    assert list(ours.parse_response_streaming(torch.tensor(ids))) == list(ours.parse_response_streaming(ids))


SCHEMAS_OF_STRINGS = [
    ({"type": ["string", "null"]}, "12345"),
    ({"type": ["string", "null"]}, None),
    ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "true"),
    ({"oneOf": [{"type": "string"}, {"type": "boolean"}]}, "true"),
    ({"enum": ["1", "2"]}, "1"),
    ({"enum": [1, 2]}, 1),
    ({"const": "true"}, "true"),
    ({"const": True}, True),
    ({"$ref": "#/$defs/S"}, "42"),
    ({"allOf": [{"$ref": "#/$defs/S"}]}, "42"),
    ({"type": "integer"}, 3),
    ({"anyOf": [{"type": "array", "items": {}}, {"type": "null"}]}, [1]),
    ({}, 3),
    ({"$ref": "#/$defs/Itself"}, 3),
]


@pytest.mark.parametrize(("schema", "value"), SCHEMAS_OF_STRINGS)
@pytest.mark.parametrize("name", ["qwen3_5", "nemotron3", "glm5_3_max_reasoning"])
def test_an_argument_keeps_the_type_that_its_schema_allows(name, schema, value):
    defs = {"S": {"type": "string", "enum": ["42"]}, "Itself": {"$ref": "#/$defs/Itself"}}
    tools = [{"name": "f", "parameters": {"type": "object", "properties": {"x": schema}, "$defs": defs}}]
    call = {"function": {"name": "f", "arguments": {"x": value}}}
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    ids = sampled(renderer(name).build_supervised_example(messages, tools=tools))
    message = renderer(name).parse_response(ids, tools=tools, messages=messages[:1]).message
    assert json.loads(message["tool_calls"][0].function.arguments) == {"x": value}
    assert type(json.loads(message["tool_calls"][0].function.arguments)["x"]) is type(value)


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("qwen3", '{"name":"f","arguments":{"a":"\\ud800"}}'),
        ("qwen3", '{"name":"\\ud800","arguments":{}}'),
        ("qwen3", '{"name":"f","arguments":"{\\"a\\": \\"\\ud800\\"}"}'),
        ("qwen3", '{"name": "f", "arguments": {"a": NaN}}'),
        ("qwen3", '{"name":"f","arguments":{"a":1e999}}'),
        ("qwen3_5_disable_thinking", '<function=f>\n<parameter=a>\n{"x":"\\ud800"}\n</parameter>\n</function>'),
        ("qwen3_5_disable_thinking", "<function=f>\n<parameter=a>\n[1e999]\n</parameter>\n</function>"),
    ],
)
def test_whatever_a_call_spells_comes_out_as_json_in_unicode(name, body):
    ours = renderer(name)
    ids = ours._assembler.ids
    reply = [ids["<tool_call>"], *ours._encoder.encode(f"\n{body}\n"), ids["</tool_call>"], ids["<|im_end|>"]]
    message = ours.parse_response(reply).message
    for call in message.get("tool_calls", ()):
        call.function.name.encode()
        call.function.arguments.encode()
        json.loads(call.function.arguments, parse_constant=pytest.fail)
    assert "tool_calls" in message or body in message["unparsed_tool_calls"][0].raw_text


def test_arguments_under_another_name_are_not_lost():
    ours = renderer("qwen3")
    ids, body = ours._assembler.ids, '{"name": "f", "parameters": {"a": 1}}'
    reply = [ids["<tool_call>"], *ours._encoder.encode(f"\n{body}\n"), ids["</tool_call>"], ids["<|im_end|>"]]
    message = ours.parse_response(reply).message
    assert "tool_calls" not in message
    assert body in message["unparsed_tool_calls"][0].raw_text
    assert message["unparsed_tool_calls"][0].error == "expected only 'arguments' beside the name, got ['parameters']"


SAMPLED_CALLS = {
    "qwen3": "<tool_call>\n{bad\n</tool_call>",
    "deepseekv3": "<｜tool▁call▁begin｜>f<｜tool▁sep｜>{bad<｜tool▁call▁end｜>",
    "kimi_k2": "<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{bad<|tool_call_end|>",
    "glm5_3_max_reasoning": "<tool_call>f\n<arg_key>a</arg_key>x<arg_value>1</arg_value></tool_call>",
}


@pytest.mark.parametrize(("name", "spelled"), SAMPLED_CALLS.items())
def test_a_call_that_cannot_be_read_has_exactly_the_text_that_was_sampled(name, spelled):
    """This holds for finished calls, for unfinished ones, and when the reply is rendered again."""
    ours, encode = renderer(name), everyones_tokenizer().encode
    question = {"role": "user", "content": "q"}
    before = "</think>" if name.startswith("glm") else ""  # its prompt has opened the reasoning block
    whole = spelled + ours.decode(ours.get_stop_sequences()[:1])
    for reply, raw in ((whole, spelled), (spelled[: spelled.rindex("<")], None)):
        message = ours.parse_response(encode(before + reply, add_special_tokens=False), messages=[question]).message
        assert [call.raw_text for call in message["unparsed_tool_calls"]] == [raw or reply]
    again = ours.build_supervised_example(
        [question, {"role": "assistant", "content": "", "unparsed_tool_calls": [{"raw_text": spelled, "error": ""}]}]
    )
    tokens = "".join(f" {token}" for token in encode(spelled, add_special_tokens=False))
    assert tokens in "".join(f" {token}" for token in again.tokens)


def test_an_argument_that_spells_the_quote_of_gemma4_stays_one_argument() -> None:
    arguments = {"city": 'x<|"|>,n:<|"|>y', "l": [None, {"k": 1.5}, True, []], "n": "None", "z": "{a:1}"}
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    ids = sampled(renderer("gemma4").build_supervised_example(messages))
    (read,) = renderer("gemma4").parse_response(ids).message["tool_calls"]
    assert json.loads(read.function.arguments) == arguments


@pytest.mark.parametrize(
    "spelled",
    [
        '<|python_start|><|python_end|>{"name": "f", "parameters": {"a": 1}}',
        "<|python_start|>[f(a=1)]<|python_end|>",
        '{"name": "f", "parameters": {"a": 1}}',
        "[f(a=1)]",
    ],
)
def test_calls_of_llama4_are_read_in_every_form_that_models_sample(spelled: str) -> None:
    ids = everyones_tokenizer().encode(f"{spelled}<|eot|>", add_special_tokens=False)
    message, termination = renderer("llama4").parse_response(ids)
    assert (message["content"], termination) == ("", "stop_sequence")
    assert [(call.function.name, call.function.arguments) for call in message["tool_calls"]] == [("f", '{"a": 1}')]


def test_a_call_that_cannot_be_read_does_not_spoil_the_next_one() -> None:
    spelled = "[TOOL_CALLS]f[ARGS]{bad[TOOL_CALLS]g[ARGS]{}</s>"
    ids = everyones_tokenizer().encode(spelled, add_special_tokens=False)
    message = renderer("mistral_v13").parse_response(ids).message
    assert [call.function.name for call in message["tool_calls"]] == ["g"]
    assert [call.raw_text for call in message["unparsed_tool_calls"]] == ["[TOOL_CALLS]f[ARGS]{bad"]


@pytest.mark.parametrize(
    ("name", "kept", "converted"),
    [
        ("qwen3_8_disable_thinking", "None", "null"),
        ("qwen3_5_disable_thinking", "null", "None"),
        ("qwen3_coder", "true", "True"),
    ],
)
def test_without_a_declaration_a_literal_that_the_format_writes_otherwise_stays_text(
    name: str, kept: str, converted: str
) -> None:
    for written, is_text in ((kept, True), (converted, False)):
        call = f"<function=f>\n<parameter=a>\n{written}\n</parameter>\n</function>"
        ids = everyones_tokenizer().encode(f"<tool_call>\n{call}\n</tool_call><|im_end|>", add_special_tokens=False)
        message = renderer(name).parse_response(ids).message
        (read,) = message["tool_calls"]
        assert isinstance(json.loads(read.function.arguments)["a"], str) is is_text


@pytest.mark.parametrize(
    ("declared", "written", "expected"),
    [
        ({"type": "integer"}, "None", "None"),
        ({"type": "integer"}, "True", "True"),
        ({"type": ["integer", "null"]}, "None", None),
        ({"type": ["string", "null"]}, "None", "None"),
        ({"type": ["string", "null"]}, "null", None),
        ({"type": "boolean"}, "True", True),
        ({}, "None", "None"),
    ],
)
def test_a_literal_of_the_other_spelling_is_a_value_only_where_the_declaration_asks_for_it(
    declared: dict, written: str, expected: object
) -> None:
    """Otherwise the next prompt of an episode would have `null` where the model sampled `None`."""
    tools = [{"name": "f", "description": "", "parameters": {"type": "object", "properties": {"a": declared}}}]
    call = f"<function=f>\n<parameter=a>\n{written}\n</parameter>\n</function>"
    ids = everyones_tokenizer().encode(f"<tool_call>\n{call}\n</tool_call><|im_end|>", add_special_tokens=False)
    (read,) = renderer("qwen3_8_disable_thinking").parse_response(ids, tools=tools).message["tool_calls"]
    assert json.loads(read.function.arguments) == {"a": expected}

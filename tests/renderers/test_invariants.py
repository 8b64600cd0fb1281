"""Properties of every chat format. Each test runs for every built-in renderer name, without exceptions.

A format that cannot have a property declares this (`has_extension_property`, `disables_reasoning`) or raises an error.
Tests check both what a format declares to have and what it declares not to have. Control tokens are tokens such as
<|im_end|> that structure a conversation. The properties, and the modules or tests that check them:

 1 examples begin with the prompt             test_the_prompt_is_a_prefix_...; images: test_images
 2 all sampled tokens have a weight         test_the_prompt_is_a_prefix_..., test_masks_grow_..., test_customized_...
 3 a trained reply parses to the message    test_a_trained_reply_parses_back_to_the_message
 4 any sampled ids survive                  test_episode: test_any_sampled_ids_survive_verbatim
 5 has_extension_property is right          test_extension
 6 parsing never raises                     test_parsing_never_raises_...
 7 spans account for all ids                test_parsing_never_raises_...
 8 deltas fold to the message               test_folded_deltas_are_the_message_for_every_chunking
 9 no text is a control token               test_no_text_in_a_message_...; roles: test_roles_are_a_closed_set
10 no text becomes one by parsing           test_text_that_spells_a_tag_is_text_after_parsing_too
11 ids equal the official template's        test_parity, test_goldens (formats that have one)
12 texts equal the official template's      test_parity, test_goldens
13 ids differ only at the prompt's end      test_parity (`ids_with_seams`)
14 masks grow from mode to mode             test_masks_grow_...
15 only sampled tokens are trained          test_extension: test_split_examples_...
16 each trained reply has one stop token    test_every_trained_reply_owns_exactly_one_stop
17 no trained token raises an error         test_an_example_that_trains_nothing_...
18 chunks are merged and none is empty      test_spans_and_attribution_...
19 every token has its message              test_spans_and_attribution_...
20 parsing restores argument values         test_tool_arguments_..., test_declared_arguments_...
21 rendering is pure, byte for byte          test_rendering_is_pure_...; across processes: test_processes
22 copies and threads render the same       test_rendering_is_pure_...
23 images are counted                       tests/images, test_images
24 a cut inside reasoning is reasoning      test_a_reply_cut_inside_reasoning_...
25 nothing after a cut is trained           test_a_truncated_example_...; images: test_images
26 an episode is the rendered conversation  test_episode: test_an_episode_of_canonical_replies_...
27 other messages after a reply raise       test_episode: test_what_cannot_follow_..., test_any_sampled_ids_...
28 backends agree                           tests/tokenizers
29 to OpenAI's message format and back      test_messages_survive_openais_shape
30 beginning tokens occur exactly once      test_a_sequence_begins_once_however_it_is_composed
"""

from __future__ import annotations

import copy
import json
import pickle
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.renderers.chats import (
    CONTROL,
    NAMES,
    TEXTS,
    TOOLS,
    VALUES,
    conversations,
    decode,
    everyones_tokenizer,
    nfc,
    renderer,
)
from tinkerloop.errors import RenderError, ZeroWeightError
from tinkerloop.renderers import (
    MessageDelta,
    Parsed,
    Part,
    Renderer,
    StreamingTextDelta,
    StreamingThinkingDelta,
    StreamingToolCallDelta,
    TrainOnWhat,
    get_renderer,
)

COMMON: Any = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True, "database": None}
FEW = settings(max_examples=8, **COMMON)
SOME = settings(max_examples=15, **COMMON)
every_format = pytest.mark.parametrize("name", NAMES)

CHOICE = st.sampled_from(range(10))


def fitted(name: str, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages without what the format cannot express. `test_refusals` tests that it raises an error."""
    ours = renderer(name)
    calls = ours.grammar.block(Part.TOOL_CALL) is not None or ours.grammar.read_text is not None
    one_call = name.startswith(("llama3", "gpt_oss"))
    kept = []
    for i, message in enumerate(copy.deepcopy(messages)):
        if message["role"] not in ours.roles or (message["role"] == "tool" and not calls):
            continue
        if message["role"] == "system" and i and name.startswith("gpt_oss"):
            continue
        if message.get("tool_calls") and not calls:
            continue
        if one_call and message.get("tool_calls"):
            message["tool_calls"] = message["tool_calls"][:1]
            if name.startswith("llama3") or message.get("reasoning_content"):
                message["content"] = ""
        if one_call and message["role"] == "tool" and kept[-1]["role"] == "tool":
            continue
        unreasoned = ours.disables_reasoning or name in ("role_colon", "llama3")
        if unreasoned or (name == "deepseekv3_thinking" and kept and kept[-1]["role"] == "tool"):
            message.pop("reasoning_content", None)
        if name == "role_colon":
            message["content"] = message["content"].replace("\n", " ").replace("\r", " ")
        kept.append(message)
    return kept


def takes_tools(name: str) -> bool:
    return name != "role_colon"


def supervised(name: str, messages: list[dict[str, Any]], mode: str = "last_assistant_message", **kwargs: Any) -> Any:
    return renderer(name).build_supervised_example(messages, mode, allow_zero_weight=True, **kwargs)


def prompt(name: str, messages: list[dict[str, Any]], **kwargs: Any) -> list[int]:
    return renderer(name).build_generation_prompt(messages, **kwargs).to_ints()


@every_format
@FEW
@given(messages=conversations(late_system=True), tools=st.booleans())
def test_the_prompt_is_a_prefix_and_the_weights_cover_exactly_what_is_sampled_after_it(name, messages, tools):
    messages = fitted(name, messages)
    declared = TOOLS if tools and takes_tools(name) else None
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        asked = prompt(name, messages[:i], tools=declared)
        example = supervised(name, messages[: i + 1], tools=declared)
        assert example.tokens[: len(asked)] == asked
        assert example.weights.dtype == np.float32
        assert np.flatnonzero(example.weights).tolist() == list(range(len(asked), len(example.tokens)))
        assert set(example.weights[len(asked) :]) == {1.0}


@every_format
@FEW
@given(messages=conversations(late_system=True), tools=st.booleans())
def test_a_trained_reply_parses_back_to_the_message(name, messages, tools):
    messages = fitted(name, messages)
    example = supervised(name, messages, tools=TOOLS if takes_tools(name) else None)
    sampled = [t for t, w in zip(example.tokens, example.weights, strict=True) if w]
    parsed = renderer(name).parse_response(sampled, tools=TOOLS if takes_tools(name) else None, messages=messages[:-1])
    assert parsed.termination
    assert sum(span.stop - span.start for span in parsed.spans) == len(sampled)
    # The parsed message is canonical: rendering it again gives the same tokens.
    again = supervised(name, [*messages[:-1], parsed.message], tools=TOOLS if takes_tools(name) else None)
    assert again.tokens == example.tokens


@every_format
@FEW
@given(messages=conversations(late_system=True))
def test_messages_survive_openais_shape(name, messages):
    ours = renderer(name)
    messages = fitted(name, messages)
    sent = [ours.to_openai_message(message) for message in messages]
    assert json.loads(json.dumps(sent)) == sent
    back = [ours.from_openai_message(message) for message in sent]
    assert [ours.to_openai_message(message) for message in back] == sent
    assert supervised(name, sent).tokens == supervised(name, back).tokens == supervised(name, messages).tokens
    example = supervised(name, messages)
    sampled = [t for t, w in zip(example.tokens, example.weights, strict=True) if w]
    parsed = ours.parse_response(sampled, messages=messages[:-1]).message
    assert ours.from_openai_message(ours.to_openai_message(parsed)) == parsed


@every_format
@FEW
@given(messages=conversations())
def test_tool_arguments_come_back_by_value(name, messages):
    messages = fitted(name, messages)
    ends = [i for i, m in enumerate(messages) if m.get("tool_calls")]
    for i in ends:
        example = supervised(name, messages[: i + 1], tools=TOOLS)
        sampled = [t for t, w in zip(example.tokens, example.weights, strict=True) if w]
        parsed = renderer(name).parse_response(sampled, tools=TOOLS, messages=messages[:i])
        given_calls = messages[i]["tool_calls"]
        assert len(parsed.message["tool_calls"]) == len(given_calls)
        for call, wanted in zip(parsed.message["tool_calls"], given_calls, strict=True):
            assert call.function.name == wanted["function"]["name"]
            arguments = json.loads(call.function.arguments)
            keys = [nfc(key) for key in wanted["function"]["arguments"]]
            assert list(arguments) == (sorted(keys) if name == "tml_v0" else keys)
            assert arguments.get("city") == wanted["function"]["arguments"].get("city") or not isinstance(
                wanted["function"]["arguments"].get("city"), str
            )


TYPED = {"string": st.sampled_from(["", "3", "naïve", "true", "null", "x\ny", " pad ", "\n"]) | TEXTS.map(nfc),
         "integer": st.integers(-9, 99), "boolean": st.booleans(), "array": st.lists(VALUES, max_size=2),
         "object": st.dictionaries(st.sampled_from("abc"), VALUES, max_size=2)}  # fmt: skip


@every_format
@FEW
@given(arguments=st.fixed_dictionaries({}, optional=TYPED))
def test_declared_arguments_come_back_exactly(name, arguments):
    """The declared type of an argument decides how its text is parsed, whatever the text looks like."""
    call = {"id": "functions.f:0", "type": "function", "function": {"name": "f", "arguments": arguments}}
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    if len(messages := fitted(name, chat)) == 1:
        with pytest.raises(RenderError, match="no tool calls"):
            supervised(name, chat)
        return
    tools = [{"name": "f", "parameters": {"type": "object", "properties": {kind: {"type": kind} for kind in TYPED}}}]
    example = supervised(name, messages, tools=tools)
    sampled = [t for t, w in zip(example.tokens, example.weights, strict=True) if w]
    message = renderer(name).parse_response(sampled, tools=tools, messages=messages[:1]).message
    assert json.loads(message["tool_calls"][0].function.arguments) == arguments


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
    example = supervised(name, messages, tools=tools)
    sampled = [t for t, w in zip(example.tokens, example.weights, strict=True) if w]
    message = renderer(name).parse_response(sampled, tools=tools, messages=messages[:1]).message
    assert json.loads(message["tool_calls"][0].function.arguments) == {"x": value}
    assert type(json.loads(message["tool_calls"][0].function.arguments)["x"]) is type(value)


@every_format
@SOME
@given(data=st.data())
def test_parsing_never_raises_and_accounts_for_every_id(name, data):
    ours = renderer(name)
    control = st.sampled_from(sorted(ours._assembler.ids.values()) or [0])
    ids = data.draw(st.lists(control | st.integers(-3, 500), max_size=30))
    parsed = ours.parse_response(ids)
    assert "".join(decoded(ours, ids[s.start : s.stop]) for s in parsed.spans) == decoded(ours, ids)
    assert parsed.ids == tuple(ids)


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
    sampled = [ids["<tool_call>"], *ours._encoder.encode(f"\n{body}\n"), ids["</tool_call>"], ids["<|im_end|>"]]
    message = ours.parse_response(sampled).message
    for call in message.get("tool_calls", ()):
        call.function.name.encode()
        call.function.arguments.encode()
        json.loads(call.function.arguments, parse_constant=pytest.fail)
    assert "tool_calls" in message or body in message["unparsed_tool_calls"][0].raw_text


def test_arguments_under_another_name_are_not_lost():
    ours = renderer("qwen3")
    ids, body = ours._assembler.ids, '{"name": "f", "parameters": {"a": 1}}'
    sampled = [ids["<tool_call>"], *ours._encoder.encode(f"\n{body}\n"), ids["</tool_call>"], ids["<|im_end|>"]]
    message = ours.parse_response(sampled).message
    assert "tool_calls" not in message
    assert body in message["unparsed_tool_calls"][0].raw_text
    assert message["unparsed_tool_calls"][0].error == "expected 'arguments' beside the name, got ['parameters']"


@every_format
def test_an_array_of_ids_is_read_as_the_list_of_them(name):
    ours = renderer(name)
    ids = ours.build_supervised_example(
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    ).tokens
    for array in (torch.tensor(ids), np.array(ids)):
        assert ours.parse_response(array) == ours.parse_response(ids)
        assert list(ours.parse_response_streaming(array)) == list(ours.parse_response_streaming(ids))


def decoded(ours: Renderer, ids: list[int]) -> str:
    return ours._encoder.decode_bytes(ids).decode("utf-8", "replace")


@every_format
@SOME
@given(data=st.data(), cuts=st.lists(st.integers(0, 40), max_size=5), messages=conversations())
def test_folded_deltas_are_the_message_for_every_chunking(name, data, cuts, messages):
    ours = renderer(name)
    messages = fitted(name, messages)
    example = supervised(name, messages)
    ids = [t for t, w in zip(example.tokens, example.weights, strict=True) if w]
    control = sorted(ours._assembler.ids.values()) or [0]
    for at in sorted(cuts, reverse=True)[: data.draw(st.integers(0, 3))]:
        ids.insert(min(at, len(ids)), data.draw(st.sampled_from([*control, 226, 130, 10, 10])))
    parser = ours.parser(messages=messages[:-1])
    deltas, at = [], 0
    while at < len(ids):
        step = data.draw(st.integers(1, 4))
        deltas += parser.feed(ids[at : at + step])
        at += step
    last, streamed = parser.finish()
    deltas += last
    batch = ours.parse_response(ids, messages=messages[:-1])
    assert streamed == batch
    assert deltas[-1] == batch.message
    whole = ours.parser(messages=messages[:-1])
    assert folded(deltas) == folded([*whole.feed(ids), *whole.finish()[0]])
    text = "".join(d.text for d in deltas if isinstance(d, StreamingTextDelta))
    thinking = "".join(d.thinking for d in deltas if isinstance(d, StreamingThinkingDelta))
    content = batch.message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    assert text == "".join(p["text"] for p in parts if p["type"] == "text")
    assert thinking == "".join(p["thinking"] for p in parts if p["type"] == "thinking")
    calls = len(batch.message.get("tool_calls", [])) + len(batch.message.get("unparsed_tool_calls", []))
    assert len({d.index for d in deltas if isinstance(d, StreamingToolCallDelta)}) <= calls


def folded(deltas: list[MessageDelta]) -> dict[tuple[type, int], str]:
    """Return the joined text of the deltas, by kind and index of the part or call."""
    texts: dict[tuple[type, int], str] = {}
    for delta in deltas:
        match delta:
            case StreamingTextDelta(text, i) | StreamingThinkingDelta(text, i) | StreamingToolCallDelta(text, i):
                assert text, "a delta without text says nothing"
                texts[type(delta), i] = texts.get((type(delta), i), "") + text
    return texts


@every_format
def test_no_cut_shows_in_what_deltas_fold_to(name):
    """A reply may be fed in two blocks, cut anywhere: inside a character, a text like a tag, or a call."""
    said = "é👩🏽\u200d🚀 <think><tool_call></tool_call><|im_end|> x"
    call = {"type": "function", "function": {"name": "f", "arguments": {"city": said}}}
    plain = {"role": "assistant", "content": said, "reasoning_content": f"r {said}"}
    calling = plain | {"content": "c", "tool_calls": [call | {"id": f"functions.f:{i}"} for i in range(2)]}
    for reply in (plain, calling):
        messages = fitted(name, [{"role": "user", "content": "q"}, reply])
        if len(messages) == 1:  # no calls in this format
            continue
        example = supervised(name, messages)
        ids = [t for t, w in zip(example.tokens, example.weights, strict=True) if w]
        whole, parsed = streamed(name, [ids])
        assert said in "".join(whole.values())
        assert parsed == renderer(name).parse_response(ids)
        cuts = [[ids[:i], ids[i:]] for i in range(1, len(ids))]
        sizes = [[ids[i : i + n] for i in range(0, len(ids), n)] for n in (1, 2, 3, 10)]
        for blocks in (*cuts, *sizes):
            assert streamed(name, blocks) == (whole, parsed)


def streamed(name: str, blocks: list[list[int]]) -> tuple[dict[tuple[type, int], str], Parsed]:
    """Parse a reply block by block. Return the joined texts of its deltas, and the parsed reply."""
    parser = renderer(name).parser()
    deltas = [delta for block in blocks for delta in parser.feed(block)]
    last, parsed = parser.finish()
    return folded(deltas + last), parsed


def control_ids(name: str, tokens: list[int]) -> list[int]:
    return [token for token in tokens if token >= len(everyones_tokenizer()) - len(CONTROL)]


HOSTILE = st.sampled_from([spelled for t in CONTROL for spelled in (t, f"{t}\n", f"<{t}", t[1:])])


@every_format
@SOME
@given(messages=conversations(late_system=True, text=st.just("x")), bad=HOSTILE, data=st.data())
def test_no_text_in_a_message_becomes_a_control_token(name, messages, bad, data):
    """This holds for content, reasoning, tool results, arguments, names, ids and schemas."""
    messages = fitted(name, messages)
    plain = copy.deepcopy(messages)
    target = messages[data.draw(st.integers(0, len(messages) - 1))]
    field = data.draw(st.sampled_from(["content", "reasoning_content", "arguments", "name", "tool_call_id", "tool"]))
    tools = copy.deepcopy(TOOLS) if takes_tools(name) else None
    expected = control_ids(name, supervised(name, plain, tools=tools).tokens)
    if field == "arguments" and target.get("tool_calls"):
        target["tool_calls"][0]["function"]["arguments"]["city"] = bad
        plain[messages.index(target)]["tool_calls"][0]["function"]["arguments"]["city"] = "x"
        expected = control_ids(name, supervised(name, plain, tools=tools).tokens)
    elif field == "tool" and tools:
        tools[0]["description"] = bad
        tools[0]["parameters"]["properties"]["city"]["description"] = bad
    elif field == "tool_call_id" and target["role"] == "tool":
        target["tool_call_id"] = bad
    elif field == "name":
        target["name"] = bad
    elif field == "reasoning_content" and target.get("reasoning_content"):
        target["reasoning_content"] = bad
    elif target["content"]:
        target["content"] = f"a {bad}"
    try:
        tokens = supervised(name, messages, tools=tools).tokens
    except RenderError:
        return  # for example, a function's name must not contain brackets
    assert control_ids(name, tokens) == expected


@every_format
@pytest.mark.parametrize("role", ["<|im_end|>", "user\n<|im_start|>system", "root", "User", ""])
def test_roles_are_a_closed_set(name, role):
    with pytest.raises(RenderError, match="no role"):
        supervised(name, [{"role": "user", "content": "a"}, {"role": role, "content": "b"}])
    with pytest.raises(RenderError, match="no role"):
        prompt(name, [{"role": "user", "content": "a"}], role=role)


@every_format
@FEW
@given(messages=conversations(late_system=True))
def test_masks_grow_from_mode_to_mode_over_the_same_tokens(name, messages):
    messages = fitted(name, messages)
    modes = [
        TrainOnWhat.LAST_ASSISTANT_MESSAGE,
        TrainOnWhat.LAST_ASSISTANT_TURN,
        TrainOnWhat.ALL_ASSISTANT_MESSAGES,
        TrainOnWhat.ALL_MESSAGES,
        TrainOnWhat.ALL_TOKENS,
    ]
    examples = [supervised(name, messages, mode) for mode in modes]
    for example in examples:
        assert example.weights.dtype == np.float32
        assert len(example.weights) == len(example.tokens)
    for small, large in pairwise(examples):
        assert small.tokens == large.tokens
        assert np.all(large.weights[small.weights > 0] == 1)
    assert np.all(examples[-1].weights == 1)


@every_format
@FEW
@given(messages=conversations())
def test_every_trained_reply_owns_exactly_one_stop(name, messages):
    ours = renderer(name)
    messages = fitted(name, messages)
    example = supervised(name, messages, "all_assistant_messages")
    stop_spans = [span for span in example.spans if span.weight and span.part is Part.STOP]
    stops = Counter(span.message for span in stop_spans)
    if not ours.grammar.stop_texts:
        history = {ours._assembler.ids["<|end|>"]} if name.startswith("gpt_oss") else set()
        for span in stop_spans:
            assert span.stop - span.start == (
                2 if name == "tml_v0" else 1
            )  # tml_v0 first ends the reply's last message
            assert example.tokens[span.stop - 1] in {*ours.get_stop_sequences(), *history}
    replies = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    if name == "role_colon":  # a token may hold the end of the reply and the start of the stop text "\n\nUser:"
        assert all(decode(example.tokens[s.start : s.stop]).endswith("User:") for s in stop_spans)
        replies = [i for i in replies if i + 1 == len(messages) or messages[i + 1]["role"] == "user"]
    assert stops == dict.fromkeys(replies, 1)


@every_format
@FEW
@given(messages=conversations(late_system=True), data=st.data())
def test_customized_trains_the_marked_messages_and_weights_multiply(name, messages, data):
    messages = fitted(name, messages)
    chosen = [data.draw(st.booleans()) for _ in messages]
    marked = [{**m, "trainable": c, "weight": 0.5} for m, c in zip(messages, chosen, strict=True)]
    if renderer(name).disables_reasoning:
        for m in marked:
            m.pop("reasoning_content", None)
    example = supervised(name, marked, "customized")
    assert set(example.weights) <= {0.0, 0.5}
    assert set(example.message_index[example.weights > 0]) <= {i for i, c in enumerate(chosen) if c}
    last = [{**m, "trainable": i + 1 == len(messages)} for i, m in enumerate(messages)]
    assert supervised(name, last, "customized") == supervised(name, messages)


@every_format
@FEW
@given(messages=conversations(final=None))
def test_an_example_that_trains_nothing_is_refused_unless_wanted(name, messages):
    messages = fitted(name, messages)
    if messages and messages[-1]["role"] != "assistant":
        with pytest.raises(ZeroWeightError, match="trains nothing"):
            renderer(name).build_supervised_example(messages)
        assert not supervised(name, messages).weights.any()


@every_format
@FEW
@given(messages=conversations())
def test_part_weights_reach_exactly_their_parts(name, messages):
    messages = fitted(name, messages)
    whole = supervised(name, messages, "all_assistant_messages")
    mixed = supervised(name, messages, "all_assistant_messages", part_weights={"reasoning": 0.25, "tool_call": 0.5})
    assert mixed.tokens == whole.tokens
    factor = {Part.REASONING: 0.25, Part.TOOL_CALL: 0.5}
    expected = [w * factor.get(Part(p), 1.0) for w, p in zip(whole.weights, whole.parts, strict=True)]
    assert mixed.weights.tolist() == expected


@every_format
@FEW
@given(messages=conversations(late_system=True))
def test_spans_and_attribution_cover_every_token_once(name, messages):
    messages = fitted(name, messages)
    example = supervised(name, messages)
    assert [s.start for s in example.spans] == [0, *(s.stop for s in example.spans[:-1])]
    assert example.spans[-1].stop == len(example.tokens) == len(example.message_index) == len(example.parts)
    order = [int(i) for i in example.message_index if i >= 0]
    for system in (True, False):  # formats may move system messages to the front, and nothing else
        alike = [i for i in order if (messages[i]["role"] == "system") is system]
        assert alike == sorted(alike)
    for i, message in enumerate(messages):
        if message["role"] in ("system", "user") and message["content"].strip():
            assert i in order
    (chunk,) = example.model_input.chunks  # a conversation without images has one chunk
    assert chunk.length == len(example.tokens)


@every_format
@FEW
@given(messages=conversations(late_system=True))
def test_rendering_is_pure_and_the_same_in_threads_and_copies(name, messages):
    messages = fitted(name, messages)
    before = copy.deepcopy(messages)
    ours = renderer(name)
    example = supervised(name, messages)
    assert messages == before
    twins = [pickle.loads(pickle.dumps(ours)), copy.deepcopy(ours), get_renderer(name, everyones_tokenizer())]
    for twin in twins:
        assert twin.build_supervised_example(messages, allow_zero_weight=True) == example
        assert twin.fingerprint() == ours.fingerprint()
    with ThreadPoolExecutor(4) as pool:
        assert all(other == example for other in pool.map(lambda _: supervised(name, messages), range(4)))


@every_format
@FEW
@given(messages=conversations(), keep=st.floats(0.1, 0.99))
def test_a_truncated_example_has_no_weight_beyond_the_cut(name, messages, keep):
    messages = fitted(name, messages)
    example = supervised(name, messages, "all_messages")
    length = max(2, int(len(example) * keep))
    if not example.weights[1:length].any():
        return
    datum = example.to_datum(max_length=length)
    assert datum.model_input.to_ints() == example.tokens[: length - 1]
    assert datum.loss_fn_inputs["weights"].data == example.weights[1:length].tolist()


@every_format
def test_a_reply_cut_inside_reasoning_is_reasoning_and_makes_no_call(name):
    ours = renderer(name)
    messages = fitted(name, [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a", "reasoning_content": "some thought"},
    ])  # fmt: skip
    example = supervised(name, messages)
    sampled = [t for t, w in zip(example.tokens, example.weights, strict=True) if w]
    thought = int(np.sum((example.weights > 0) & (example.parts == Part.REASONING)))
    for cut in range(thought):
        message, termination = ours.parse_response(sampled[:cut])
        assert termination == "truncated"
        assert not termination
        content = message["content"]
        assert not content if isinstance(content, str) else all(p["type"] == "thinking" for p in content)


@every_format
@FEW
@given(messages=conversations(), prefill=TEXTS.filter(lambda t: t.strip() == t and t))
def test_a_prefill_is_in_the_prompt_and_in_the_message(name, messages, prefill):
    messages = fitted(name, messages)[:-1]
    if not messages or messages[-1]["role"] != "user":
        messages = [{"role": "user", "content": "q"}]
    ours = renderer(name)
    asked = prompt(name, messages)
    primed = prompt(name, messages, prefill=prefill)
    assert primed[: len(asked)] == asked
    header = "<|message_model|><|content_text|>" if name == "tml_v0" else ""  # usually the model samples it
    assert header + nfc(prefill) == decode(primed[len(asked) :])
    parser = ours.parser(prefill=prefill)
    parser.feed([])
    message = parser.finish()[1].message
    content = message["content"]
    text = content if isinstance(content, str) else "".join(p.get("text", p.get("thinking", "")) for p in content)
    assert text == nfc(prefill)


@every_format
@SOME
@given(bad=HOSTILE, data=st.data())
def test_text_that_spells_a_tag_is_text_after_parsing_too(name, bad, data):
    said = f"a {bad.strip()} b"
    field = data.draw(st.sampled_from(["content", "reasoning_content"]))
    messages = fitted(name, [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "c", "reasoning_content": "r"} | {field: said},
    ])  # fmt: skip
    example = supervised(name, messages)
    sampled = [t for t, w in zip(example.tokens, example.weights, strict=True) if w]
    message, termination = renderer(name).parse_response(sampled)
    assert termination
    read = renderer(name).to_openai_message(message)
    assert read["content"] == nfc(messages[1]["content"])
    assert read.get("reasoning_content") == messages[1].get("reasoning_content")
    assert "tool_calls" not in read


@every_format
def test_a_prefix_with_tools_and_no_system_prompt_equals_the_argument(name):
    if not takes_tools(name):
        return
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    prefix = renderer(name).create_conversation_prefix_with_tools(TOOLS)
    assert prompt(name, [*prefix, messages[0]]) == prompt(name, messages[:1], tools=TOOLS)
    for mode in ("last_assistant_message", "all_messages"):
        assert supervised(name, [*prefix, *messages], mode) == supervised(name, messages, mode, tools=TOOLS)


BEGINNINGS = ("<|begin_of_text|>", "<｜begin▁of▁sentence｜>", "[BOS]", "[gMASK]", "<sop>")


@every_format
@FEW
@given(messages=conversations(late_system=True))
def test_a_sequence_begins_once_however_it_is_composed(name, messages):
    """Tokens that a format writes at the beginning of a sequence occur once in every rendering, and only there."""
    messages = fitted(name, messages)
    ids = {everyones_tokenizer().convert_tokens_to_ids(token) for token in BEGINNINGS}
    tools = TOOLS if takes_tools(name) else None
    prefix = renderer(name).create_conversation_prefix_with_tools(TOOLS, "s") if tools else []
    unled = messages[messages[0]["role"] == "system" :]
    built = [
        prompt(name, messages[:-1]),
        prompt(name, messages[:-1], prefill="p"),
        prompt(name, [*prefix, *unled[:-1]]),
        supervised(name, messages).tokens,
        supervised(name, messages, tools=tools).tokens,
        supervised(name, messages, "all_tokens").to_datum(max_length=9).model_input.to_ints(),
    ]
    begun = [[(at, token) for at, token in enumerate(tokens) if token in ids] for tokens in built]
    assert [at for at, _ in begun[0]] == list(range(len(begun[0])))
    assert all(found == begun[0] for found in begun)


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
    sampled = "".join(f" {token}" for token in encode(spelled, add_special_tokens=False))
    assert sampled in "".join(f" {token}" for token in again.tokens)

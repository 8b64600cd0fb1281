"""A renderer raises an error for what its format cannot express, and names the message. It drops nothing silently."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.renderers.chats import CONTROL, NAMES, decode, everyones_tokenizer, renderer, tokenizer_with
from tinkerloop.errors import RenderError, UnknownRendererError
from tinkerloop.renderers import (
    Renderer,
    ToolCall,
    UnparsedToolCall,
    get_renderer,
    is_renderer_registered,
    register_renderer,
    unregister_renderer,
)
from tinkerloop.renderers.families.glm import GlmOptions
from tinkerloop.renderers.families.gpt_oss import GptOssOptions
from tinkerloop.renderers.families.qwen3 import Qwen3, Qwen3Options
from tinkerloop.renderers.families.qwen3_5 import Qwen38Options
from tinkerloop.tokenizers.tiny_tokenizer import tiny_tokenizer

USER = {"role": "user", "content": "q"}
CALLS = [{"id": "functions.f:0", "function": {"name": "f", "arguments": {}}}]


def calling(arguments: Any) -> dict[str, Any]:
    return {"id": "1", "function": {"name": "f", "arguments": arguments}}


def called(name: Any, arguments: Any, id: Any = None) -> ToolCall:
    return ToolCall(ToolCall.FunctionBody(name, arguments), id)


NESTED: dict[str, Any] = {}
for _ in range(3000):
    NESTED = {"a": NESTED}


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ({"role": "user"}, "'content' is missing"),
        ({"role": 3, "content": "x"}, "'role' must be a string"),
        ({"role": "user", "content": 3}, "string or a list of parts"),
        ({"role": "user", "content": [{"type": "audio", "audio": b""}]}, "unknown content part"),
        ({"role": "user", "content": "x", "colour": "red"}, "unknown keys colour"),
        ({"role": "user", "content": "x", "tool_calls": CALLS}, "only an assistant"),
        ({"role": "assistant", "content": "x", "weight": float("nan")}, "finite number"),
        ({"role": "assistant", "content": "x", "trainable": 1}, "true or false"),
        ({"role": "assistant", "content": "x", "tool_calls": [{"function": {}}]}, "function with a name"),
        ({"role": "assistant", "content": "\ud800"}, "not valid Unicode"),
        ({"role": "assistant", "content": "x", "reasoning_content": "a", "thinking": "b"}, "more than once"),
        ({"role": "user", "content": [{"type": "image", "image": b"x"}]}, "has no images|does not support images"),
        ({"role": "assistant", "content": "x", "reasoning_content": "\ud800"}, "not valid Unicode"),
        ({"role": "assistant", "content": "x", "unparsed_tool_calls": [{"raw_text": "\ud800"}]}, "not valid Unicode"),
        ({"role": "tool", "content": "x", "tool_call_id": "\ud800"}, "not valid Unicode"),
        ({"role": "assistant", "content": "x", "tool_calls": [{"id": 7, "function": {"name": "f"}}]}, "'id' must be"),
        ({"role": "assistant", "content": "x", "tool_calls": [calling({"a": {1}})]}, "are not JSON: .*set"),
        ({"role": "assistant", "content": "x", "tool_calls": [calling({"a": float("nan")})]}, "are not JSON"),
        ({"role": "assistant", "content": "x", "tool_calls": [calling(NESTED)]}, "are not JSON: .*recursion"),
        ({"role": "assistant", "content": "x", "tool_calls": 5}, "'tool_calls' must be a list, got int"),
        ({"role": "assistant", "content": "x", "unparsed_tool_calls": 5}, "must be a list, got int"),
        ({"role": "assistant", "content": "x", "tool_calls": [called("f", "\ud800")]}, "not valid Unicode"),
        ({"role": "assistant", "content": "x", "tool_calls": [called("f", {})]}, "arguments as JSON text"),
        ({"role": "assistant", "content": "x", "tool_calls": [called("", "{}")]}, "needs a name"),
        ({"role": "assistant", "content": "x", "tool_calls": [called("f", "{}", 7)]}, "'id' must be"),
        ({"role": "assistant", "content": "x", "unparsed_tool_calls": [UnparsedToolCall("\ud800", "")]}, "Unicode"),
        ({"role": "assistant", "content": "x", "weight": 1e39}, "finite number"),
        ({"role": "assistant", "content": "x", "weight": 10**400}, "finite number"),
    ],
)
def test_a_bad_message_is_named_with_its_problem(message: dict[str, Any], problem: str) -> None:
    with pytest.raises(RenderError, match=problem):
        renderer("qwen3").build_supervised_example([USER, message], allow_zero_weight=True)


@pytest.mark.parametrize(
    ("tools", "problem"),
    [
        (5, "a list of tools, got int"),
        ({"name": "f"}, "a list of tools, got dict"),
        ([{"type": "web_search"}], "needs a name"),
        ([{"name": "f", "parameters": [1]}], "JSON schema of an object"),
        ([{"name": "f", "parameters": {"properties": [1]}}], "JSON schema of an object"),
        ([{"name": "f", "description": "\ud800"}], "'f' is not JSON-serializable"),
        ([{"name": "f", "parameters": {"properties": {"a": {"enum": {1}}}}}], "'f' is not JSON-serializable: .*set"),
        ([{"name": "f", "parameters": {"properties": {"a": {"default": float("nan")}}}}], "'f' is not JSON"),
    ],
)
def test_what_declares_no_tool_is_refused(tools: Any, problem: str) -> None:
    with pytest.raises(RenderError, match=problem):
        renderer("gpt_oss_medium_reasoning").build_generation_prompt([USER], tools=tools)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Qwen3Options("none"),  # type: ignore[arg-type]
        lambda: Qwen38Options(effort="max"),  # type: ignore[arg-type]
        lambda: GlmOptions("low"),  # type: ignore[arg-type]
        lambda: GptOssOptions("none"),  # type: ignore[arg-type]
    ],
)
def test_a_choice_that_a_family_does_not_have_is_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(RenderError, match=r"Options: (effort|thinking) must be one of .*, got '"):
        make()


@pytest.mark.parametrize("weight", ["x", None, True, float("nan"), float("inf")])
def test_the_weight_of_a_part_is_a_finite_number(weight: Any) -> None:
    with pytest.raises(RenderError, match="finite number"):
        renderer("qwen3").build_supervised_example(
            [USER, {"role": "assistant", "content": "a"}], part_weights={"text": weight}
        )


@pytest.mark.parametrize("name", ["qwen3_disable_thinking", "qwen3_5_disable_thinking", "deepseekv3", "llama3"])
def test_reasoning_is_refused_where_a_prompt_rules_it_out(name: str) -> None:
    reply = {"role": "assistant", "content": "a", "reasoning_content": "hm"}
    with pytest.raises(RenderError, match="reason"):
        renderer(name).build_supervised_example([USER, reply])


@pytest.mark.parametrize("name", ["llama3", "gpt_oss_medium_reasoning"])
def test_parallel_calls_are_refused_where_a_reply_makes_one(name: str) -> None:
    reply = {"role": "assistant", "content": "", "tool_calls": CALLS * 2}
    with pytest.raises(RenderError, match="one tool call"):
        renderer(name).build_supervised_example([USER, reply])


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": True}},
        {"properties": {"a": {"description": None}}},
        {"properties": {"a": {"type": []}}},
        {"properties": {"a": {"type": "string", "enum": 5}}},
        {"properties": {"a": {"oneOf": 5}}},
        {"properties": {"a": {"type": "object", "properties": [1]}}},
        {"properties": {"a": {}}, "required": True},
    ],
)
@pytest.mark.parametrize("name", ["gpt_oss_no_sysprompt", "nemotron3", "qwen3", "llama3", "glm5_3_max_reasoning"])
def test_an_odd_schema_is_written_or_refused(name: str, schema: dict[str, Any]) -> None:
    tools = [{"name": "f", "description": "d", "parameters": {"type": "object"} | schema}]
    with contextlib.suppress(RenderError):
        renderer(name).build_generation_prompt([USER], tools=tools)


@pytest.mark.parametrize(
    "arguments", ['{"a": "\\ud800"}', '{"a": NaN}', '{"a": 1e999}', '{"a":' * 9999 + "1" + "}" * 9999]
)
@pytest.mark.parametrize("name", ["qwen3_5", "glm5_3_max_reasoning", "llama3"])
def test_arguments_that_a_format_could_not_write_again_are_refused(name: str, arguments: str) -> None:
    message = {"role": "assistant", "content": "", "tool_calls": [calling(arguments)]}
    with pytest.raises(RenderError, match="are not JSON"):
        renderer(name).build_supervised_example([USER, message])


@pytest.mark.parametrize("where", ["reply", "call", "result"])
@pytest.mark.parametrize("name", ["nemotron3", "gpt_oss_no_sysprompt", "llama3", "deepseekv3", "kimi_k2"])
def test_an_image_is_refused_where_a_format_has_none(name: str, where: str) -> None:
    content = [{"type": "text", "text": "x "}, {"type": "image", "image": b"x"}]
    reply = {"role": "assistant", "content": content}
    result = {"role": "tool", "content": content, "tool_call_id": "functions.f:0"}
    asked = [USER, {"role": "assistant", "content": "", "tool_calls": CALLS}, result]
    messages = {"reply": [USER, reply], "call": [USER, reply | {"tool_calls": CALLS}], "result": asked}[where]
    with pytest.raises(RenderError):
        renderer(name).build_generation_prompt([*messages, USER])


def test_role_colon_refuses_text_that_reads_as_a_header_and_all_tools() -> None:
    for content in ("x\n\nUser: y", "\n\nAssistant:"):
        with pytest.raises(RenderError, match="role header"):
            renderer("role_colon").build_generation_prompt([{"role": "user", "content": content}])
    reply = {"role": "assistant", "content": "", "tool_calls": CALLS}
    with pytest.raises(RenderError, match="no tool calls"):
        renderer("role_colon").build_supervised_example([USER, reply])


@pytest.mark.parametrize("arguments", [{"a:b": 1}, {"a": [{"b c": 1}]}, {"": 1}, {"a": {'"': 1}}])
def test_a_name_of_an_argument_that_gemma4_could_not_read_back_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(RenderError, match="could not be read back by a parser"):
        renderer("gemma4").build_supervised_example(
            [USER, {"role": "assistant", "content": "", "tool_calls": [calling(arguments)]}]
        )


@pytest.mark.parametrize("call_id", ["2", None])
def test_a_result_without_its_call_is_refused_where_the_format_names_the_function(call_id: str | None) -> None:
    reply = {"role": "assistant", "content": "", "tool_calls": [calling({})] if call_id else []}
    with pytest.raises(RenderError, match=r"messages\[2\]: this tool result must follow a reply with a call"):
        renderer("gemma4").build_generation_prompt(
            [USER, reply, {"role": "tool", "content": "r", "tool_call_id": call_id}]
        )


@pytest.mark.parametrize("name", ["mistral_v3", "mistral_v3_tekken", "mistral_v11"])
def test_a_call_or_a_result_without_an_id_is_refused_where_the_format_writes_ids(name: str) -> None:
    reply = {"role": "assistant", "content": "", "tool_calls": [called("f", "{}")]}
    with pytest.raises(RenderError, match="the call of 'f' has no 'id'"):
        renderer(name).build_supervised_example([USER, reply])
    reply["tool_calls"] = [called("f", "{}", "123456789")]
    with pytest.raises(RenderError, match=r"messages\[2\]: this tool result has no 'tool_call_id'"):
        renderer(name).build_generation_prompt([USER, reply, {"role": "tool", "content": "r"}])


def test_a_function_name_that_could_not_be_read_back_is_refused() -> None:
    call = ToolCall(ToolCall.FunctionBody('f", "x": "', "{}"), id="1")
    with pytest.raises(RenderError, match="could not be read back"):
        renderer("qwen3").build_supervised_example([USER, {"role": "assistant", "content": "", "tool_calls": [call]}])


def test_a_tokenizer_without_the_formats_control_tokens_is_refused() -> None:
    with pytest.raises(RenderError, match=r"no token '<\|.*\|>'.*llama3"):
        get_renderer("llama3", tiny_tokenizer())


def needed_tokens(name: str, messages: list[dict[str, Any]]) -> list[str]:
    """Return the control tokens that an example of the messages, a prompt, or the end of a reply needs."""
    ours = renderer(name)
    written = ours.decode(ours.build_supervised_example(messages).tokens)
    written += ours.decode(ours.build_generation_prompt([USER]).to_ints())
    return [token for token in CONTROL if token in written or token in ours.grammar.stops]


@pytest.mark.parametrize("name", NAMES)
def test_a_tokenizer_needs_only_the_control_tokens_of_its_conversations(name: str) -> None:
    messages = [USER, {"role": "assistant", "content": "a"}]
    ours = get_renderer(name, tokenizer_with(needed_tokens(name, messages)))
    example, other = ours.build_supervised_example(messages), renderer(name).build_supervised_example(messages)
    assert ours.decode(example.tokens) == renderer(name).decode(other.tokens)
    assert example.weights.tolist() == other.weights.tolist()
    sampled = [token for token, weight in zip(example.tokens, example.weights, strict=True) if weight]
    assert ours.parse_response(sampled, messages=[USER]).message["content"] == "a"


@pytest.mark.parametrize("name", ["qwen3_instruct", "qwen3_5", "nemotron3", "kimi_k2", "glm5_3_max_reasoning"])
def test_a_missing_control_token_is_named_by_the_first_conversation_that_needs_it(name: str) -> None:
    plain = [USER, {"role": "assistant", "content": "a"}]
    ours = get_renderer(name, tokenizer_with(needed_tokens(name, plain)))
    call = {"role": "assistant", "content": "", "tool_calls": CALLS}
    for _ in range(2):
        with pytest.raises(RenderError, match=r"the tokenizer has no token '\S*tool_call\S*', which the chat format"):
            ours.build_supervised_example([USER, call])


def test_a_tag_that_the_tokenizer_lacks_is_ordinary_text_in_a_reply() -> None:
    reply = {"role": "assistant", "content": "<tool_call>"}
    tokenizer = tokenizer_with(["<|im_start|>", "<|im_end|>"])
    example = get_renderer("qwen3_instruct", tokenizer).build_supervised_example([USER, reply])
    assert decode(example.tokens, tokenizer).endswith("assistant\n<tool_call><|im_end|>")
    with pytest.raises(RenderError, match="spells '<tool_call>'"):
        get_renderer("qwen3_instruct", everyones_tokenizer()).build_supervised_example([USER, reply])


def test_trainable_is_read_only_by_customized_and_then_needed_everywhere() -> None:
    reply = {"role": "assistant", "content": "a", "trainable": True}
    with pytest.raises(RenderError, match="use 'customized'"):
        renderer("qwen3").build_supervised_example([USER, reply])
    with pytest.raises(RenderError, match=r"messages\[0\].*needs 'trainable'"):
        renderer("qwen3").build_supervised_example([USER, reply], "customized")
    with pytest.raises(RenderError, match="unknown train_on_what 'everything'; expected one of"):
        renderer("qwen3").build_supervised_example([USER], "everything")
    with pytest.raises(RenderError, match="unknown part 'header'"):
        renderer("qwen3").build_supervised_example(
            [USER, {"role": "assistant", "content": "a"}], part_weights={"header": 1}
        )


def test_what_openais_shape_cannot_hold_is_refused_or_keeps_its_name() -> None:
    ours = renderer("qwen3_vl")
    picture = {"role": "user", "content": [{"type": "image", "image": b"not a URL"}, {"type": "text", "text": "what?"}]}
    with pytest.raises(RenderError, match="URL or a data URI, got bytes"):
        ours.to_openai_message(picture)
    picture["content"][0]["image"] = "https://example.com/a.png"
    sent = ours.to_openai_message(picture)
    assert sent["content"][0] == {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    assert ours.from_openai_message(sent) == picture
    broken = {"role": "assistant", "content": "", "weight": 0.5, "unparsed_tool_calls": [UnparsedToolCall("{", "cut")]}
    sent = ours.to_openai_message(broken)
    assert sent["unparsed_tool_calls"] == [{"raw_text": "{", "error": "cut"}]
    assert ours.from_openai_message(sent) == broken


@pytest.mark.parametrize("name", [name for name in NAMES if renderer(name).reply_tags])
def test_a_trained_reply_that_spells_a_tag_is_refused_unless_ordinary_text_is_chosen(name: str) -> None:
    ours, lenient = get_renderer(name, everyones_tokenizer()), renderer(name)
    for tag in ours.reply_tags:
        reply = {"role": "assistant", "content": f"a {tag}{tag} b"}  # one `</think>` alone is extracted
        with pytest.raises(RenderError, match=rf"messages\[1\].*spells '{re.escape(tag)}'.*tags_in_replies='text'"):
            ours.build_supervised_example([USER, reply])
        example = lenient.build_supervised_example([USER, reply])
        ordinary = lenient.build_supervised_example([USER, {"role": "assistant", "content": "a b"}])
        added = everyones_tokenizer().added_tokens_decoder
        assert [t for t in example.tokens if t in added] == [t for t in ordinary.tokens if t in added]


def test_a_tag_may_be_quoted_wherever_it_is_not_trained() -> None:
    ours, quoting = get_renderer("qwen3_instruct", everyones_tokenizer()), "write <tool_call> or <think>"
    reply = {"role": "assistant", "content": "a"}
    history = [
        {"role": "system", "content": quoting},
        {"role": "user", "content": quoting},
        {"role": "assistant", "content": quoting, "tool_calls": CALLS},
        {"role": "tool", "content": quoting, "tool_call_id": "functions.f:0"},
    ]
    ours.build_generation_prompt(history)
    ours.build_supervised_example([*history, reply], "all_user_and_system_messages")
    ours.build_supervised_example([*history, reply])
    with pytest.raises(RenderError, match=r"messages\[2\]: the text of this reply spells"):
        ours.build_supervised_example([*history, reply], "all_assistant_messages")
    thinking = reply | {"reasoning_content": "</think>"}
    with pytest.raises(RenderError, match=r"messages\[1\]: the reasoning of this reply spells '</think>'"):
        ours.build_supervised_example([USER, thinking])
    ours.build_supervised_example([USER, thinking], part_weights={"reasoning": 0})


def test_the_choice_for_tags_is_known_and_reaches_registered_renderers() -> None:
    with pytest.raises(RenderError, match="must be 'refuse' or 'text', got 'lift'"):
        get_renderer("qwen3", everyones_tokenizer(), tags_in_replies="lift")  # type: ignore[arg-type]
    register_renderer("mine", lambda tokenizer, image_processor: Qwen3(tokenizer))
    try:
        assert get_renderer("mine", everyones_tokenizer(), tags_in_replies="text").tags_in_replies == "text"
        assert get_renderer("mine", everyones_tokenizer()).tags_in_replies == "refuse"
    finally:
        unregister_renderer("mine")


def test_an_unknown_name_gets_the_nearest_ones() -> None:
    with pytest.raises(UnknownRendererError, match="qwen3_instruct"):
        get_renderer("qwen3_instrct", everyones_tokenizer())


def test_a_format_of_the_cookbooks_that_is_not_here_is_called_so() -> None:
    with pytest.raises(UnknownRendererError, match=r"does not have, because .*; 'template' renders any model"):
        get_renderer("kimi_k31_pro_max_reasoning", everyones_tokenizer())


def test_a_registered_renderer_is_found_by_its_name_and_forgotten() -> None:
    def factory(tokenizer: Any, image_processor: Any = None) -> Renderer:
        return Qwen3(tokenizer, Qwen3Options("off"))

    register_renderer("mine", factory)
    assert is_renderer_registered("mine")
    assert get_renderer("mine", everyones_tokenizer(), max_length=7).max_length == 7
    assert unregister_renderer("mine")
    assert not unregister_renderer("mine")
    with pytest.raises(RenderError, match="built-in"):
        register_renderer("qwen3", factory)


def test_a_message_with_an_unparsed_call_is_written_as_it_was_sampled() -> None:
    ours = renderer("qwen3_instruct")
    ids = ours._assembler.ids
    sampled = [ids["<tool_call>"], *everyones_tokenizer().encode("not json"), ids["</tool_call>"], ids["<|im_end|>"]]
    message, termination = ours.parse_response(sampled)
    assert termination
    assert message["unparsed_tool_calls"][0].error.startswith("not JSON")
    again = ours.build_supervised_example([USER, message])
    assert [t for t, w in zip(again.tokens, again.weights, strict=True) if w] == sampled


def test_inline_reasoning_becomes_a_part_only_where_the_template_does_that() -> None:
    inline = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nanswer"}
    apart = {"role": "assistant", "content": "answer", "reasoning_content": "hm"}
    for name, extracts in (
        ("qwen3", True),
        ("qwen3_5", True),
        ("qwen3_instruct", False),
        ("qwen3_8_low_reasoning", False),
    ):
        ours = renderer(name)
        same = ours.build_supervised_example([USER, inline]) == ours.build_supervised_example([USER, apart])
        assert same is extracts, name


@pytest.mark.parametrize("name", [None, 3])
def test_what_is_no_name_finds_no_renderer(name: Any) -> None:
    with pytest.raises(UnknownRendererError, match="the name of a renderer must be a string, got"):
        get_renderer(name, everyones_tokenizer())


@pytest.mark.parametrize("tokenizer", [None, "Qwen/Qwen3-8B"])
def test_what_is_no_tokenizer_is_refused(tokenizer: Any) -> None:
    with pytest.raises(RenderError, match="expected a tokenizer, got"):
        get_renderer("qwen3", tokenizer)


def test_a_factory_that_makes_no_renderer_or_is_given_options_is_refused() -> None:
    register_renderer("of_my_own", lambda tokenizer, image_processor: None)  # type: ignore[arg-type,return-value]
    try:
        with pytest.raises(RenderError, match="must return a Renderer, but it returned None"):
            get_renderer("of_my_own", everyones_tokenizer())
        with pytest.raises(RenderError, match="does not accept options"):
            get_renderer("of_my_own", everyones_tokenizer(), options=Qwen3Options())
    finally:
        unregister_renderer("of_my_own")


def test_swapped_arguments_of_get_renderer_are_refused():
    with pytest.raises(UnknownRendererError, match=r"swapped\? Write get_renderer\('qwen3', tokenizer\)") as swapped:
        get_renderer(everyones_tokenizer(), "qwen3")  # type: ignore[arg-type]
    assert len(str(swapped.value)) < 200

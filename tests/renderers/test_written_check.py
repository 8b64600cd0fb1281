"""The pieces of a chat format must contain everything that a conversation contains."""

from __future__ import annotations

from typing import Any

import pytest

from tests.renderers.chats import everyones_tokenizer, renderer
from tinkerloop.errors import RenderError
from tinkerloop.renderers import Part, Renderer, UnparsedToolCall
from tinkerloop.renderers.parsing.grammar import Block, Grammar
from tinkerloop.renderers.pieces import scaffold, stop, text

USER = {"role": "user", "content": "q"}
REPLY = {"role": "assistant", "content": "a"}
IMAGE = [{"type": "text", "text": "x"}, {"type": "image", "image": b"x"}]


def call(name: str = "f", arguments: Any = None, id: str | None = None) -> dict[str, Any]:
    return {"id": id, "function": {"name": name, "arguments": arguments or {}}}


class Forgetful(Renderer):
    """A user's chat format that writes only texts."""

    family = "forgetful"
    control = ("<|im_start|>",)

    def make_grammar(self) -> Grammar:
        blocks = (Block(Part.REASONING, "<think>", "</think>"), Block(Part.TOOL_CALL, "<tool_call>", "</tool_call>"))
        return Grammar(stops=("<|im_end|>",), blocks=blocks)

    def header(self, role: str) -> str:
        return f"<|im_start|>{role}\n"

    def message(self, conversation, index):
        return (scaffold(self.header(conversation[index].role)), text(conversation[index].text), stop("<|im_end|>"))

    def reply(self, conversation, index):
        return (text(conversation[index].text), stop("<|im_end|>"))


class WithNamesOfCalls(Forgetful):
    """A user's chat format that forgets the arguments of calls."""

    def reply(self, conversation, index):
        calls = [text(call.function.name, Part.TOOL_CALL) for call in conversation[index].tool_calls]
        return (text(conversation[index].text), *calls, stop("<|im_end|>"))


class Silent(Forgetful):
    """A user's chat format that forgets texts."""

    def message(self, conversation, index):
        return (scaffold(self.header(conversation[index].role)), stop("<|im_end|>"))


@pytest.mark.parametrize(
    ("messages", "lost"),
    [
        ([USER, REPLY | {"reasoning_content": "hm"}], r"messages\[1\].* reasoning"),
        ([USER, REPLY | {"reasoning_content": "hm"}, USER, REPLY], r"messages\[1\].* reasoning"),
        ([USER, REPLY | {"tool_calls": [call()]}], r"messages\[1\].* tool calls"),
        ([USER, REPLY | {"unparsed_tool_calls": [UnparsedToolCall("{", "cut")]}], r"messages\[1\].* unparsed"),
        ([{"role": "user", "content": IMAGE}, REPLY], r"messages\[0\].* images"),
        ([USER | {"name": "Ann"}, REPLY], r"messages\[0\].* 'name'"),
        (
            [USER, REPLY, {"role": "tool", "content": "r", "tool_call_id": "c1"}, REPLY],
            r"messages\[2\].*'tool_call_id'",
        ),
    ],
)
def test_a_part_that_a_format_does_not_write_is_refused(messages: list[dict[str, Any]], lost: str) -> None:
    ours = Forgetful(everyones_tokenizer())
    with pytest.raises(RenderError, match=lost):
        ours.build_supervised_example(messages)
    with pytest.raises(RenderError, match=lost):
        ours.build_generation_prompt([*messages, USER])


def test_a_tool_that_a_format_does_not_declare_is_refused() -> None:
    ours = Forgetful(everyones_tokenizer())
    with pytest.raises(RenderError, match="does not declare the tool 'q'"):
        ours.build_generation_prompt([USER], tools=[{"name": "q"}])


@pytest.mark.parametrize("key", ["returns", "examples"])
def test_a_key_of_a_tool_that_a_format_does_not_write_is_refused(key: str) -> None:
    tool = {"name": "q", "description": "", "parameters": {"type": "object", "properties": {}}}
    declared = {**tool, "strict": True}  # for the server of an API, not for the model
    renderer("gpt_oss_medium_reasoning").build_generation_prompt([USER], tools=[declared])
    with pytest.raises(RenderError, match=f"does not write '{key}' of the tool 'q', which would be lost"):
        renderer("gpt_oss_medium_reasoning").build_generation_prompt([USER], tools=[{**tool, key: "x"}])
    renderer("qwen3").build_generation_prompt([USER], tools=[{**tool, key: "x"}])


def test_arguments_and_texts_that_a_format_does_not_write_are_refused() -> None:
    with pytest.raises(RenderError, match=r"messages\[1\].* tool call's arguments"):
        WithNamesOfCalls(everyones_tokenizer()).build_supervised_example(
            [USER, REPLY | {"tool_calls": [call("f", {"city": "Bern"})]}]
        )
    with pytest.raises(RenderError, match=r"messages\[0\].* text"):
        Silent(everyones_tokenizer()).build_supervised_example([USER, REPLY])


def test_a_part_that_a_format_leaves_out_on_purpose_is_not_refused() -> None:
    ours = Forgetful(everyones_tokenizer())
    ours.leaves_out = {"reasoning": "for brevity", "name": "for brevity"}  # type: ignore[misc]
    ours.build_supervised_example([USER | {"name": "Ann"}, REPLY | {"reasoning_content": "hm"}, USER, REPLY])
    with pytest.raises(RenderError, match=r"messages\[1\].* reasoning"):  # only that of earlier replies
        ours.build_supervised_example([USER, REPLY | {"reasoning_content": "hm"}])


CALLING = {"role": "assistant", "content": "", "tool_calls": [call("f", id="c0"), call("g", id="c1")]}


@pytest.mark.parametrize("name", ["qwen3", "deepseekv3", "glm5_3_max_reasoning"])
@pytest.mark.parametrize(
    "ids, wrong",
    [
        (["c0", "c1"], None),
        (["c0"], None),
        ([None, None], None),
        (["c1", "c0"], 0),
        (["c1"], 0),
        (["c0", "c0"], 1),
        (["c0", "other"], 1),
        (["c0", "c1", "c2"], 2),
        ([None, None, None], 2),
    ],
)
def test_in_a_format_without_ids_the_nth_result_must_answer_the_nth_call(
    name: str, ids: list[str | None], wrong: int | None
) -> None:
    messages = [USER, CALLING, *({"role": "tool", "content": "r", "tool_call_id": id} for id in ids)]
    if wrong is None:
        renderer(name).build_generation_prompt(messages)
        return
    with pytest.raises(
        RenderError, match=rf"messages\[{wrong + 2}\]: this tool result is not in the order of the calls"
    ):
        renderer(name).build_generation_prompt(messages)


def test_the_results_of_unparsed_calls_come_after_those_of_calls() -> None:
    unparsed = CALLING | {"unparsed_tool_calls": [{"raw_text": "<tool_call>{</tool_call>", "error": "cut"}]}
    results = [{"role": "tool", "content": "r", "tool_call_id": id} for id in ("c0", "c1", "invalid:0")]
    renderer("qwen3").build_generation_prompt([USER, unparsed, *results])
    with pytest.raises(RenderError, match=r"messages\[4\]: this tool result is not in the order"):
        renderer("qwen3").build_generation_prompt([USER, CALLING, *results])


def test_a_message_that_is_added_to_an_episode_is_checked_too() -> None:
    ours = Forgetful(everyones_tokenizer())
    episode = ours.episode([USER])
    episode.add_sampled([ours._assembler.ids["<|im_end|>"]])
    with pytest.raises(RenderError, match=r"messages\[2\].* 'name'"):
        episode.add([USER | {"name": "Ann"}])

"""Qwen3: ChatML, reasoning in `<think>` blocks, tool calls as JSON in `<tool_call>` blocks.

Presets of the one family: `qwen3` (hybrid models, reasoning on), `qwen3_disable_thinking` (the same models with the
prompt holding an empty reasoning block) and `qwen3_instruct` (the 2507 instruct models, which have no reasoning).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tinkerloop.errors import RenderError
from tinkerloop.renderers import base
from tinkerloop.renderers.conversation import ChatMessage, Conversation
from tinkerloop.renderers.parsing import Block, Grammar
from tinkerloop.renderers.segments import Part, Pieces, marked, scaffold, stop, text
from tinkerloop.renderers.thinking import lift_thinking
from tinkerloop.renderers.tools import declared, read_json_call, write_json_call
from tinkerloop.renderers.types import ToolCall

REASONING = Block(Part.REASONING, "<think>", "</think>", head="\n", foot="\n", gap="\n\n", trim="\n")
JSON_CALL = Block(Part.TOOL_CALL, "<tool_call>", "</tool_call>", head="\n", foot="\n", lead="\n")

_TOOLS_HEAD = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
_TOOLS_FOOT = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)


@dataclass(frozen=True)
class Qwen3Options(base.Options):
    thinking: Literal["on", "off", "none"] = "on"
    """`off`: the prompt holds an empty reasoning block; `none`: the model has no reasoning at all."""


class Qwen3(base.Renderer):
    """`<|im_start|>role\\n...<|im_end|>\\n`. Reasoning before the last user message is left out, as in the template."""

    family = "qwen3"
    Options = Qwen3Options
    control = ("<|im_start|>", "<tool_response>", "</tool_response>")

    def __init__(self, tokenizer: Any, options: Qwen3Options | None = None, **kwargs: Any):
        super().__init__(tokenizer, options, **kwargs)
        self.has_extension_property = self.options.thinking == "none"
        self.disables_thinking = self.options.thinking != "on"

    def make_grammar(self) -> Grammar:
        return Grammar(("<|im_end|>",), (REASONING, JSON_CALL), eos=("<|endoftext|>",), read_call=read_json_call)

    # ---- turns

    def header(self, role: str) -> str:
        return f"<|im_start|>{role}\n"

    def preamble(self, conversation: Conversation) -> Pieces:
        if conversation.tools and conversation.role(0) != "system":
            yield from self._system(conversation, None)

    def message(self, conversation: Conversation, index: int) -> Pieces:
        message = conversation[index]
        if message.role == "tool":
            yield from self._tool_result(conversation, index)
        elif message.role == "system" and index == 0:
            yield from self._system(conversation, message)
        else:
            yield scaffold(self.header(message.role))
            yield from self.content(message)
            yield stop("<|im_end|>")
            yield scaffold("\n")

    def _system(self, conversation: Conversation, message: ChatMessage | None) -> Pieces:
        """The system message, with the declarations of tools after what the author wrote."""
        yield scaffold(self.header("system"))
        if message is not None:
            yield from self.content(message)
        if conversation.tools:
            yield scaffold(("\n\n" if message is not None else "") + _TOOLS_HEAD)
            for tool in conversation.tools:
                yield text("\n" + json.dumps(declared(tool), ensure_ascii=False), Part.SCAFFOLD)
            yield scaffold(_TOOLS_FOOT)
        yield stop("<|im_end|>")
        yield scaffold("\n")

    def _tool_result(self, conversation: Conversation, index: int) -> Pieces:
        """Results in a row share one user turn."""
        if conversation.role(index - 1) != "tool":
            yield scaffold("<|im_start|>user")
        yield scaffold("\n<tool_response>\n")
        yield from self.content(conversation[index])
        yield scaffold("\n</tool_response>")
        if conversation.role(index + 1) != "tool":
            yield stop("<|im_end|>")
            yield scaffold("\n")

    # ---- replies

    def lifted(self, message: ChatMessage) -> ChatMessage:
        return message if self.options.thinking == "none" else lift_thinking(message)

    def primer(self, conversation: Conversation, index: int) -> str:
        return "<think>\n\n</think>\n\n" if self.options.thinking == "off" and conversation.is_final(index) else ""

    def reply(self, conversation: Conversation, index: int) -> Pieces:
        message = conversation[index]
        if self._frames(conversation, index):
            reasoning = (message.reasoning or "").strip("\n")
            yield marked("<think>\n", Part.REASONING)
            yield text(reasoning, Part.REASONING)
            yield marked("\n</think>", Part.REASONING)
            yield marked("\n\n", Part.TEXT)
        if self.options.thinking != "none" and self._answers(conversation, index):
            message = message.with_text(message.text.lstrip("\n"))
        yield from self.content(message)
        yield from self.calls(message)
        yield stop("<|im_end|>")

    def after_reply(self, conversation: Conversation, index: int) -> Pieces:
        yield scaffold("\n")

    def _answers(self, conversation: Conversation, index: int) -> bool:
        """Whether turn `index` is written as the model writes it: with its reasoning, even an empty one."""
        last_query = self._last_query(conversation)
        produced = conversation.is_final(index) or bool((conversation[index].reasoning or "").strip("\n"))
        return 0 <= last_query < index and produced

    def _frames(self, conversation: Conversation, index: int) -> bool:
        reasoning = bool((conversation[index].reasoning or "").strip("\n"))
        if self.options.thinking == "none":
            return reasoning
        if self.primer(conversation, index):
            if reasoning:
                raise RenderError(
                    f"messages[{index}]: {self.name} asks for replies without reasoning, so this one cannot have any; "
                    "use 'qwen3', or leave the reasoning out"
                )
            return False
        return self._answers(conversation, index)

    def _last_query(self, conversation: Conversation) -> int:
        """The last user message that is not a tool's result in disguise, -1 if there is none."""
        for i in range(len(conversation) - 1, -1, -1):
            content = conversation[i].text
            disguised = content.startswith("<tool_response>") and content.endswith("</tool_response>")
            if conversation[i].role == "user" and not disguised:
                return i
        return -1

    def call(self, call: ToolCall) -> Pieces:
        yield text(write_json_call(call), Part.TOOL_CALL)


PRESETS: Sequence[tuple[str, type[base.Renderer], base.Options]] = (
    ("qwen3", Qwen3, Qwen3Options()),
    ("qwen3_disable_thinking", Qwen3, Qwen3Options(thinking="off")),
    ("qwen3_instruct", Qwen3, Qwen3Options(thinking="none")),
)

"""Qwen3's chat format: reasoning in `<think>` blocks, tool calls as JSON in `<tool_call>` blocks.

Presets: `qwen3` (hybrid models with reasoning), `qwen3_disable_thinking` (the same models; the prompt contains an empty
reasoning block), `qwen3_thinking` (2507 models that always reason), `qwen3_instruct` (2507 models that never reason),
`qwen3_vl` and `qwen3_vl_instruct` (vision models).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tinkerloop.messages import ChatMessage, CheckedConversation, ToolCall
from tinkerloop.renderers import base
from tinkerloop.renderers.families.chatml import ChatML, VisionChatML
from tinkerloop.renderers.normalization import extract_inline_reasoning
from tinkerloop.renderers.parsing.grammar import Block, Grammar
from tinkerloop.renderers.pieces import Part, Pieces, markup, stop, text
from tinkerloop.renderers.tool_calls import read_json_call, write_json_call
from tinkerloop.renderers.tool_declarations import declare_for_json_calls

_REASONING = Block(Part.REASONING, "<think>", "</think>", head="\n", foot="\n", gap="\n\n", trim="\n")
JSON_CALL = Block(Part.TOOL_CALL, "<tool_call>", "</tool_call>", head="\n", foot="\n", lead="\n", between="\n")

_PRIMERS = {"off": "<think>\n\n</think>\n\n", "always": "<think>\n"}


@dataclass(frozen=True)
class Qwen3Options(base.Options):
    thinking: Literal["on", "off", "always", "never"] = "on"
    """`on`: the model decides whether to reason. `off`: the prompt contains an empty reasoning block. `always`: the
    prompt opens a reasoning block. `never`: the model does not reason, and the prompt has no reasoning block."""

    def __post_init__(self) -> None:
        self.check("thinking", "on", "off", "always", "never")


class Qwen3(ChatML):
    """Qwen3's chat format. Reasoning before the last user message is left out, as in the official template."""

    family = "qwen3"
    Options = Qwen3Options

    @property
    def has_extension_property(self) -> bool:
        return self.options.thinking == "never"

    @property
    def disables_reasoning(self) -> bool:
        return self.options.thinking == "off"

    def make_grammar(self) -> Grammar:
        return Grammar(("<|im_end|>",), (_REASONING, JSON_CALL), eos=("<|endoftext|>",), read_call=read_json_call)

    def declarations(self, conversation: CheckedConversation) -> Pieces:
        return declare_for_json_calls(conversation.tools)

    def rules_out_reasoning(self, conversation: CheckedConversation, index: int) -> bool:
        return self.disables_reasoning and conversation[index].reasoning != "\n"

    def normalize(self, message: ChatMessage) -> ChatMessage:
        """Strip newlines around the reasoning. From reasoning of only newlines, one is kept.

        The official template writes an empty reasoning block for such reasoning, and no block for empty reasoning.
        """
        if self.options.thinking == "never":
            return message if message.reasoning is None else message._replace(reasoning=message.reasoning.strip("\n"))
        message = extract_inline_reasoning(message)
        reasoning = message.reasoning
        return message._replace(reasoning=reasoning.strip("\n") or "\n") if reasoning else message

    def primer(self, conversation: CheckedConversation, index: int) -> str:
        if not conversation.is_final(index):
            return ""
        return _PRIMERS.get(self.options.thinking, "")

    def reply(self, conversation: CheckedConversation, index: int) -> Pieces:
        message = conversation[index]
        reasoning = message.reasoning or ""
        primer = self.primer(conversation, index)
        if self._has_reasoning_block(conversation, index, primer, reasoning):
            if not primer:
                yield markup("<think>\n", Part.REASONING)
            if not primer.endswith("</think>\n\n"):
                yield text(reasoning.strip("\n"), Part.REASONING)
                yield markup("\n</think>", Part.REASONING)
                yield markup("\n\n", Part.TEXT)
            if message.is_text:
                message = message.with_text(message.text.lstrip("\n"))
        yield from self.content(message)
        yield from self.calls(message)
        yield stop("<|im_end|>")

    def _has_reasoning_block(self, conversation: CheckedConversation, index: int, primer: str, reasoning: str) -> bool:
        """Return whether turn `index` is written with a reasoning block, which may be empty."""
        if primer or self.options.thinking == "never":
            return bool(primer or reasoning)
        return 0 <= conversation.last_query < index and (conversation.is_final(index) or bool(reasoning))

    def call(self, call: ToolCall) -> Pieces:
        yield text(write_json_call(call), Part.TOOL_CALL)


class Qwen3VL(VisionChatML, Qwen3):
    """Qwen3's chat format with images."""

    family = "qwen3_vl"


PRESETS: tuple[tuple[str, type[base.Renderer], base.Options], ...] = (
    ("qwen3", Qwen3, Qwen3Options()),
    ("qwen3_disable_thinking", Qwen3, Qwen3Options("off")),
    ("qwen3_thinking", Qwen3, Qwen3Options("always")),
    ("qwen3_instruct", Qwen3, Qwen3Options("never")),
    ("qwen3_vl", Qwen3VL, Qwen3Options()),
    ("qwen3_vl_instruct", Qwen3VL, Qwen3Options("never")),
)

"""The chat format of Qwen3.5, 3.6 and 3.8: prompts open a reasoning block, tool calls are XML, all text is trimmed.

Presets: `qwen3_5`, `qwen3_5_disable_thinking`, `qwen3_5_preserve_thinking`, `qwen3_8_xhigh_reasoning`,
`qwen3_8_medium_reasoning`, `qwen3_8_low_reasoning`, `qwen3_8_disable_thinking`. Qwen3.8 keeps all reasoning in history
and writes the reasoning effort in the system message.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from tinkerloop.messages import ChatMessage, CheckedConversation, ToolCall
from tinkerloop.renderers import base
from tinkerloop.renderers.families.chatml import VisionChatML
from tinkerloop.renderers.normalization import WHITESPACE, extract_inline_reasoning, trim_content
from tinkerloop.renderers.parsing.grammar import Block, Grammar
from tinkerloop.renderers.pieces import Part, Pieces, markup, scaffold, stop, text
from tinkerloop.renderers.tool_calls import read_xml_call, write_xml_call
from tinkerloop.renderers.tool_declarations import declare_for_xml_calls

_REASONING = Block(Part.REASONING, "<think>", "</think>", head="\n", foot="\n", gap="\n\n", trim=WHITESPACE)
XML_CALL = Block(Part.TOOL_CALL, "<tool_call>", "</tool_call>", head="\n", foot="\n", lead="\n\n", between="\n")
_EFFORTS = {
    "xhigh": "Reasoning effort is set to xhigh. Please think carefully through the task, validate key assumptions, "
    "consider plausible alternatives, and prioritize correctness, consistency, and clarity in the final answer.",
    "medium": "",
    "low": "Reasoning effort is set to low. Keep your thinking brief and focused, moving directly to the conclusion "
    "without unnecessary elaboration.",
}


@dataclass(frozen=True)
class Qwen35Options(base.Options):
    thinking: bool = True
    """If True, prompts open a reasoning block. If False, they contain an empty one."""
    preserve_thinking: bool = False
    """If True, replies before the last user message keep their reasoning."""
    json_scalars: bool = False
    """If True, arguments are written as `true` and `null` (Qwen3.6, 3.8). If False, as `True` and `None` (Qwen3.5)."""


class Qwen35(VisionChatML):
    """Qwen3.5's chat format. Prompts open a reasoning block. System text is written after the tool declarations."""

    family = "qwen3_5"
    Options = Qwen35Options

    @property
    def disables_reasoning(self) -> bool:
        return not self.options.thinking

    def make_grammar(self) -> Grammar:
        return Grammar(
            ("<|im_end|>",),
            (_REASONING, XML_CALL),
            eos=("<|endoftext|>",),
            read_call=partial(read_xml_call, json_scalars=self.options.json_scalars),
        )

    def declarations(self, conversation: CheckedConversation) -> Pieces:
        return declare_for_xml_calls(conversation.tools)

    def normalize(self, message: ChatMessage) -> ChatMessage:
        """Trim the text, then extract inline reasoning. Spaces after `</think>` stay, as in the official template."""
        message = extract_inline_reasoning(trim_content(message))
        if message.reasoning is not None:
            message = message._replace(reasoning=message.reasoning.strip())
        return message

    def system(self, conversation: CheckedConversation, message: ChatMessage | None) -> Pieces:
        yield scaffold(self.header("system"))
        if conversation.tools:
            yield from self.declarations(conversation)
        if message is not None and message.content:
            yield scaffold("\n\n" if conversation.tools else "")
            yield from self.content(message)
        yield from self.end

    def _keeps_reasoning_block(self, conversation: CheckedConversation, index: int) -> bool:
        """Return whether turn `index` is written with its reasoning block, as it was sampled."""
        return self.options.preserve_thinking or index > conversation.last_query

    def primer(self, conversation: CheckedConversation, index: int) -> str:
        if not self._keeps_reasoning_block(conversation, index):
            return ""
        if self.options.thinking or (index < len(conversation) and conversation[index].reasoning):
            return "<think>\n"
        return "<think>\n\n</think>\n\n"

    def reply(self, conversation: CheckedConversation, index: int) -> Pieces:
        message = conversation[index]
        if self.primer(conversation, index) == "<think>\n":
            yield text(message.reasoning or "", Part.REASONING)
            yield markup("\n</think>", Part.REASONING)
            yield markup("\n\n", Part.TEXT)
        yield from self.content(message)
        yield from self.calls(message)
        yield stop("<|im_end|>")

    def call(self, call: ToolCall) -> Pieces:
        yield text(write_xml_call(call, json_scalars=self.options.json_scalars), Part.TOOL_CALL)


@dataclass(frozen=True)
class Qwen38Options(Qwen35Options):
    """Options of Qwen3.8: the options of Qwen3.5 with other defaults, and the reasoning effort."""

    preserve_thinking: bool = True
    json_scalars: bool = True
    effort: Literal["xhigh", "medium", "low"] = "xhigh"
    """The reasoning effort in the system message. For `medium`, no effort is written."""

    def __post_init__(self) -> None:
        self.check("effort", *_EFFORTS)


class Qwen38(Qwen35):
    """Qwen3.8's chat format: as Qwen3.5's, with the reasoning effort at the start of the system message."""

    family = "qwen3_8"
    Options = Qwen38Options

    @property
    def has_extension_property(self) -> bool:
        """False if prompts open a reasoning block or history loses reasoning, else True.

        An empty reasoning block contains two newlines. They are one token in history, but two tokens when sampled.
        """
        return self.options.preserve_thinking and not self.options.thinking

    def _effort(self) -> str:
        return _EFFORTS[self.options.effort] if self.options.thinking else ""

    def preamble(self, conversation: CheckedConversation) -> Pieces:
        if conversation.role(0) != "system":
            yield from self.system(conversation, None)

    def system(self, conversation: CheckedConversation, message: ChatMessage | None) -> Pieces:
        """Return the pieces of the system message: effort, tool declarations and the text of `message`, if present.

        If all three are absent, there is no system message.
        """
        effort = self._effort()
        has_text = message is not None and bool(message.content)
        if not (effort or conversation.tools or has_text):
            return
        yield scaffold(self.header("system") + effort)
        if conversation.tools:
            yield scaffold("\n\n" if effort else "")
            yield from self.declarations(conversation)
        if message is not None and has_text:
            yield scaffold("\n\n" if effort or conversation.tools else "")
            yield from self.content(message)
        yield from self.end

    def normalize(self, message: ChatMessage) -> ChatMessage:
        """Trim the text and the reasoning. Inline reasoning stays in the text, as in the official template."""
        reasoning = message.reasoning
        return trim_content(message._replace(reasoning=reasoning.strip() if reasoning else reasoning))


PRESETS: tuple[tuple[str, type[base.Renderer], base.Options], ...] = (
    ("qwen3_5", Qwen35, Qwen35Options()),
    ("qwen3_5_disable_thinking", Qwen35, Qwen35Options(thinking=False)),
    ("qwen3_5_preserve_thinking", Qwen35, Qwen35Options(preserve_thinking=True)),
    ("qwen3_8_xhigh_reasoning", Qwen38, Qwen38Options()),
    ("qwen3_8_medium_reasoning", Qwen38, Qwen38Options(effort="medium")),
    ("qwen3_8_low_reasoning", Qwen38, Qwen38Options(effort="low")),
    ("qwen3_8_disable_thinking", Qwen38, Qwen38Options(thinking=False)),
)

"""Nemotron 3's chat format: ChatML with a system turn in every conversation, tools in XML, and reasoning blocks.

Every reply has a reasoning block, which may be empty. Presets: `nemotron3` (Nano and Super) and `nemotron3_ultra`
(Ultra, Lightning, Super VL); both also with the suffixes `_disable_thinking` and `_preserve_thinking`. Presets with
lower effort: `nemotron3_low_thinking` and `nemotron3_ultra_medium_thinking`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from tinkerloop.messages import ChatMessage, CheckedConversation, ToolCall
from tinkerloop.renderers import base
from tinkerloop.renderers.families.chatml import ChatML
from tinkerloop.renderers.normalization import extract_inline_reasoning
from tinkerloop.renderers.parsing.grammar import Block, Grammar
from tinkerloop.renderers.pieces import Part, Pieces, markup, scaffold, stop, text
from tinkerloop.renderers.tool_calls import read_xml_call, write_xml_call
from tinkerloop.renderers.tool_declarations import declare_for_xml_calls, xml_declaration


@dataclass(frozen=True)
class NemotronOptions(base.Options):
    thinking: bool = True
    """If True, prompts open a reasoning block. If False, they contain an empty one."""
    preserve_thinking: bool = False
    """If True, replies before the last user message keep their reasoning."""
    effort: str | None = None
    """The reasoning effort to request in the last user message: `low` (Super) or `efficient` (Ultra's medium effort).
    None requests nothing, which means full effort."""
    tight: bool = False
    """If True, there is no newline before and after `</think>`, as in Ultra. If False, there is one on each side."""


class Nemotron3(ChatML):
    """Nemotron 3's chat format. Every reply has a reasoning block, which may be empty."""

    family = "nemotron3"
    Options = NemotronOptions
    result_head = "<tool_response>\n"
    result_foot = "\n</tool_response>\n"

    @property
    def disables_reasoning(self) -> bool:
        return not self.options.thinking

    def make_grammar(self) -> Grammar:
        around = "" if self.options.tight else "\n"
        reasoning = Block(Part.REASONING, "<think>", "</think>", head="\n", foot=around, gap=around)
        call = Block(Part.TOOL_CALL, "<tool_call>", "</tool_call>", head="\n", foot="\n", lead="\n", between="\n")
        return Grammar(("<|im_end|>",), (reasoning, call), read_call=partial(read_xml_call, json_scalars=False))

    def declarations(self, conversation: CheckedConversation) -> Pieces:
        return declare_for_xml_calls(conversation.tools, xml_declaration)

    def preamble(self, conversation: CheckedConversation) -> Pieces:
        if conversation.role(0) != "system":
            yield from self.system(conversation, None)

    def system(self, conversation: CheckedConversation, message: ChatMessage | None) -> Pieces:
        has_text = message is not None and bool(message.content)
        yield from super().system(conversation, message if has_text else None)

    def tool_result(self, conversation: CheckedConversation, index: int) -> Pieces:
        if conversation.role(index - 1) != "tool":
            yield scaffold("<|im_start|>user\n")
        yield scaffold(self.result_head)
        yield from self.content(conversation[index])
        yield scaffold(self.result_foot)
        if conversation.role(index + 1) != "tool":
            yield from self.end

    def message(self, conversation: CheckedConversation, index: int) -> Pieces:
        if self.options.effort is None or index != conversation.last_user:
            yield from super().message(conversation, index)
            return
        yield scaffold(self.header("user"))
        yield from self.content(conversation[index])
        yield scaffold(f"\n\n{{reasoning effort: {self.options.effort}}}")
        yield from self.end

    def normalize(self, message: ChatMessage) -> ChatMessage:
        if message.role != "assistant":
            return message
        message = extract_inline_reasoning(message)
        if message.reasoning is not None and not message.reasoning.strip():
            message = message._replace(reasoning=None)
        return message

    def _keeps_reasoning(self, conversation: CheckedConversation, index: int) -> bool:
        """Return whether turn `index` is written with its reasoning."""
        return self.options.preserve_thinking or index >= conversation.last_user

    def primer(self, conversation: CheckedConversation, index: int) -> str:
        is_final = conversation.is_final(index)
        has_reasoning = index < len(conversation) and bool(conversation[index].reasoning)
        if (is_final and self.options.thinking) or (has_reasoning and self._keeps_reasoning(conversation, index)):
            return "<think>\n"
        return "<think></think>"

    def reply(self, conversation: CheckedConversation, index: int) -> Pieces:
        message = conversation[index]
        around = "" if self.options.tight else "\n"
        has_calls = bool(message.tool_calls or message.unparsed)
        keeps_reasoning = self._keeps_reasoning(conversation, index)
        if keeps_reasoning or not (has_calls and self.options.tight):  # Ultra does not trim history turns with calls
            message = message.with_text(message.text.rstrip())
        if self.primer(conversation, index) == "<think>\n":
            yield text(message.reasoning or "", Part.REASONING)
            yield markup(around + "</think>", Part.REASONING)
            yield markup(around if message.content else "", Part.TEXT)
        elif message.reasoning and message.content and not has_calls:
            yield markup(around, Part.TEXT)  # in history, the template removes reasoning only up to `</think>`
        elif not keeps_reasoning and has_calls and not self.options.tight:
            message = message.with_text(message.text.lstrip())
        yield from self.content(message)
        if has_calls:
            yield markup("" if message.content else "\n", Part.TOOL_CALL)
            yield from self.calls(message)
            yield markup("\n", Part.TOOL_CALL)
        yield stop("<|im_end|>")

    def call(self, call: ToolCall) -> Pieces:
        yield text(write_xml_call(call, json_scalars=False), Part.TOOL_CALL)


def _variants(
    prefix: str, tight: bool, effort_name: str, effort: str
) -> list[tuple[str, type[base.Renderer], base.Options]]:
    return [
        (prefix, Nemotron3, NemotronOptions(tight=tight)),
        (f"{prefix}_disable_thinking", Nemotron3, NemotronOptions(thinking=False, tight=tight)),
        (f"{prefix}_preserve_thinking", Nemotron3, NemotronOptions(preserve_thinking=True, tight=tight)),
        (f"{prefix}_{effort_name}_thinking", Nemotron3, NemotronOptions(effort=effort, tight=tight)),
    ]


PRESETS = (
    *_variants("nemotron3", tight=False, effort_name="low", effort="low"),
    *_variants("nemotron3_ultra", tight=True, effort_name="medium", effort="efficient"),
)

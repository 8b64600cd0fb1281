"""DeepSeek-V3.1's chat format: `<｜User｜>...<｜Assistant｜>...<｜end▁of▁sentence｜>`.

System text stands at the start, without a header. Presets: `deepseekv3`, its alias `deepseekv3_disable_thinking`, and
`deepseekv3_thinking`. After a user message, a prompt ends with `<think>`, or with `</think>` if the reply must not
reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat

from tinkerloop.messages import ChatMessage, CheckedConversation, ToolCall
from tinkerloop.renderers import base
from tinkerloop.renderers.format import LEFT_OUT_BY_TEMPLATES
from tinkerloop.renderers.normalization import extract_inline_reasoning
from tinkerloop.renderers.parsing.grammar import Block, Grammar
from tinkerloop.renderers.pieces import Part, Piece, Pieces, markup, scaffold, stop, text
from tinkerloop.renderers.tool_calls import read_named_call, write_named_call
from tinkerloop.renderers.tool_declarations import declare_for_named_calls

_REASONING = Block(Part.REASONING, "<think>", "</think>")
_CALL = Block(Part.TOOL_CALL, "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", separators=("<｜tool▁sep｜>",))


@dataclass(frozen=True)
class DeepSeekOptions(base.Options):
    thinking: bool = False
    """If True, prompts end with `<think>`. If False, they end with `</think>`, so that the reply does not reason."""


class DeepSeekV3(base.Renderer):
    """DeepSeek-V3.1's chat format. Only the last reply keeps its reasoning. System messages are moved to the start."""

    family = "deepseekv3"
    Options = DeepSeekOptions
    leaves_out = LEFT_OUT_BY_TEMPLATES
    reasoning_remedy = "use 'deepseekv3_thinking', or remove the reasoning if the reply follows a tool result"
    control = (
        "<｜begin▁of▁sentence｜>",
        "<｜User｜>",
        "<｜Assistant｜>",
        "<｜tool▁output▁begin｜>",
        "<｜tool▁output▁end｜>",
    )

    @property
    def has_extension_property(self) -> bool:
        return not self.options.thinking

    @property
    def disables_reasoning(self) -> bool:
        return not self.options.thinking

    def rules_out_reasoning(self, conversation: CheckedConversation, index: int) -> bool:
        return self.primer(conversation, index) != "<think>"

    def make_grammar(self) -> Grammar:
        return Grammar(
            ("<｜end▁of▁sentence｜>",),
            (_REASONING, _CALL),
            wrappers=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
            announcing=("<｜tool▁calls▁begin｜>",),
            read_call=read_named_call,
        )

    def normalize(self, message: ChatMessage) -> ChatMessage:
        return extract_inline_reasoning(message, trim="")

    def header(self, role: str) -> str:
        return {"user": "<｜User｜>", "assistant": "<｜Assistant｜>"}.get(role, "")

    def pieces(self, conversation: CheckedConversation) -> list[tuple[int, Piece]]:
        system: list[tuple[int, Piece]] = []
        for i, message in enumerate(conversation.messages):
            if message.role == "system":
                system += zip(repeat(i), (scaffold("\n\n" if system else ""), *self.content(message)))
        sequence_start, *rest = super().pieces(conversation)
        return [sequence_start, *system, *rest]

    def preamble(self, conversation: CheckedConversation) -> Pieces:
        yield scaffold("<｜begin▁of▁sentence｜>")
        if conversation.tools:
            has_system = any(message.role == "system" for message in conversation.messages)
            yield scaffold("\n\n" if has_system else "")
            yield from declare_for_named_calls(conversation.tools)

    def message(self, conversation: CheckedConversation, index: int) -> Pieces:
        message = conversation[index]
        if message.role == "user":
            yield scaffold("<｜User｜>")
            yield from self.content(message)
        elif message.role == "tool":
            yield scaffold("<｜tool▁output▁begin｜>")
            yield from self.content(message)
            yield scaffold("<｜tool▁output▁end｜>")

    def opening(self, conversation: CheckedConversation, index: int) -> Pieces:
        """Return the role token and the primer; nothing after a tool result, where the assistant's turn continues."""
        if primer := self.primer(conversation, index):
            yield scaffold("<｜Assistant｜>" + primer)

    def primer(self, conversation: CheckedConversation, index: int) -> str:
        previous_role = next((m.role for m in reversed(conversation.messages[:index]) if m.role != "system"), None)
        if previous_role != "user":
            return ""
        return "<think>" if self.options.thinking and conversation.is_final(index) else "</think>"

    def reply(self, conversation: CheckedConversation, index: int) -> Pieces:
        message = conversation[index]
        if self.primer(conversation, index) == "<think>":
            yield text(message.reasoning or "", Part.REASONING)
            yield markup("</think>", Part.REASONING)
        yield from self.content(message)
        if message.tool_calls or message.unparsed:
            yield markup("<｜tool▁calls▁begin｜>", Part.TOOL_CALL)
            yield from self.calls(message)
            yield markup("<｜tool▁calls▁end｜>", Part.TOOL_CALL)
        yield stop("<｜end▁of▁sentence｜>")

    def call(self, call: ToolCall) -> Pieces:
        return write_named_call(call.function.name, "<｜tool▁sep｜>", call)


PRESETS: Sequence[tuple[str, type[base.Renderer], base.Options]] = (
    ("deepseekv3", DeepSeekV3, DeepSeekOptions()),
    ("deepseekv3_disable_thinking", DeepSeekV3, DeepSeekOptions()),
    ("deepseekv3_thinking", DeepSeekV3, DeepSeekOptions(thinking=True)),
)

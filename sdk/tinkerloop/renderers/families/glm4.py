"""The chat formats of GLM-4.5, 4.6 and 4.7. Turns end with the role token of the next turn, as in GLM-5.3.

Presets: `glm4_5` (also for 4.6) and `glm4_5_disable_thinking`, with newlines around the parts of a turn; `glm4_7`,
`glm4_7_disable_thinking` and `glm4_7_preserve_thinking`, without newlines. The reference is the publisher's chat
template. Only `glm4_7_preserve_thinking` keeps the reasoning before the last user message.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from tinkerloop.messages import ChatMessage, CheckedConversation, ToolCall
from tinkerloop.renderers import base
from tinkerloop.renderers.families.glm import CALL, Glm
from tinkerloop.renderers.normalization import WHITESPACE, extract_inline_reasoning, trim_content
from tinkerloop.renderers.parsing.grammar import Block, Grammar
from tinkerloop.renderers.pieces import Part, Pieces, markup, scaffold, stop, text
from tinkerloop.renderers.tool_calls import write_keyed_call
from tinkerloop.renderers.tool_declarations import declare_for_glm4_calls

_NO_THINKING = "/nothink"
"""The text at the end of user messages if reasoning is off; a control token in the tokenizers that have it."""


@dataclass(frozen=True)
class Glm4Options(base.Options):
    thinking: bool = True
    """If False, prompts rule reasoning out."""
    preserve_thinking: bool = False
    """If True, replies before the last user message keep their reasoning. GLM-4.5's template never does so."""


class Glm47(Glm):
    """GLM-4.7's chat format. A prompt ends with `<think>`, or with `</think>` if the reply must not reason."""

    family = "glm4_7"
    Options = Glm4Options
    newline: ClassVar[str] = ""
    """The text between the parts of a turn."""

    @property
    def has_extension_property(self) -> bool:
        return not self.options.thinking

    @property
    def disables_reasoning(self) -> bool:
        return not self.options.thinking

    def normalize(self, message: ChatMessage) -> ChatMessage:
        """Extract the inline reasoning of replies, and trim their reasoning and text.

        The template writes an empty reasoning block for reasoning of whitespace, and none for an empty text.
        """
        if message.role != "assistant":
            return message
        message = trim_content(extract_inline_reasoning(message))
        return message._replace(reasoning=message.reasoning.strip() if message.reasoning else None)

    def preamble(self, conversation: CheckedConversation) -> Pieces:
        yield scaffold("[gMASK]<sop>")
        if conversation.tools:
            yield scaffold("<|system|>")
            yield from declare_for_glm4_calls(conversation.tools, self.newline)

    def message(self, conversation: CheckedConversation, index: int) -> Pieces:
        role, newline = conversation[index].role, self.newline
        follows_result = role == "tool" and conversation.role(index - 1) == "tool"
        if not follows_result and self._end_token(conversation, index - 1) != self.header(role):
            yield scaffold(self.header(role))
        yield scaffold(f"{newline}<tool_response>{newline}" if role == "tool" else newline)
        yield from self.content(conversation[index])
        if role == "tool":
            yield scaffold(f"{newline}</tool_response>")

    def _shown_reasoning(self, conversation: CheckedConversation, index: int) -> str | None:
        """Return the reasoning of reply `index`, or None if there is none or the template leaves it out of history."""
        is_kept = self.options.preserve_thinking or index > conversation.last_user
        return conversation[index].reasoning if is_kept else None

    def primer(self, conversation: CheckedConversation, index: int) -> str:
        if not self.options.thinking:
            return "</think>"
        opens = conversation.is_final(index) or index == len(conversation)
        return "<think>" if opens or self._shown_reasoning(conversation, index) is not None else "</think>"

    def reply(self, conversation: CheckedConversation, index: int) -> Pieces:
        message = conversation[index]
        if self.primer(conversation, index) == "<think>":
            yield text(self._shown_reasoning(conversation, index) or "", Part.REASONING)
            yield markup("</think>", Part.REASONING)
        yield from self.content(message)
        yield from self.calls(message)
        if end_token := self._end_token(conversation, index):
            yield stop(end_token)

    def call(self, call: ToolCall) -> Pieces:
        return write_keyed_call(call, self.newline)


class Glm45(Glm47):
    """GLM-4.5's chat format, with newlines between the parts of a turn. The model opens the reasoning block itself."""

    family = "glm4_5"
    newline = "\n"

    def _prepare(self) -> None:
        if self._encoder.id_of(_NO_THINKING) is not None:
            self.control = (*type(self).control, _NO_THINKING)
        super()._prepare()

    def make_grammar(self) -> Grammar:
        reasoning = Block(Part.REASONING, "<think>", "</think>", gap="\n", trim=WHITESPACE)
        call = replace(CALL, lead="\n", between="\n")
        return replace(super().make_grammar(), blocks=(reasoning, call), text_head="\n")

    def message(self, conversation: CheckedConversation, index: int) -> Pieces:
        yield from super().message(conversation, index)
        message = conversation[index]
        if message.role == "user" and not self.options.thinking and not message.text.endswith(_NO_THINKING):
            yield scaffold(_NO_THINKING)

    def primer(self, conversation: CheckedConversation, index: int) -> str:
        return "" if self.options.thinking else "\n<think></think>"

    def reply(self, conversation: CheckedConversation, index: int) -> Pieces:
        message = conversation[index]
        if self.options.thinking:
            yield markup("\n<think>", Part.REASONING)
            yield text(self._shown_reasoning(conversation, index) or "", Part.REASONING)
            yield markup("</think>", Part.REASONING)
        yield markup("\n" if message.content else "", Part.TEXT)
        yield from self.content(message)
        has_calls = message.tool_calls or message.unparsed
        yield markup("\n" if has_calls and not message.content else "", Part.TOOL_CALL)
        yield from self.calls(message)
        if end_token := self._end_token(conversation, index):
            yield stop(end_token)


PRESETS: Sequence[tuple[str, type[base.Renderer], base.Options]] = (
    ("glm4_5", Glm45, Glm4Options()),
    ("glm4_5_disable_thinking", Glm45, Glm4Options(thinking=False)),
    ("glm4_7", Glm47, Glm4Options()),
    ("glm4_7_disable_thinking", Glm47, Glm4Options(thinking=False)),
    ("glm4_7_preserve_thinking", Glm47, Glm4Options(preserve_thinking=True)),
)

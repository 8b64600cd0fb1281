"""Gemma 4's chat format for text: `<|turn>user\\n...<turn|>\\n<|turn>model\\n...<turn|>\\n`.

A reply with tool calls ends with `<|tool_response>`, the token with which their results begin; the model's turn goes on
after the results. All texts but results are trimmed. Presets: `gemma4` and `gemma4_e4b` (for E2B and E4B), whose
prompts rule reasoning out, and `gemma4_thinking`, for all sizes. The reference is the publisher's chat template.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tinkerloop.errors import RenderError
from tinkerloop.messages import ChatMessage, CheckedConversation, ToolCall
from tinkerloop.renderers import base
from tinkerloop.renderers.format import LEFT_OUT_BY_TEMPLATES
from tinkerloop.renderers.gemma_calls import (
    QUOTE,
    declare_for_quoted_calls,
    read_quoted_call,
    write_quoted_call,
    write_result,
)
from tinkerloop.renderers.normalization import trim_content
from tinkerloop.renderers.parsing.grammar import Block, Grammar
from tinkerloop.renderers.pieces import Part, Pieces, markup, scaffold, stop, text

_REASONING = Block(Part.REASONING, "<|channel>", "<channel|>", head="thought\n", foot="\n")
_CALL = Block(Part.TOOL_CALL, "<|tool_call>", "<tool_call|>", separators=(QUOTE,))


@dataclass(frozen=True)
class Gemma4Options(base.Options):
    thinking: bool = False
    """If True, the model may reason."""
    has_empty_block: bool = True
    """If True, every prompt of a model that may not reason has an empty reasoning block, which history leaves out. E2B
    and E4B have none."""


class Gemma4(base.Renderer):
    """Gemma 4's chat format. History leaves out reasoning before the last user message."""

    family = "gemma4"
    Options = Gemma4Options
    leaves_out = LEFT_OUT_BY_TEMPLATES
    control = ("<bos>", "<|turn>", "<|think|>", "<|tool>", "<tool|>", "<tool_response|>")

    @property
    def has_extension_property(self) -> bool:
        return not (self.options.thinking or self.options.has_empty_block)

    @property
    def disables_reasoning(self) -> bool:
        return not self.options.thinking

    def make_grammar(self) -> Grammar:
        return Grammar(("<turn|>", "<|tool_response>"), (_REASONING, _CALL), eos=("<eos>",), read_call=read_quoted_call)

    def header(self, role: str) -> str:
        if role == "tool":
            return "<|tool_response>"
        return f"<|turn>{'model' if role == 'assistant' else role}\n"

    def normalize(self, message: ChatMessage) -> ChatMessage:
        return message if message.role == "tool" else trim_content(message)

    def preamble(self, conversation: CheckedConversation) -> Pieces:
        yield scaffold("<bos>")
        has_system = conversation.role(0) == "system"
        if not (has_system or self.options.thinking or conversation.tools):
            return
        yield scaffold(self.header("system") + ("<|think|>\n" if self.options.thinking else ""))
        if not has_system:
            yield from declare_for_quoted_calls(conversation.tools)
            yield scaffold("<turn|>\n")

    def message(self, conversation: CheckedConversation, index: int) -> Pieces:
        message = conversation[index]
        if message.role == "tool":
            yield from self._result(conversation, index)
            return
        if index or message.role == "user":
            yield scaffold(self.header(message.role))
        yield from self.content(message)
        if message.role == "system" and index == 0:
            yield from declare_for_quoted_calls(conversation.tools)
        yield stop("<turn|>")
        yield scaffold("\n")

    def _result(self, conversation: CheckedConversation, index: int) -> Pieces:
        """Return the pieces of a tool result. It names its function instead of the call's id."""
        message = conversation[index]
        calling = next((i for i in range(index - 1, -1, -1) if conversation.role(i) != "tool"), -1)
        calls = conversation[calling].tool_calls if conversation.role(calling) == "assistant" else ()
        answered = [call for call in calls if call.id is not None and call.id == message.tool_call_id]
        if not answered:  # a model samples calls without ids
            at_same_place = calls[index - calling - 1 : index - calling]
            answered = [call for call in at_same_place if None in (call.id, message.tool_call_id)]
        if not answered:
            raise RenderError(
                f"messages[{index}]: this tool result must follow a reply with a call of the same id, because "
                f"{self.name} writes the name of the function before the result"
            )
        yield scaffold(self.header("tool") if conversation.role(index - 1) == "tool" else "")
        yield from write_result(answered[-1].function.name, self.plain(message))
        yield scaffold("<tool_response|>")

    def opening(self, conversation: CheckedConversation, index: int) -> Pieces:
        """Return the header and the primer; nothing after calls and their results, where the model's turn goes on."""
        if not self._goes_on(conversation, index):
            yield from super().opening(conversation, index)

    def _goes_on(self, conversation: CheckedConversation, index: int) -> bool:
        previous = conversation[index - 1] if index else None
        return previous is not None and (previous.role == "tool" or bool(previous.tool_calls or previous.unparsed))

    def primer(self, conversation: CheckedConversation, index: int) -> str:
        has_block = self.options.has_empty_block and not self.options.thinking
        opens = has_block and conversation.is_final(index) and not self._goes_on(conversation, index)
        return _REASONING.open + _REASONING.head + _REASONING.close if opens else ""

    def reply(self, conversation: CheckedConversation, index: int) -> Pieces:
        message = conversation[index]
        if message.reasoning and self.options.thinking and index > conversation.last_user:
            yield markup(_REASONING.open + _REASONING.head, Part.REASONING)
            yield text(message.reasoning, Part.REASONING)
            yield markup(_REASONING.foot + _REASONING.close, Part.REASONING)
        yield from self.content(message)
        yield from self.calls(message)
        yield stop("<|tool_response>" if message.tool_calls or message.unparsed else "<turn|>")

    def after_reply(self, conversation: CheckedConversation, index: int) -> Pieces:
        message = conversation[index]
        yield scaffold("" if message.tool_calls or message.unparsed else "\n")

    def call(self, call: ToolCall) -> Pieces:
        return write_quoted_call(call)


PRESETS: Sequence[tuple[str, type[base.Renderer], base.Options]] = (
    ("gemma4", Gemma4, Gemma4Options()),
    ("gemma4_e4b", Gemma4, Gemma4Options(has_empty_block=False)),
    ("gemma4_thinking", Gemma4, Gemma4Options(thinking=True)),
)

"""The chat formats of Qwen2.5 and Qwen3-Coder: ChatML without reasoning.

Presets: `qwen2_5`, whose calls are JSON and which always has a system message, and `qwen3_coder`, whose calls are XML.
The reference of both is the publisher's chat template.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

from tinkerloop.messages import ChatMessage, CheckedConversation, ToolCall
from tinkerloop.renderers import base
from tinkerloop.renderers.families.chatml import ChatML
from tinkerloop.renderers.families.qwen3 import JSON_CALL
from tinkerloop.renderers.families.qwen3_5 import XML_CALL
from tinkerloop.renderers.format import NoReasoning
from tinkerloop.renderers.normalization import trim_content
from tinkerloop.renderers.parsing.grammar import Grammar
from tinkerloop.renderers.pieces import Part, Pieces, scaffold, stop, text
from tinkerloop.renderers.tool_calls import read_json_call, read_xml_call, write_json_call, write_xml_call
from tinkerloop.renderers.tool_declarations import declare_for_coder_calls, declare_for_json_calls


class Qwen25(NoReasoning, ChatML):
    """Qwen2.5's chat format. A conversation without a system message gets a default one."""

    family = "qwen2_5"
    default_system: ClassVar[str] = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."

    def make_grammar(self) -> Grammar:
        return Grammar(("<|im_end|>",), (JSON_CALL,), eos=("<|endoftext|>",), read_call=read_json_call)

    def declarations(self, conversation: CheckedConversation) -> Pieces:
        return declare_for_json_calls(conversation.tools)

    def preamble(self, conversation: CheckedConversation) -> Pieces:
        if conversation.role(0) != "system" and self._has_default_system(conversation):
            yield scaffold(self.header("system") + self.default_system)
            if conversation.tools:
                yield scaffold("\n\n")
                yield from self.declarations(conversation)
            yield from self.end

    def _has_default_system(self, conversation: CheckedConversation) -> bool:
        return True

    def reply(self, conversation: CheckedConversation, index: int) -> Pieces:
        yield from self.content(conversation[index])
        yield from self.calls(conversation[index])
        yield stop("<|im_end|>")

    def call(self, call: ToolCall) -> Pieces:
        yield text(write_json_call(call), Part.TOOL_CALL)


class Qwen3Coder(Qwen25):
    """Qwen3-Coder's chat format. Only a conversation with tools gets a default system message."""

    family = "qwen3_coder"
    default_system = "You are Qwen, a helpful AI assistant that can interact with a computer to solve tasks."

    def make_grammar(self) -> Grammar:
        return Grammar(
            ("<|im_end|>",), (XML_CALL,), eos=("<|endoftext|>",), read_call=partial(read_xml_call, json_scalars=False)
        )

    def declarations(self, conversation: CheckedConversation) -> Pieces:
        return declare_for_coder_calls(conversation.tools)

    def _has_default_system(self, conversation: CheckedConversation) -> bool:
        return bool(conversation.tools)

    def normalize(self, message: ChatMessage) -> ChatMessage:
        """Trim the text beside calls, as the official template does."""
        return trim_content(message) if message.role == "assistant" and message.tool_calls else message

    def tool_result(self, conversation: CheckedConversation, index: int) -> Pieces:
        is_first, is_last = conversation.role(index - 1) != "tool", conversation.role(index + 1) != "tool"
        yield scaffold(self.header("user") + "<tool_response>\n" if is_first else "<tool_response>\n")
        yield from self.content(conversation[index])
        yield scaffold("\n</tool_response>\n")
        if is_last:
            yield from self.end

    def call(self, call: ToolCall) -> Pieces:
        yield text(write_xml_call(call, json_scalars=False), Part.TOOL_CALL)


PRESETS: Sequence[tuple[str, type[base.Renderer], base.Options]] = (
    ("qwen2_5", Qwen25, base.Options()),
    ("qwen3_coder", Qwen3Coder, base.Options()),
)

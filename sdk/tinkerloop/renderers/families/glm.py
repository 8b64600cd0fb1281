"""GLM-5.3's chat format: `<|user|>...<|assistant|><think>...</think>...`.

A turn ends with the role token of the next turn. The model samples this token in order to stop. Therefore the token
belongs to the reply before it, and the next turn is written without a header. Presets: `glm5_3_max_reasoning`,
`glm5_3_high_reasoning`, `glm5_3_low_reasoning`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tinkerloop.messages import ChatMessage, CheckedConversation, ToolCall
from tinkerloop.renderers import base
from tinkerloop.renderers.format import LEFT_OUT_BY_TEMPLATES
from tinkerloop.renderers.normalization import extract_inline_reasoning, trim_content
from tinkerloop.renderers.parsing.grammar import Block, Grammar
from tinkerloop.renderers.pieces import Part, Pieces, markup, scaffold, stop, text
from tinkerloop.renderers.tool_calls import read_keyed_call, write_keyed_call
from tinkerloop.renderers.tool_declarations import declare_for_keyed_calls

_REASONING = Block(Part.REASONING, "<think>", "</think>")
CALL = Block(
    Part.TOOL_CALL,
    "<tool_call>",
    "</tool_call>",
    separators=("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
)
_ROLE_TOKENS = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>", "tool": "<|observation|>"}


@dataclass(frozen=True)
class GlmOptions(base.Options):
    effort: Literal["Max", "High", "Low"] = "Max"
    """The reasoning effort that is written at the start of every conversation."""
    preserve_thinking: bool = True
    """If True, replies before the last user message keep their reasoning."""

    def __post_init__(self) -> None:
        self.check("effort", "Max", "High", "Low")


class Glm(base.Renderer):
    """GLM-5.3's chat format. It writes the reasoning effort at the start and begins every reply with `<think>`."""

    family = "glm5_3"
    Options = GlmOptions
    leaves_out = LEFT_OUT_BY_TEMPLATES
    control = ("[gMASK]", "<sop>", "<|system|>", "<|assistant|>", "<tool_response>", "</tool_response>")

    @property
    def has_extension_property(self) -> bool:
        return self.options.preserve_thinking

    def make_grammar(self) -> Grammar:
        stops = ("<|user|>", "<|observation|>", "<|endoftext|>")
        return Grammar(stops, (_REASONING, CALL), read_call=read_keyed_call)

    def header(self, role: str) -> str:
        return _ROLE_TOKENS[role]

    def normalize(self, message: ChatMessage) -> ChatMessage:
        return trim_content(extract_inline_reasoning(message, trim="")) if message.role == "assistant" else message

    def preamble(self, conversation: CheckedConversation) -> Pieces:
        yield scaffold(f"[gMASK]<sop><|system|>Reasoning Effort: {self.options.effort}")
        if conversation.tools:
            yield scaffold("<|system|>")
            yield from declare_for_keyed_calls(conversation.tools)

    def message(self, conversation: CheckedConversation, index: int) -> Pieces:
        role = conversation[index].role
        follows_result = role == "tool" and conversation.role(index - 1) == "tool"
        if not follows_result and self._end_token(conversation, index - 1) != self.header(role):
            yield scaffold(self.header(role))
        if role == "tool":
            yield scaffold("<tool_response>")
        yield from self.content(conversation[index])
        if role == "tool":
            yield scaffold("</tool_response>")

    def primer(self, conversation: CheckedConversation, index: int) -> str:
        return "<think>"

    def reply(self, conversation: CheckedConversation, index: int) -> Pieces:
        message = conversation[index]
        keeps_reasoning = self.options.preserve_thinking or index > conversation.last_user
        yield text((message.reasoning or "") if keeps_reasoning else "", Part.REASONING)
        yield markup("</think>", Part.REASONING)
        yield from self.content(message)
        yield from self.calls(message)
        if end_token := self._end_token(conversation, index):
            yield stop(end_token)

    def _end_token(self, conversation: CheckedConversation, index: int) -> str | None:
        """Return the role token at the end of reply `index`; None if message `index` is no reply.

        A reply with tool calls ends with the role token of tool results, any other reply with that of the user. Return
        None if the next message has another role.
        """
        if conversation.role(index) != "assistant":
            return None
        next_role = "tool" if conversation[index].tool_calls else "user"
        return self.header(next_role) if conversation.role(index + 1) in (next_role, None) else None

    def call(self, call: ToolCall) -> Pieces:
        return write_keyed_call(call)


PRESETS: tuple[tuple[str, type[base.Renderer], base.Options], ...] = (
    ("glm5_3_max_reasoning", Glm, GlmOptions()),
    ("glm5_3_high_reasoning", Glm, GlmOptions("High")),
    ("glm5_3_low_reasoning", Glm, GlmOptions("Low")),
)

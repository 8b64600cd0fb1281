"""GLM-5.3: `<|user|>...<|assistant|><think>...</think>...`, no end token: a turn ends with the role token of the next.

That token is what the model samples to stop, so it belongs to the reply it ends, and the turn after it is written
without a header. Presets: `glm5_3_max_reasoning`, `glm5_3_high_reasoning`, `glm5_3_low_reasoning`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

from tinkerloop.messages import ChatMessage, CheckedConversation, ToolCall
from tinkerloop.renderers import base
from tinkerloop.renderers.families.qwen3_5 import trimmed
from tinkerloop.renderers.inline_reasoning import lift_thinking
from tinkerloop.renderers.parsing.grammar import Block, Grammar
from tinkerloop.renderers.pieces import Part, Pieces, marked, scaffold, stop, text
from tinkerloop.renderers.tool_syntax import arguments_of, checked_name, read_keyed_call

REASONING = Block(Part.REASONING, "<think>", "</think>")
CALL = Block(
    Part.TOOL_CALL,
    "<tool_call>",
    "</tool_call>",
    separators=("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
)
_TOOLS_HEAD = (
    "\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
)
_TOOLS_FOOT = (
    "</tools>\n\nFor each function call, output the function name and arguments within the following XML format:\n"
    "<tool_call>{function-name}<arg_key>{arg-key-1}</arg_key><arg_value>{arg-value-1}</arg_value>"
    "<arg_key>{arg-key-2}</arg_key><arg_value>{arg-value-2}</arg_value>...</tool_call>"
)
_ROLE_TOKENS = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>", "tool": "<|observation|>"}


@dataclass(frozen=True)
class GlmOptions(base.Options):
    effort: Literal["Max", "High", "Low"] = "Max"
    preserve_thinking: bool = True
    """Whether turns before the last user message keep their reasoning."""

    def __post_init__(self) -> None:
        self.check("effort", "Max", "High", "Low")


class Glm(base.Renderer):
    family = "glm5_3"
    Options = GlmOptions
    control = ("[gMASK]", "<sop>", "<|system|>", "<|assistant|>", "<tool_response>", "</tool_response>")

    @property
    def has_extension_property(self) -> bool:
        return self.options.preserve_thinking

    def make_grammar(self) -> Grammar:
        stops = ("<|user|>", "<|observation|>", "<|endoftext|>")
        return Grammar(stops, (REASONING, CALL), read_call=read_keyed_call)

    def header(self, role: str) -> str:
        return _ROLE_TOKENS[role]

    def lifted(self, message: ChatMessage) -> ChatMessage:
        return trimmed(lift_thinking(message, trim="")) if message.role == "assistant" else message

    def preamble(self, conversation: CheckedConversation) -> Pieces:
        yield scaffold(f"[gMASK]<sop><|system|>Reasoning Effort: {self.options.effort}")
        if conversation.tools:
            yield scaffold("<|system|>" + _TOOLS_HEAD)
            for tool in conversation.tools:
                shown = {k: v for k, v in tool.items() if k not in ("defer_loading", "strict")}
                yield text(json.dumps(shown, ensure_ascii=False) + "\n", Part.SCAFFOLD)
            yield scaffold(_TOOLS_FOOT)

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
        kept = self.options.preserve_thinking or index > conversation.last_user
        yield text((message.reasoning or "") if kept else "", Part.REASONING)
        yield marked("</think>", Part.REASONING)
        yield from self.content(message)
        yield from self.calls(message)
        if end := self._end_token(conversation, index):
            yield stop(end)

    def _end_token(self, conversation: CheckedConversation, index: int) -> str | None:
        """What reply `index` ends with: what calls for results or for the user, if that is what comes next."""
        if conversation.role(index) != "assistant":
            return None
        asks = "tool" if conversation[index].tool_calls else "user"
        return self.header(asks) if conversation.role(index + 1) in (asks, None) else None

    def call(self, call: ToolCall) -> Pieces:
        yield text(checked_name(call.function.name), Part.TOOL_CALL)
        for key, value in arguments_of(call).items():
            spelled = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for tag, inside in (("arg_key", key), ("arg_value", spelled)):
                yield marked(f"<{tag}>", Part.TOOL_CALL)
                yield text(inside, Part.TOOL_CALL)
                yield marked(f"</{tag}>", Part.TOOL_CALL)


PRESETS: tuple[tuple[str, type[base.Renderer], base.Options], ...] = (
    ("glm5_3_max_reasoning", Glm, GlmOptions()),
    ("glm5_3_high_reasoning", Glm, GlmOptions("High")),
    ("glm5_3_low_reasoning", Glm, GlmOptions("Low")),
)

"""The chat format of DeepSeek-R1's distilled models: `<｜User｜>...<｜Assistant｜><think>\\n...</think>\\n\\n...`.

The text of the system message stands at the start, without a header. A prompt opens the reasoning, and history leaves
it out. There are no tools: the official template declares none, and does not close a single call. Preset:
`deepseek_r1_distill`.
"""

from __future__ import annotations

from collections.abc import Sequence

from tinkerloop.errors import RenderError
from tinkerloop.messages import ChatMessage, CheckedConversation
from tinkerloop.renderers import base
from tinkerloop.renderers.format import LEFT_OUT_BY_TEMPLATES
from tinkerloop.renderers.normalization import extract_inline_reasoning
from tinkerloop.renderers.parsing.grammar import Block, Grammar
from tinkerloop.renderers.pieces import Part, Pieces, markup, scaffold, stop, text

_REASONING = Block(Part.REASONING, "<think>", "</think>", head="\n", foot="\n", gap="\n\n")


class DeepSeekR1Distill(base.Renderer):
    """The chat format of DeepSeek-R1's distilled models. Only the last reply has a reasoning block."""

    family = "deepseek_r1_distill"
    leaves_out = LEFT_OUT_BY_TEMPLATES
    roles = frozenset({"system", "user", "assistant"})
    control = ("<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>")

    def make_grammar(self) -> Grammar:
        return Grammar(("<｜end▁of▁sentence｜>",), (_REASONING,))

    def header(self, role: str) -> str:
        return {"user": "<｜User｜>", "assistant": "<｜Assistant｜>"}.get(role, "")

    def normalize(self, message: ChatMessage) -> ChatMessage:
        return extract_inline_reasoning(message)

    def preamble(self, conversation: CheckedConversation) -> Pieces:
        if conversation.tools:
            raise RenderError(
                f"{self.name} cannot declare tools; describe them in a system message and pass no tools, or use the "
                "format of a model with tools"
            )
        yield scaffold("<｜begin▁of▁sentence｜>")

    def message(self, conversation: CheckedConversation, index: int) -> Pieces:
        message = conversation[index]
        if message.role == "system" and index:
            raise RenderError(
                f"messages[{index}]: {self.name} has no system message after the first message; move its text to the "
                "first message, or give it the role 'user'"
            )
        yield scaffold(self.header(message.role))
        yield from self.content(message)

    def primer(self, conversation: CheckedConversation, index: int) -> str:
        return _REASONING.open + _REASONING.head if conversation.is_final(index) else ""

    def reply(self, conversation: CheckedConversation, index: int) -> Pieces:
        message = conversation[index]
        if conversation.is_final(index):
            yield text(message.reasoning or "", Part.REASONING)
            yield markup(_REASONING.foot + _REASONING.close, Part.REASONING)
            yield markup(_REASONING.gap, Part.TEXT)
        yield from self.content(message)
        yield from self.calls(message)  # raises an error if there are calls
        yield stop("<｜end▁of▁sentence｜>")


PRESETS: Sequence[tuple[str, type[base.Renderer], base.Options]] = (
    ("deepseek_r1_distill", DeepSeekR1Distill, base.Options()),
)

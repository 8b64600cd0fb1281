"""The chat format of Granite 3: `<|start_of_role|>user<|end_of_role|>...<|end_of_text|>\\n`.

The reference is the publisher's chat template for Granite 3.1. It has no calls and no reasoning, and neither has this
format. Its default system message, which contains the date, is left out. Preset: `granite3`.
"""

from __future__ import annotations

from collections.abc import Sequence

from tinkerloop.errors import RenderError
from tinkerloop.messages import CheckedConversation
from tinkerloop.renderers import base
from tinkerloop.renderers.format import LEFT_OUT_BY_TEMPLATES, NoReasoning
from tinkerloop.renderers.parsing.grammar import Grammar
from tinkerloop.renderers.pieces import Pieces, scaffold, stop


class Granite3(NoReasoning, base.Renderer):
    """Granite 3's chat format for text."""

    family = "granite3"
    leaves_out = LEFT_OUT_BY_TEMPLATES
    roles = frozenset({"system", "user", "assistant"})
    control = ("<|start_of_role|>", "<|end_of_role|>")

    def make_grammar(self) -> Grammar:
        return Grammar(("<|end_of_text|>",))

    def header(self, role: str) -> str:
        return f"<|start_of_role|>{role}<|end_of_role|>"

    def preamble(self, conversation: CheckedConversation) -> Pieces:
        if conversation.tools:
            raise RenderError(
                "granite3 cannot declare tools; describe them in a system message and pass no tools, or use the format "
                "of a model with tools"
            )
        return ()

    def message(self, conversation: CheckedConversation, index: int) -> Pieces:
        yield scaffold(self.header(conversation.role(index) or ""))
        yield from self.content(conversation[index])
        yield stop("<|end_of_text|>")
        yield scaffold("\n")

    def reply(self, conversation: CheckedConversation, index: int) -> Pieces:
        yield from self.content(conversation[index])
        yield from self.calls(conversation[index])  # raises an error if there are calls
        yield stop("<|end_of_text|>")

    def after_reply(self, conversation: CheckedConversation, index: int) -> Pieces:
        yield scaffold("\n")


PRESETS: Sequence[tuple[str, type[base.Renderer], base.Options]] = (("granite3", Granite3, base.Options()),)

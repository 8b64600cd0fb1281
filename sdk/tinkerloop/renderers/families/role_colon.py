"""`role_colon`: a text format for base models, which have no chat format: `User: ...`, blank line, `Assistant: ...`.

The format has no control tokens (such as `<|im_end|>`). A turn ends where the header of the next user turn begins. Text
that looks like a role header raises an error, because this format could not distinguish it from a real header.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tinkerloop.errors import RenderError
from tinkerloop.messages import CheckedConversation
from tinkerloop.renderers import base
from tinkerloop.renderers.format import LEFT_OUT_BY_TEMPLATES
from tinkerloop.renderers.parsing.grammar import Grammar
from tinkerloop.renderers.pieces import SEAM, Part, Pieces, scaffold, stop, text

_HEADER = re.compile(r"\n\n(System|User|Assistant):")


class RoleColon(base.Renderer):
    """Text format for base models: every turn is `Role: text` and a blank line.

    The header and the text of a turn are encoded separately.
    """

    family = "role_colon"
    leaves_out = LEFT_OUT_BY_TEMPLATES
    roles = frozenset({"system", "user", "assistant"})

    @property
    def has_extension_property(self) -> bool:
        return True

    def make_grammar(self) -> Grammar:
        eos = getattr(self.tokenizer, "eos_token", None)
        return Grammar(stops=(), eos=(eos,) if eos else (), stop_texts=("\n\nUser:",), text_head=" ", text_foot="\n\n")

    def preamble(self, conversation: CheckedConversation) -> Pieces:
        if conversation.tools:
            raise RenderError("role_colon cannot declare tools; remove the tools or use the renderer of a chat format")
        if bos := getattr(self.tokenizer, "bos_token", None):
            yield scaffold(bos)

    def header(self, role: str) -> str:
        return f"{role.capitalize()}:"

    def message(self, conversation: CheckedConversation, index: int) -> Pieces:
        if conversation.role(index - 1) != "assistant" or conversation.role(index) != "user":
            yield scaffold(self.header(conversation[index].role))  # else the reply before it ends with it
        yield SEAM
        yield from self._turn(conversation, index)

    def reply(self, conversation: CheckedConversation, index: int) -> Pieces:
        yield from self._turn(conversation, index)
        if conversation.role(index + 1) in ("user", None):
            yield stop("User:")
            yield SEAM

    def _turn(self, conversation: CheckedConversation, index: int) -> Pieces:
        message = conversation[index]
        if message.reasoning or message.tool_calls or message.unparsed:
            raise RenderError(
                f"messages[{index}]: role_colon has no reasoning and no tool calls; remove them or use the renderer of "
                "a chat format"
            )
        content = self.plain(message)
        if _HEADER.search(f" {content}\n\n"):
            raise RenderError(
                f"messages[{index}]: the text contains a role header of role_colon, such as '\\n\\nUser:'; change the "
                "text or use the renderer of a chat format"
            )
        yield text(" " + content, Part.TEXT)
        yield stop("\n\n")
        yield SEAM


PRESETS: Sequence[tuple[str, type[base.Renderer], base.Options]] = (("role_colon", RoleColon, base.Options()),)

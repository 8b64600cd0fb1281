"""`role_colon`: `User: ...`, a blank line, `Assistant: ...`; for base models, which have no chat format.

The format has no control tokens; a turn ends where the next user header begins. Text that looks like
a role header is therefore refused: only in this format it could not be distinguished from a header.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tinkerloop.errors import RenderError
from tinkerloop.messages import CheckedConversation
from tinkerloop.renderers import base
from tinkerloop.renderers.parsing.grammar import Grammar
from tinkerloop.renderers.pieces import SEAM, Part, Pieces, scaffold, stop, text

_HEADER = re.compile(r"\n\n(System|User|Assistant):")


class RoleColon(base.Renderer):
    """Writes every turn as `Role: text` and a blank line; header and text are encoded separately."""

    family = "role_colon"
    roles = frozenset({"system", "user", "assistant"})

    @property
    def has_extension_property(self) -> bool:
        return True

    def make_grammar(self) -> Grammar:
        eos = getattr(self.tokenizer, "eos_token", None)
        return Grammar(stops=(), eos=(eos,) if eos else (), stop_texts=("\n\nUser:",), text_head=" ", text_foot="\n\n")

    def preamble(self, conversation: CheckedConversation) -> Pieces:
        if conversation.tools:
            raise RenderError("role_colon cannot declare tools; use a chat format")
        if bos := getattr(self.tokenizer, "bos_token", None):
            yield scaffold(bos)

    def header(self, role: str) -> str:
        return f"{role.capitalize()}:"

    def message(self, conversation: CheckedConversation, index: int) -> Pieces:
        if conversation.role(index - 1) != "assistant" or conversation.role(index) != "user":
            yield scaffold(self.header(conversation[index].role))  # otherwise the reply before it ends with this header
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
            raise RenderError(f"messages[{index}]: role_colon writes text only, no reasoning and no tool calls")
        content = self.plain(message)
        if _HEADER.search(f" {content}\n\n"):
            raise RenderError(
                f"messages[{index}]: the text holds a role header of role_colon ('\\n\\nUser:' or the like)"
            )
        yield text(" " + content, Part.TEXT)
        yield stop("\n\n")
        yield SEAM


PRESETS: Sequence[tuple[str, type[base.Renderer], base.Options]] = (("role_colon", RoleColon, base.Options()),)

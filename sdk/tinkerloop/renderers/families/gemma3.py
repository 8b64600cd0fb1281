"""Gemma 3's chat format for text: `<start_of_turn>user\\n...<end_of_turn>\\n<start_of_turn>model\\n...`.

The format has two roles. A system message at the start is written into the first turn of the user. The texts of users
and replies are trimmed. There are no tools, no reasoning and no images. Preset: `gemma3`.
"""

from __future__ import annotations

from collections.abc import Sequence

from tinkerloop.errors import RenderError
from tinkerloop.messages import ChatMessage, CheckedConversation
from tinkerloop.renderers import base
from tinkerloop.renderers.format import LEFT_OUT_BY_TEMPLATES, NoReasoning
from tinkerloop.renderers.normalization import trim_content
from tinkerloop.renderers.parsing.grammar import Grammar
from tinkerloop.renderers.pieces import Pieces, scaffold, stop


class Gemma3(NoReasoning, base.Renderer):
    """Gemma 3's chat format. A system message that is not the first message raises an error."""

    family = "gemma3"
    leaves_out = LEFT_OUT_BY_TEMPLATES
    roles = frozenset({"system", "user", "assistant"})
    control = ("<bos>", "<start_of_turn>")

    def make_grammar(self) -> Grammar:
        return Grammar(("<end_of_turn>",), eos=("<eos>",))

    def header(self, role: str) -> str:
        return f"<start_of_turn>{'model' if role == 'assistant' else 'user'}\n"

    def normalize(self, message: ChatMessage) -> ChatMessage:
        return message if message.role == "system" else trim_content(message)

    def preamble(self, conversation: CheckedConversation) -> Pieces:
        if conversation.tools:
            raise RenderError(
                "gemma3 cannot declare tools; describe them in a system message and pass no tools, or use the format "
                "of a model with tools"
            )
        yield scaffold("<bos>")

    def message(self, conversation: CheckedConversation, index: int) -> Pieces:
        is_system = conversation.role(index) == "system"
        if is_system and index:
            raise RenderError(
                f"messages[{index}]: gemma3 has no system message after the first message; move its text to the first "
                "message, or give it the role 'user'"
            )
        if conversation.role(index - 1) != "system":
            yield scaffold(self.header("user"))
        yield from self.content(conversation[index])
        if is_system and conversation.role(1) == "user":
            yield scaffold("\n\n")  # the turn goes on with the user's text
        else:
            yield stop("<end_of_turn>")
            yield scaffold("\n")

    def reply(self, conversation: CheckedConversation, index: int) -> Pieces:
        yield from self.content(conversation[index])
        yield from self.calls(conversation[index])  # raises an error if there are calls
        yield stop("<end_of_turn>")

    def after_reply(self, conversation: CheckedConversation, index: int) -> Pieces:
        yield scaffold("\n")


PRESETS: Sequence[tuple[str, type[base.Renderer], base.Options]] = (("gemma3", Gemma3, base.Options()),)

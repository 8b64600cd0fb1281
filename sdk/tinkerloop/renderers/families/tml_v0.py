"""Inkling's chat format: `<|message_user|><|content_text|>...<|end_message|>`. Preset: `tml_v0`.

A reply consists of one or more such messages: first reasoning, then text, then tool calls. The model samples their
headers too, so a prompt ends with the last message before the reply. `<|content_model_end_sampling|>` ends a reply.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from tinkerloop.errors import RenderError
from tinkerloop.messages import CheckedConversation, Image
from tinkerloop.renderers import base
from tinkerloop.renderers.families.tml_v0_parser import HEADER, STOP, TML_V0_GRAMMAR, TmlV0Parser
from tinkerloop.renderers.parsing.grammar import Grammar
from tinkerloop.renderers.parsing.reply_parser import ReplyParser
from tinkerloop.renderers.pieces import Part, Piece, Pieces, markup, scaffold, stop, text
from tinkerloop.renderers.tool_arguments import checked_name
from tinkerloop.renderers.tool_calls import write_message_call
from tinkerloop.renderers.tool_declarations import declare_for_message_calls

_AUTHORS = {"assistant": HEADER, "user": "<|message_user|>", "system": "<|message_system|>", "tool": "<|message_tool|>"}
_CONTENTS = {Part.REASONING: "<|content_thinking|>", Part.TEXT: "<|content_text|>"}


@dataclass(frozen=True)
class TmlV0Options(base.Options):
    effort: float = 0.9
    """The reasoning effort, at least 0 and less than 1, which is written after the system message."""

    def __post_init__(self) -> None:
        if not isinstance(self.effort, (int, float)) or not 0 <= self.effort < 1:
            raise RenderError(f"TmlV0Options: effort must be at least 0 and less than 1, got {self.effort!r}")


class TmlV0(base.Renderer):
    """Inkling's chat format. Nothing of history is left out. Images and audio are not supported."""

    family = "tml_v0"
    Options = TmlV0Options
    leaves_out: ClassVar[Mapping[str, str]] = {
        "name": "only tools have names",
        "tool_call_id": "results follow in the order of the calls",
    }
    control = (*_AUTHORS.values(), "<|content_xml|>")

    @property
    def has_extension_property(self) -> bool:
        return True

    def make_grammar(self) -> Grammar:
        return TML_V0_GRAMMAR

    def make_parser(self, conversation: CheckedConversation) -> ReplyParser:
        return TmlV0Parser(self.grammar, self._token_texts, tools=conversation.tools)

    def header(self, role: str) -> str:
        return _AUTHORS[role] + _CONTENTS[Part.TEXT]

    def preamble(self, conversation: CheckedConversation) -> Pieces:
        return self._settings(conversation) if conversation.role(0) != "system" else ()

    def _settings(self, conversation: CheckedConversation) -> Pieces:
        """Return the pieces after the first system messages: the declarations of the tools, and the effort."""
        if conversation.tools:
            yield scaffold(f"{_AUTHORS['system']}tool_declare<|content_xml|>")
            yield from declare_for_message_calls(conversation.tools)
            yield scaffold("<|end_message|>")
        thousandths = round(self.options.effort * 1000)  # rounded twice, as in `tml_renderers`
        effort = round(thousandths / 1000 * 100) / 100
        yield scaffold(f"{self.header('system')}Thinking effort level: {effort:g}<|end_message|>")

    def message(self, conversation: CheckedConversation, index: int) -> Pieces:
        message = conversation[index]
        yield scaffold(_AUTHORS[message.role])
        if message.role == "tool" and message.name is not None:
            yield text(checked_name(message.name), Part.SCAFFOLD)
        yield scaffold(_CONTENTS[Part.TEXT])
        yield from self.content(message)
        yield stop("<|end_message|>")
        is_first_system = all(earlier.role == "system" for earlier in conversation.messages[: index + 1])
        if is_first_system and conversation.role(index + 1) != "system":
            yield from self._settings(conversation)

    def opening(self, conversation: CheckedConversation, index: int) -> Pieces:
        return ()  # the model samples the header of each of its messages

    def reply(self, conversation: CheckedConversation, index: int) -> Pieces:
        message = conversation[index]
        written: list[tuple[Piece, ...]] = []
        if message.reasoning is not None:
            written.append(_content(Part.REASONING, (text(message.reasoning, Part.REASONING),)))
        calls = (*message.tool_calls, *message.unparsed)
        if message.content or not (calls or written):
            written.append(_content(Part.TEXT, self.content(message)))
        for call in message.tool_calls:
            written.append(
                (
                    markup(HEADER, Part.TOOL_CALL),
                    text(checked_name(call.function.name), Part.TOOL_CALL),
                    markup("<|content_invoke_tool_json|>", Part.TOOL_CALL),
                    text(write_message_call(call), Part.TOOL_CALL),
                )
            )
        for call in message.unparsed:
            tags = "|".join(map(re.escape, self.grammar.tags))
            fields = re.split(f"({tags})", call.raw_text)
            written.append(tuple((markup if i % 2 else text)(field, Part.TOOL_CALL) for i, field in enumerate(fields)))
        for i, pieces in enumerate(written):
            yield markup("<|end_message|>" if i else "", pieces[0].part)
            yield from pieces
        yield stop(f"<|end_message|>{STOP}")

    def image(self, image: Image) -> Pieces:
        raise RenderError(f"the chat format {self.name} does not support images yet; remove the image")


def _content(part: Part, inside: Iterable[Piece]) -> tuple[Piece, ...]:
    return (markup(HEADER + _CONTENTS[part], part), *inside)


PRESETS: tuple[tuple[str, type[base.Renderer], base.Options], ...] = (("tml_v0", TmlV0, TmlV0Options()),)

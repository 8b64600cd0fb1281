"""The chat format of Llama 3.1 and later: `<|start_header_id|>role<|end_header_id|>\\n\\n...<|eot_id|>`.

All text is trimmed. The official template always writes a system message with two dates. The preset `llama3` leaves the
dates out, as Tinker does, because training prompts should not depend on the date. `Llama3Options(date="26 Jul 2024")`
gives the same text as the official template.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from tinkerloop.errors import RenderError
from tinkerloop.messages import ChatMessage, CheckedConversation
from tinkerloop.renderers import base
from tinkerloop.renderers.format import LEFT_OUT_BY_TEMPLATES
from tinkerloop.renderers.normalization import trim_content
from tinkerloop.renderers.parsing.grammar import Block, Grammar
from tinkerloop.renderers.pieces import Part, Pieces, scaffold, stop, text
from tinkerloop.renderers.text_calls import PYTHON_TAG, find_call, read_tagged_calls, read_text_calls, write_text_call
from tinkerloop.renderers.tool_declarations import declare_for_text_calls


@dataclass(frozen=True)
class Llama3Options(base.Options):
    date: str | None = None
    """The current date in the official system preamble, such as `26 Jul 2024`. With None, there is no preamble."""


class Llama3(base.Renderer):
    """Llama 3's chat format. The first user message declares the tools. A reply is either text or one tool call.

    A tool call is written as JSON in ordinary tokens. `text_calls` also reads the other forms that models sample.
    """

    family = "llama3"
    Options = Llama3Options
    leaves_out = LEFT_OUT_BY_TEMPLATES
    control = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", PYTHON_TAG)

    @property
    def has_extension_property(self) -> bool:
        return True

    def make_grammar(self) -> Grammar:
        return Grammar(
            ("<|eot_id|>",),
            (Block(Part.TOOL_CALL, PYTHON_TAG, ""),),
            eos=("<|end_of_text|>", "<|eom_id|>"),
            read_call=read_tagged_calls,
            find_call=find_call,
            read_text=read_text_calls,
        )

    def get_stop_sequences(self) -> list[int] | list[str]:
        """Return the ids of `<|eot_id|>` and of `<|eom_id|>`, which ends a call whose result the model awaits.

        The tokenizer of Llama 3.0 has no `<|eom_id|>`.
        """
        stops = [self._assembler.id_of("<|eot_id|>")]
        return [*stops, *(i for token, i in self._assembler.ids.items() if token == "<|eom_id|>")]

    @property
    def reply_tags(self) -> Sequence[str]:
        return (PYTHON_TAG,)

    def header(self, role: str) -> str:
        return f"<|start_header_id|>{'ipython' if role == 'tool' else role}<|end_header_id|>\n\n"

    def normalize(self, message: ChatMessage) -> ChatMessage:
        return message if message.role == "tool" else trim_content(message)

    def preamble(self, conversation: CheckedConversation) -> Pieces:
        if conversation.tools and conversation.role(_first_turn(conversation)) != "user":
            raise RenderError(
                "llama3 declares tools in the first user message, so a conversation with tools must begin with a user "
                "message, after an optional system message"
            )
        yield scaffold("<|begin_of_text|>")
        if conversation.role(0) != "system":
            yield from self._system(conversation, None)

    def _system(self, conversation: CheckedConversation, message: ChatMessage | None) -> Pieces:
        has_date = self.options.date is not None
        if message is None and not has_date and not conversation.tools:
            return
        yield scaffold(self.header("system"))
        if conversation.tools:
            yield scaffold("Environment: ipython\n")
        if has_date:
            yield scaffold(f"Cutting Knowledge Date: December 2023\nToday Date: {self.options.date}\n\n")
        if message is not None:
            yield from self.content(message)
        yield stop("<|eot_id|>")

    def message(self, conversation: CheckedConversation, index: int) -> Pieces:
        message = conversation[index]
        if message.role == "system" and index == 0:
            yield from self._system(conversation, message)
            return
        yield scaffold(self.header(message.role))
        if conversation.tools and index == _first_turn(conversation):
            yield from declare_for_text_calls(conversation.tools)
        if message.role == "tool":
            yield text(json.dumps(self.plain(message), ensure_ascii=False))  # quoted as in the official template
        else:
            yield from self.content(message)
        yield stop("<|eot_id|>")

    def reply(self, conversation: CheckedConversation, index: int) -> Pieces:
        message = conversation[index]
        calls = message.tool_calls
        if message.reasoning or message.unparsed or len(calls) > 1 or (calls and message.content):
            raise RenderError(
                f"messages[{index}]: a llama3 reply must be either text or one tool call, and must have no reasoning"
            )
        if calls:
            yield text(write_text_call(calls[0]), Part.TOOL_CALL)
        yield from self.content(message)
        yield stop("<|eot_id|>")


def _first_turn(conversation: CheckedConversation) -> int:
    """Return the index of the first message after an optional system message."""
    return int(conversation.role(0) == "system")


PRESETS: tuple[tuple[str, type[base.Renderer], base.Options], ...] = (("llama3", Llama3, Llama3Options()),)

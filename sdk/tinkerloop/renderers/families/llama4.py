"""The chat format of Llama 4: `<|header_start|>role<|header_end|>\\n\\n...<|eot|>`.

A reply with calls is `<|python_start|>TEXT<|python_end|>{"name": "f", "parameters": {...}}`; calls follow each other
without a separator. The first system message is trimmed, and so is the user message that declares the tools. Preset:
`llama4`. The reference is the publisher's chat template.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from tinkerloop.errors import RenderError
from tinkerloop.messages import CheckedConversation
from tinkerloop.renderers import base
from tinkerloop.renderers.format import LEFT_OUT_BY_TEMPLATES, NoReasoning
from tinkerloop.renderers.normalization import trim_content
from tinkerloop.renderers.parsing.call_syntaxes import read_json
from tinkerloop.renderers.parsing.grammar import Block, Grammar
from tinkerloop.renderers.pieces import Part, Pieces, markup, scaffold, stop, text
from tinkerloop.renderers.text_calls import find_call, read_text_calls, write_text_call
from tinkerloop.renderers.tool_declarations import declare_for_text_calls

_BEGIN, _CALL = "<|python_start|>", Block(Part.TOOL_CALL, "<|python_end|>", "")


class Llama4(NoReasoning, base.Renderer):
    """Llama 4's chat format. The first user message declares the tools.

    Calls as a Python list between the tags, and calls without tags, are read too (see `text_calls`).
    """

    family = "llama4"
    leaves_out = LEFT_OUT_BY_TEMPLATES
    control = ("<|begin_of_text|>", "<|header_start|>", "<|header_end|>")

    def make_grammar(self) -> Grammar:
        return Grammar(
            ("<|eot|>",),
            (_CALL,),
            wrappers=(_BEGIN,),
            announcing=(_BEGIN,),
            eos=("<|end_of_text|>", "<|eom|>"),
            read_call=lambda fields, tools: read_json(fields[0]) if fields[0].strip() else (),
            find_call=find_call,
            read_text=read_text_calls,
        )

    def header(self, role: str) -> str:
        return f"<|header_start|>{'ipython' if role == 'tool' else role}<|header_end|>\n\n"

    def preamble(self, conversation: CheckedConversation) -> Pieces:
        if conversation.tools and conversation.role(_first_turn(conversation)) != "user":
            raise RenderError(
                "llama4 declares tools in the first user message, so a conversation with tools must begin with a user "
                "message, after an optional system message"
            )
        yield scaffold("<|begin_of_text|>")

    def message(self, conversation: CheckedConversation, index: int) -> Pieces:
        message, tools = conversation[index], conversation.tools
        is_system = message.role == "system" and index == 0
        declares = bool(tools) and index == _first_turn(conversation)
        yield scaffold(self.header(message.role) + ("Environment: ipython\n" if is_system and tools else ""))
        if declares:
            yield from declare_for_text_calls(tools)
        if message.role == "tool":
            yield text(json.dumps(self.plain(message), ensure_ascii=False))  # quoted as in the official template
        else:
            yield from self.content(trim_content(message) if is_system or declares else message)
        yield stop("<|eot|>")

    def reply(self, conversation: CheckedConversation, index: int) -> Pieces:
        message = conversation[index]
        unparsed = "".join(call.raw_text for call in message.unparsed)
        has_tags = bool(message.tool_calls) or unparsed.startswith(_CALL.open)
        yield markup(_BEGIN if has_tags else "", Part.TOOL_CALL)
        yield from self.content(message)
        yield markup(_CALL.open if has_tags else "", Part.TOOL_CALL)
        yield text("".join(map(write_text_call, message.tool_calls)), Part.TOOL_CALL)
        yield text(unparsed.removeprefix(_CALL.open), Part.TOOL_CALL)
        yield stop("<|eot|>")


def _first_turn(conversation: CheckedConversation) -> int:
    """Return the index of the first message after an optional system message."""
    return int(conversation.role(0) == "system")


PRESETS: Sequence[tuple[str, type[base.Renderer], base.Options]] = (("llama4", Llama4, base.Options()),)

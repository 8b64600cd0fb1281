"""The chat formats of Mistral AI: `[INST]...[/INST]...</s>`.

The presets are named after the versions of Mistral's tokenizers: `mistral_v3` (Mistral 7B v0.3), `mistral_v3_tekken`
(Mistral Nemo), `mistral_v7_tekken` (Mistral Small 3), `mistral_v11` (Mistral Small 3.2), `mistral_v13` (Ministral 3
Instruct) and `mistral_v13_reasoning` (Ministral 3 Reasoning). The reference is the publisher's chat template.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from tinkerloop.errors import RenderError
from tinkerloop.messages import ChatMessage, CheckedConversation, ToolCall
from tinkerloop.renderers import base
from tinkerloop.renderers.appending import RewrittenError
from tinkerloop.renderers.format import REASONING_OF_HISTORY, NoReasoning
from tinkerloop.renderers.normalization import trim_content
from tinkerloop.renderers.parsing.call_syntaxes import read_json
from tinkerloop.renderers.parsing.grammar import Block, Grammar
from tinkerloop.renderers.parsing.parsed import Parsed
from tinkerloop.renderers.pieces import Part, Piece, Pieces, markup, scaffold, stop, text
from tinkerloop.renderers.tool_calls import (
    read_identified_call,
    read_named_call,
    write_identified_call,
    write_listed_calls,
    write_named_call,
)
from tinkerloop.renderers.tool_declarations import declare_for_identified_calls, declare_for_listed_calls

_TURNS = {"system": "SYSTEM_PROMPT", "user": "INST", "tool": "TOOL_RESULTS"}
"""The names in the control tokens around the turns of each role."""
_NAMES = {"name": "the official template does not write names"}
_IDS = {"tool_call_id": "results follow in the order of the calls"}
_REASONING_SYSTEM = (
    "# HOW YOU SHOULD THINK AND ANSWER\n\nFirst draft your thinking process (inner monologue) until you arrive at a "
    "response. Format your response using Markdown, and use LaTeX for any mathematical equations. Write both your "
    "thoughts and the response in the same language as the input.\n\nYour thinking process must follow the template "
    "below:[THINK]Your thoughts or/and draft, like working through an exercise on scratch paper. Be as casual and as "
    "long as you want until you are confident to generate the response to the user.[/THINK]Here, provide a "
    "self-contained response."
)


class MistralV7(NoReasoning, base.Renderer):
    """The chat format of Mistral Small 3: a system message is a turn of its own. There are no tools."""

    family = "mistral_v7_tekken"
    leaves_out = REASONING_OF_HISTORY | _NAMES
    roles = frozenset({"system", "user", "assistant"})
    control = ("<s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")

    def make_grammar(self) -> Grammar:
        return Grammar(("</s>",))

    def header(self, role: str) -> str:
        return f"[{_TURNS[role]}]" if role in _TURNS else ""

    def preamble(self, conversation: CheckedConversation) -> Pieces:
        if conversation.tools and "tool" not in self.roles:
            raise RenderError(
                f"{self.name} cannot declare tools; describe them in a system message and pass no tools, or use "
                "mistral_v11 if the model has its tokens"
            )
        yield scaffold("<s>")

    def message(self, conversation: CheckedConversation, index: int) -> Pieces:
        role = conversation[index].role
        yield scaffold(self.header(role))
        yield from self.result(conversation[index], index) if role == "tool" else self.content(conversation[index])
        yield stop(f"[/{_TURNS[role]}]")

    def result(self, message: ChatMessage, index: int) -> Pieces:
        """Return the pieces of the result of a tool call between its control tokens."""
        return self.content(message)

    def reply(self, conversation: CheckedConversation, index: int) -> Pieces:
        yield from self.content(conversation[index])
        yield from self.calls(conversation[index])
        yield stop("</s>")


class MistralV11(MistralV7):
    """The chat format of Mistral Small 3.2. The last user message declares the tools. Calls and results have ids."""

    family = "mistral_v11"
    roles = base.Renderer.roles
    control = (*MistralV7.control, "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[TOOL_CONTENT]",
               "[/TOOL_RESULTS]")  # fmt: skip

    @property
    def has_extension_property(self) -> bool:
        return False

    def make_grammar(self) -> Grammar:
        call = Block(Part.TOOL_CALL, "[TOOL_CALLS]", "", separators=("[CALL_ID]", "[ARGS]"), reopens=True)
        return Grammar(("</s>",), (call,), read_call=read_identified_call)

    def preamble(self, conversation: CheckedConversation) -> Pieces:
        if conversation.tools and conversation.last_user < 0:
            raise RenderError(
                f"{self.name} declares tools in the last user message, so a conversation with tools must have a user "
                "message"
            )
        return super().preamble(conversation)

    def message(self, conversation: CheckedConversation, index: int) -> Pieces:
        if index == conversation.last_user and conversation.tools:
            yield from self.declarations(conversation)
        yield from super().message(conversation, index)

    def declarations(self, conversation: CheckedConversation) -> Pieces:
        """Return the pieces that declare the tools."""
        return declare_for_identified_calls(conversation.tools)

    def result(self, message: ChatMessage, index: int) -> Pieces:
        yield text(_checked_id(message, index))
        yield scaffold("[TOOL_CONTENT]")
        yield from self.content(message)

    def call(self, call: ToolCall) -> Pieces:
        return write_identified_call(call, "[CALL_ID]", "[ARGS]")

    def following(
        self, conversation: CheckedConversation, index: int, parsed: Parsed, first: int
    ) -> list[tuple[int, Piece]]:
        if conversation.last_user > index and self._moves_text(conversation):
            raise RewrittenError(
                f"with a new user message, the chat format {self.name} would move the tools, or the system message, to "
                "this message"
            )
        return super().following(conversation, index, parsed, first)

    def _moves_text(self, conversation: CheckedConversation) -> bool:
        """Return whether the last user message contains more than its own text."""
        return bool(conversation.tools)


class MistralV3Tekken(MistralV11):
    """The chat format of Mistral Nemo. The last user message also contains the system message. Calls are a JSON list.

    A reply is either text or calls.
    """

    family = "mistral_v3_tekken"
    space: ClassVar[str] = ""
    """The text after a control token."""

    def make_grammar(self) -> Grammar:
        call = Block(Part.TOOL_CALL, "[TOOL_CALLS]", "")
        return Grammar(("</s>",), (call,), text_head=self.space, read_call=lambda fields, tools: read_json(fields[0]))

    def header(self, role: str) -> str:
        return super().header(role) + self.space if role != "assistant" else ""

    def pieces(self, conversation: CheckedConversation) -> list[tuple[int, Piece]]:
        """Return the pieces of all messages, those of the system message within those of the last user message."""
        pieces = super().pieces(conversation)
        if conversation.role(0) != "system" or conversation.last_user < 0:
            return pieces
        system = [(index, piece) for index, piece in pieces if index == 0]
        others = [(index, piece) for index, piece in pieces if index != 0]
        after_header = others.index((conversation.last_user, scaffold(self.header("user")))) + 1
        return [*others[:after_header], *system, *others[after_header:]]

    def message(self, conversation: CheckedConversation, index: int) -> Pieces:
        if conversation.role(index) != "system":
            yield from super().message(conversation, index)
        elif index:
            raise RenderError(
                f"messages[{index}]: {self.name} has no system message after the first message; move its text to the "
                "first message, or give it the role 'user'"
            )
        else:
            is_alone = conversation.last_user < 0
            yield scaffold(self.header("user") if is_alone else "")
            yield from self.content(conversation[index])
            yield stop("[/INST]") if is_alone else scaffold("\n\n")

    def declarations(self, conversation: CheckedConversation) -> Pieces:
        return declare_for_listed_calls(conversation.tools, self.space)

    def result(self, message: ChatMessage, index: int) -> Pieces:
        yield scaffold('{"content": ')
        yield from self.content(message)
        yield scaffold(', "call_id": "')
        yield text(_checked_id(message, index))
        yield scaffold('"}')

    def reply(self, conversation: CheckedConversation, index: int) -> Pieces:
        message = conversation[index]
        if message.tool_calls and message.content:
            raise RenderError(f"messages[{index}]: a {self.name} reply must be either text or tool calls")
        if message.content or not (message.tool_calls or message.unparsed):
            yield markup(self.space, Part.TEXT)
        yield from super().reply(conversation, index)

    def calls(self, message: ChatMessage) -> Pieces:
        if message.tool_calls:
            yield markup("[TOOL_CALLS]" + self.space, Part.TOOL_CALL)
            yield text(write_listed_calls(message.tool_calls), Part.TOOL_CALL)
        yield from super().calls(message._replace(tool_calls=()))

    def _moves_text(self, conversation: CheckedConversation) -> bool:
        return bool(conversation.tools) or conversation.role(0) == "system"


class MistralV3(MistralV3Tekken):
    """The chat format of Mistral 7B v0.3, with a space after control tokens. The text of replies is trimmed."""

    family = "mistral_v3"
    space = " "

    def normalize(self, message: ChatMessage) -> ChatMessage:
        return trim_content(message) if message.role == "assistant" else message


class MistralV13(MistralV7):
    """The chat format of Ministral 3 Instruct. Tools are declared at the start. Calls and results have no ids."""

    family = "mistral_v13"
    leaves_out = REASONING_OF_HISTORY | _NAMES | _IDS
    roles = base.Renderer.roles
    control = (*MistralV7.control, "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]")
    default_system: ClassVar[str] = ""
    """The system message of conversations without one; empty: none."""

    def make_grammar(self) -> Grammar:
        call = Block(Part.TOOL_CALL, "[TOOL_CALLS]", "", separators=("[ARGS]",), reopens=True)
        return Grammar(("</s>",), (call,), read_call=read_named_call)

    def preamble(self, conversation: CheckedConversation) -> Pieces:
        yield scaffold("<s>")
        if conversation.role(0) != "system":
            yield scaffold(f"[SYSTEM_PROMPT]{self.default_system}[/SYSTEM_PROMPT]" if self.default_system else "")
            yield from declare_for_identified_calls(conversation.tools)

    def message(self, conversation: CheckedConversation, index: int) -> Pieces:
        yield from super().message(conversation, index)
        if index == 0 and conversation.role(0) == "system":
            yield from declare_for_identified_calls(conversation.tools)

    def call(self, call: ToolCall) -> Pieces:
        return write_named_call(call.function.name, "[ARGS]", call)


class MistralV13Reasoning(MistralV13):
    """The chat format of Ministral 3 Reasoning: `[THINK]...[/THINK]...</s>`. History keeps all reasoning."""

    family = "mistral_v13_reasoning"
    leaves_out = _NAMES | _IDS
    default_system = _REASONING_SYSTEM

    @property
    def disables_reasoning(self) -> bool:
        return False

    def make_grammar(self) -> Grammar:
        calls = super().make_grammar()
        reasoning = Block(Part.REASONING, "[THINK]", "[/THINK]")
        return Grammar(calls.stops, (reasoning, *calls.blocks), read_call=calls.read_call)

    def reply(self, conversation: CheckedConversation, index: int) -> Pieces:
        if reasoning := conversation[index].reasoning:
            yield markup("[THINK]", Part.REASONING)
            yield text(reasoning, Part.REASONING)
            yield markup("[/THINK]", Part.REASONING)
        yield from super().reply(conversation, index)


def _checked_id(message: ChatMessage, index: int) -> str:
    """Return the id of the call that a tool result answers.

    Raises:
        RenderError: the result has no id.
    """
    if not message.tool_call_id:
        raise RenderError(
            f"messages[{index}]: this tool result has no 'tool_call_id', which the chat format writes; set it to the "
            "id of the call"
        )
    return message.tool_call_id


PRESETS: Sequence[tuple[str, type[base.Renderer], base.Options]] = (
    ("mistral_v3", MistralV3, base.Options()),
    ("mistral_v3_tekken", MistralV3Tekken, base.Options()),
    ("mistral_v7_tekken", MistralV7, base.Options()),
    ("mistral_v11", MistralV11, base.Options()),
    ("mistral_v13", MistralV13, base.Options()),
    ("mistral_v13_reasoning", MistralV13Reasoning, base.Options()),
)

"""Convert a conversation to the variables of a chat template, in the form that the template expects.

Templates differ in three points: whether they read the arguments of calls as dictionaries or as JSON text, whether they
recognise a reply with calls by `content` being None, and where they read reasoning. The renderer `template` finds out
the form by trying: a form is right if the template writes the whole message with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tinkerloop.errors import RenderError
from tinkerloop.messages import ChatMessage, CheckedConversation, Image, ToolCall
from tinkerloop.renderers.marked_text import Slot, from_slot, own, runs_of
from tinkerloop.renderers.pieces import Part
from tinkerloop.renderers.tool_arguments import arguments_of, is_object
from tinkerloop.renderers.tool_calls import name_in_id

_REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
"""The names under which chat templates read reasoning; transformers passes it under all of them, too."""

Reasoning = Literal["fields", "part", "inline"]


@dataclass(frozen=True)
class MessageForm:
    """The form of the messages that a template gets."""

    reasoning: Reasoning = "fields"
    """Where reasoning is: in fields of the message, in a part `{"type": "thinking"}` of the content, or in tags at the
    start of the text."""
    opening: str = "<think>\n"
    """The opening tag of inline reasoning, with the newline after it, if any."""
    writes_empty: bool = False
    """True if empty reasoning is written into the content too, because the prompt opens the reasoning of each reply."""
    arguments_are_text: bool = False
    """True if the arguments of calls are JSON text, False if they are dictionaries."""
    empty_is_none: bool = False
    """True if the content of a reply with calls is None, not an empty text, if the reply has no text."""
    tags: tuple[str, ...] | None = None
    """The control tokens (such as `<tool_call>`) that can be in an unparsed call, which is written at the end of the
    text; None: the template cannot write unparsed calls."""


CALL_FORMS = ((False, False), (True, False), (False, True), (True, True))
"""The values of `arguments_are_text` and `empty_is_none`, in the order in which they are tried."""
CALL_IDS = ("call00001", "functions.look_up:0")
"""Ids for example calls: nine letters and digits, as Mistral's templates require, and the form of Kimi's ids."""


class Marking:
    """Functions that mark the strings of a conversation with their origin, and the list of their slots."""

    def __init__(self) -> None:
        self.slots: list[Slot] = []
        self.literal: Callable[[str], str] = own

    def show(self, value: Any, message: int, part: Part, required: bool = False, named_in: Any = None) -> Any:
        """Return a value in which each string is marked as a string of this message."""
        if isinstance(value, str):
            origin = runs_of(named_in)[0].origin if named_in else None
            self.slots.append(Slot(value, message, part, required, origin))
            return from_slot(self.slots[-1])
        if isinstance(value, Mapping):
            shown = [(self.show(k, message, part, required), v) for k, v in value.items()]
            return {key: self.show(v, message, part, required) for key, v in shown}
        if isinstance(value, (list, tuple)):
            return [self.show(v, message, part, required) for v in value]
        return value


class NoMarking(Marking):
    """Like `Marking`, but all strings stay as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.literal = str

    def show(self, value: Any, message: int, part: Part, required: bool = False, named_in: Any = None) -> Any:
        """Return the value."""
        return value


def messages_of(conversation: CheckedConversation, form: MessageForm, marking: Marking) -> list[dict[str, Any]]:
    """Return the messages in the form that the template expects.

    Raises:
        RenderError: a message has an image or an unparsed call.
    """
    return [dict(_fields(conversation, i, form, marking)) for i in range(len(conversation))]


def tools_of(conversation: CheckedConversation, marking: Marking) -> list[dict[str, Any]]:
    """Return the declared tools as in OpenAI's API."""
    show = marking.show
    return [
        {"type": "function", "function": {k: show(v, -1, Part.SCAFFOLD, k == "name") for k, v in tool.items()}}
        for tool in conversation.tools
    ]


def _fields(
    conversation: CheckedConversation, i: int, form: MessageForm, marking: Marking
) -> Iterator[tuple[str, Any]]:
    message = conversation[i]
    if any(isinstance(part, Image) for part in message.content):
        raise RenderError(
            f"messages[{i}]: the renderer 'template' has no images; use the renderer for this model family"
        )
    if message.unparsed and form.tags is None:
        raise RenderError(f"messages[{i}]: the renderer 'template' cannot write an unparsed tool call; remove the call")
    yield "role", message.role
    yield from _content(message, i, conversation.is_final(i), form, marking)
    if message.tool_calls:
        yield "tool_calls", [_call(call, i, form, marking) for call in message.tool_calls]
    for key in ("tool_call_id", "name"):
        if getattr(message, key) is not None:
            yield key, marking.show(getattr(message, key), i, Part.SCAFFOLD)


def _content(
    message: ChatMessage, i: int, is_final: bool, form: MessageForm, marking: Marking
) -> Iterator[tuple[str, Any]]:
    reasoning = None
    if message.reasoning or (message.reasoning == "" and (form.reasoning == "fields" or form.writes_empty)):
        reasoning = marking.show(message.reasoning, i, Part.REASONING, is_final)
    if form.empty_is_none and message.tool_calls and not message.text and not message.unparsed:
        content = None
    else:
        content = marking.show(message.text, i, Part.TEXT, True)
        for call in message.unparsed:
            content = content + _as_sampled(call.raw_text, i, form.tags or (), marking)
    if reasoning is None or form.reasoning == "fields":
        yield "content", content
        if reasoning is not None:
            yield from ((name, reasoning) for name in _REASONING_FIELDS)
    elif form.reasoning == "part":
        parts = [{"type": "thinking", "thinking": reasoning}]
        yield "content", [*parts, {"type": "text", "text": content}] if content else parts
    else:
        newline = "\n" if form.opening.endswith("\n") else ""
        closing = f"{newline}</think>{2 * newline if content else ''}"
        yield "content", marking.literal(form.opening) + reasoning + marking.literal(closing) + (content or "")


def _as_sampled(raw_text: str, i: int, tags: Sequence[str], marking: Marking) -> str:
    """Return an unparsed call, in which the tags are the template's own, as they were sampled."""
    pattern = "|".join(map(re.escape, sorted(tags, key=len, reverse=True)))
    texts = re.split(f"({pattern})", raw_text) if tags else [raw_text]  # texts and tags in turn
    shown = [marking.literal(x) if n % 2 else marking.show(x, i, Part.TOOL_CALL, True) for n, x in enumerate(texts)]
    return marking.literal("").join(shown)


def _call(call: ToolCall, i: int, form: MessageForm, marking: Marking) -> dict[str, Any]:
    name, call_id = call.function.name, marking.show(call.id, i, Part.TOOL_CALL)
    is_named = call.id is not None and call.id.startswith("functions.") and name_in_id(call.id) == name
    arguments: Any = call.function.arguments
    if not form.arguments_are_text and is_object(arguments):
        arguments = arguments_of(call)
    function = {
        "name": marking.show(name, i, Part.TOOL_CALL, True, call_id if is_named else None),
        "arguments": marking.show(arguments, i, Part.TOOL_CALL, True),
    }
    return {"type": "function", "id": call_id, "function": function}

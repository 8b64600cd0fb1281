"""Check that a chat format writes everything that a conversation contains.

A chat format is a class with methods that return pieces. A method that forgets a part of a message, such as reasoning
or a tool call, would lose this part silently. Therefore the pieces are compared with the conversation: every part must
be in them. `Format.leaves_out` names the few parts that a format leaves out on purpose, each with the reason.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tinkerloop.errors import RenderError
from tinkerloop.messages import ChatMessage, CheckedConversation, Image, ToolCall
from tinkerloop.renderers.pieces import Part, Piece


def check_all_is_written(
    conversation: CheckedConversation,
    pieces: Sequence[tuple[int, Piece]],
    *,
    format_name: str,
    leaves_out: Mapping[str, str],
    first: int = 0,
) -> None:
    """Check that the pieces contain every part of the messages and every declared tool.

    Args:
        pieces: (message index, piece) pairs.
        leaves_out: the parts that the format leaves out on purpose.
        first: the index of the first message to check. Declared tools are checked only if it is 0.

    Raises:
        RenderError: a part is not in the pieces, or tool results whose ids are left out are not in the order of their
            calls.
    """
    # A format passes nearly all texts on as they are, so most messages need no more than a look at their own text.
    passed_on = {(index, id(piece.text)) for index, piece in pieces}
    of_message: dict[int, list[Piece]] = {}
    for i in range(first, len(conversation)):
        message = conversation[i]
        if message[2:7] == _ONLY_CONTENT and len(message.content) == 1 and (i, id(message.content[0])) in passed_on:
            continue
        of_message = of_message or _by_message(pieces)
        is_earlier_reply = message.role == "assistant" and (conversation.prompting or not conversation.is_final(i))
        allowed = leaves_out if is_earlier_reply else leaves_out.keys() - {"reasoning", "text"}
        for lost in _lost_parts(message, of_message.get(i, []), allowed):
            raise RenderError(
                f"messages[{i}]: the chat format {format_name} does not write its {lost}, which would be lost; remove "
                "it, use another format, or write it in the methods of the format"
            )
    if "tool_call_id" in leaves_out:
        check_order_of_results(conversation, format_name)
    if conversation.tools and not first:
        written = "".join(piece.text for _, piece in pieces if piece.part is Part.SCAFFOLD)
        for tool in conversation.tools:
            if not _is_in(tool["name"], written):
                raise RenderError(
                    f"the chat format {format_name} does not declare the tool {tool['name']!r}, which would be lost; "
                    "remove the tools, use another format, or declare them in `preamble`"
                )
            properties = (tool.get("parameters") or {}).get("properties") or {}
            if lost := sorted(key for key in {*properties, *tool} - _OF_A_TOOL if not _is_in(key, written)):
                raise RenderError(
                    f"the chat format {format_name} does not write {', '.join(map(repr, lost))} of the tool "
                    f"{tool['name']!r}, which would be lost; remove it, or write it in the description"
                )


_OF_A_TOOL = frozenset({"name", "description", "parameters", "strict"})
"""The keys of a tool that need not be written by name. `strict` is for the server of an API, not for the model."""
_ONLY_CONTENT = ChatMessage("user", ())[2:7]
"""The fields `reasoning` to `name` of a message that has nothing but a content."""


def _by_message(pieces: Sequence[tuple[int, Piece]]) -> dict[int, list[Piece]]:
    of_message: dict[int, list[Piece]] = defaultdict(list)
    for index, piece in pieces:
        of_message[index].append(piece)
    return of_message


def _lost_parts(message: ChatMessage, pieces: Sequence[Piece], allowed: Any) -> Iterator[str]:
    """Yield the names of the parts of a message that are not in its pieces."""
    if any(piece.text is part for part in message.content for piece in pieces) and len(message.content) == 1:
        written = ""
    else:
        written = "".join(piece.text for piece in pieces)
        if "text" not in allowed and not all(_is_in(part.strip(), written) for part in _texts(message)):
            yield "text"
        images = sum(isinstance(part, Image) for part in message.content)
        if sum(piece.image is not None for piece in pieces) != images:
            yield "images"
    if message.reasoning and "reasoning" not in allowed:
        reasoning = "".join(piece.text for piece in pieces if piece.part is Part.REASONING)
        if message.reasoning.strip() not in reasoning:
            yield "reasoning"
    if message.tool_calls or message.unparsed:
        calls = "".join(piece.text for piece in pieces if piece.part is Part.TOOL_CALL)
        names = [call.function.name for call in message.tool_calls]
        if not all(calls.count(name) >= names.count(name) for name in names):
            yield "tool calls"
        if not all(_has_arguments(call, calls) for call in message.tool_calls):
            yield "tool call's arguments"
        if not all(call.raw_text.strip() in calls for call in message.unparsed):
            yield "unparsed tool calls"
    for key in ("name", "tool_call_id"):
        value = getattr(message, key)
        if value and key not in allowed and not _is_in(value, written or "".join(piece.text for piece in pieces)):
            yield f"{key!r}"


def _texts(message: ChatMessage) -> Iterator[str]:
    return (part for part in message.content if isinstance(part, str))


def _has_arguments(call: ToolCall, written: str) -> bool:
    """Return whether the arguments are in the text, as they are or with each key and value written separately."""
    return call.function.arguments in written or all(
        _is_in(value, written) for value in _values(json.loads(call.function.arguments))
    )


def _values(value: Any) -> Iterator[str]:
    """Yield all keys and all values without parts, as text."""
    if isinstance(value, dict):
        for key, inside in value.items():
            yield key
            yield from _values(inside)
    elif isinstance(value, list):
        for inside in value:
            yield from _values(inside)
    elif isinstance(value, str):
        yield value
    elif not isinstance(value, (bool, type(None))):  # formats spell these as `true` or `True`
        yield json.dumps(value)


def _is_in(value: str, written: str) -> bool:
    """Return whether a text is in another one, as it is or escaped as in JSON."""
    return (
        value in written or json.dumps(value, ensure_ascii=False)[1:-1] in written or json.dumps(value)[1:-1] in written
    )


def check_order_of_results(conversation: CheckedConversation, format_name: str) -> None:
    """Raise `RenderError` unless the n-th result after a reply answers its n-th call, as a model must read it.

    The id of a result tells which call it answers. The results of unparsed calls, which have no id, come last.
    """
    ids: list[str | None] = []
    count = number = 0
    for i, message in enumerate(conversation.messages):
        if message.role == "assistant":
            ids = [call.id for call in message.tool_calls]
            count, number = len(ids) + len(message.unparsed), 0
        elif message.role == "tool" and count:
            expected = ids[number] if number < len(ids) else None
            given = message.tool_call_id
            answers_another = given is not None and given != expected and (expected is not None or given in ids)
            if number >= count or answers_another:
                raise RenderError(
                    f"messages[{i}]: this tool result is not in the order of the calls. The chat format {format_name} "
                    "writes no ids, so the result would answer another call; write one result for each call, in the "
                    "order of the calls"
                )
            number += 1

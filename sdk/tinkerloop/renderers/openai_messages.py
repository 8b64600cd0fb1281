"""Conversion of messages to and from the shape of OpenAI's API, which servers and data sets use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tinkerloop.errors import RenderError
from tinkerloop.message_checks import read_message
from tinkerloop.messages import ChatMessage, ContentPart, Image, ImagePart, Message, TextPart, ThinkingPart


def to_openai_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message in the shape of OpenAI's API, as a JSON-serializable dictionary.

    Reasoning is under `reasoning_content`, and the arguments of tool calls are JSON text. For example, an assistant
    message with the content `[{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "4"}]` becomes
    `{"role": "assistant", "content": "4", "reasoning_content": "hm"}`. `unparsed_tool_calls`, `trainable` and `weight`
    are not part of OpenAI's shape; they keep their names.

    Raises:
        RenderError: the message has the wrong shape, or an image is not given as a URL or a data URI.
    """
    read = read_message(message)
    content: Any = read.text if read.is_text else [_openai_part(part) for part in read.content]
    written = {"role": read.role, "content": content} | _extras(read)
    if read.reasoning is not None:
        written["reasoning_content"] = read.reasoning
    if read.tool_calls:
        written["tool_calls"] = [
            {"type": call.type, "function": call.function._asdict()} | ({"id": call.id} if call.id is not None else {})
            for call in read.tool_calls
        ]
    if read.unparsed:
        written["unparsed_tool_calls"] = [{"raw_text": call.raw_text, "error": call.error} for call in read.unparsed]
    return written


def from_openai_message(message: Mapping[str, Any]) -> Message:
    """Return a message of OpenAI's API in the shape that `parse_response` returns.

    Reasoning becomes a thinking part, and tool calls become `ToolCall` objects. Inverse of `to_openai_message`.

    Raises:
        RenderError: the message has the wrong shape.
    """
    read = read_message(message)
    parts: list[ContentPart] = (
        [] if read.reasoning is None else [ThinkingPart(type="thinking", thinking=read.reasoning)]
    )
    for part in read.content:
        if isinstance(part, str):
            parts.append(TextPart(type="text", text=part))
        else:
            parts.append(ImagePart(type="image", image=part.source))
    plain = read.reasoning is None and read.is_text
    written = Message(role=read.role, content=read.text if plain else parts) | _extras(read)
    if read.tool_calls:
        written["tool_calls"] = list(read.tool_calls)
    if read.unparsed:
        written["unparsed_tool_calls"] = list(read.unparsed)
    return written


def _extras(read: ChatMessage) -> Any:
    """Return the given fields that have the same form in both shapes."""
    given = {"tool_call_id": read.tool_call_id, "name": read.name, "trainable": read.trainable}
    if read.weight != 1.0:
        given["weight"] = read.weight
    return {key: value for key, value in given.items() if value is not None}


def _openai_part(part: str | Image) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part.source, str) or not part.source.startswith(("http://", "https://", "data:")):
        raise RenderError(
            f"an OpenAI message needs each image as a URL or a data URI, got {type(part.source).__name__}; convert it"
        )
    return {"type": "image_url", "image_url": {"url": part.source}}

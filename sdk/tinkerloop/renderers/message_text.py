"""The text of messages, under the names that scripts of the Tinker Cookbook import."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from tinkerloop.errors import RenderError
from tinkerloop.messages import Content
from tinkerloop.renderers.parsing.parsed import ParseTermination


def get_text_content(message: Mapping[str, Any]) -> str:
    """Return the text of a message without its reasoning, tool calls and images.

    >>> parts = [{"type": "thinking", "thinking": "2 + 2"}, {"type": "text", "text": "4"}]
    >>> get_text_content({"role": "assistant", "content": parts})
    '4'
    """
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")


def ensure_text(content: Content) -> str:
    """Return the content of a message as text.

    Raises:
        RenderError: the content has several parts, or one that is not text.
    """
    if isinstance(content, str):
        return content
    if len(content) == 1 and content[0]["type"] == "text":
        return content[0]["text"]
    kinds = [part["type"] for part in content]
    raise RenderError(f"expected text, or one part of type 'text', got parts of the types {kinds}")


def format_content_as_string(content: Content, separator: str = "\n") -> str:
    """Return all parts of a content as text for people to read, joined with `separator`.

    Reasoning is written in `<think>` tags, and an image in `<image>` tags, as its path or URL, or as its size. The
    result cannot be parsed back: to get tokens, use a renderer.

    Raises:
        RenderError: a part has an unknown type.
    """
    if isinstance(content, str):
        return content
    return separator.join(map(_part_as_string, content))


def _part_as_string(part: Any) -> str:
    kind = part["type"]
    if kind == "text":
        return part["text"]
    if kind == "thinking":
        return f"<think>{part['thinking']}</think>"
    if kind == "image":
        image = part["image"]
        if isinstance(image, str):
            return f"<image>{image}</image>"
        size = getattr(image, "size", None)
        named = f"{size[0]}x{size[1]}" if isinstance(size, tuple) else type(image).__name__
        return f"<image>Image({named})</image>"
    raise RenderError(f"expected a part of type 'text', 'thinking' or 'image', got {kind!r}")


class ParseFailureKind(StrEnum):
    """Kinds of failure in a sampled reply, returned by `classify_parse_failure`."""

    STRUCTURAL = "structural"
    """The reply did not end cleanly, so the conversation cannot continue after it."""
    CONTENT = "content"
    """The reply ended cleanly, but a tool call in it could not be parsed. The model can be asked to try again."""


def classify_parse_failure(
    message: Mapping[str, Any], termination: ParseTermination
) -> tuple[ParseFailureKind, str] | None:
    """Return the kind of failure of a parsed reply and its description, or None if there is no failure.

    Args:
        message: the message that `parse_response` returned.
        termination: the termination that `parse_response` returned.
    """
    if not termination.is_clean:
        return ParseFailureKind.STRUCTURAL, f"the reply did not end cleanly, its termination is {termination.value!r}"
    if unparsed := message.get("unparsed_tool_calls"):
        return ParseFailureKind.CONTENT, "\n".join(call.error for call in unparsed)
    return None

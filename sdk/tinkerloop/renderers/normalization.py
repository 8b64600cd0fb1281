"""Changes that official chat templates make to a message before they write it.

Renderers call these functions in `Format.normalize`.
"""

from __future__ import annotations

from tinkerloop.messages import ChatMessage

WHITESPACE = " \t\n\r\x0b\x0c"
"""The characters that formats remove which trim all white space."""


def extract_inline_reasoning(message: ChatMessage, trim: str = "\n") -> ChatMessage:
    """Move inline reasoning from the text of an assistant message to `reasoning`, if it can be identified safely.

    For example, `"<think>\\nhm\\n</think>\\n\\n4"` becomes reasoning `"hm"` and text `"4"`.

    The text must have exactly one `</think>`. It may have one `<think>`, but only at its start. A message with any
    other text is returned unchanged; the official templates would drop a part of that text.

    Args:
        trim: characters that the format's template removes next to the tags.
    """
    if message.role != "assistant" or message.reasoning is not None or len(message.content) != 1:
        return message
    content = message.text
    if content.count("</think>") != 1:
        return message
    inside, _, answer = content.partition("</think>")
    reasoning = inside.lstrip().removeprefix("<think>")
    if "<think>" in reasoning or "<think>" in answer or ("<think>" in inside and inside.lstrip() == reasoning):
        return message
    if "<think>" not in inside:
        reasoning = inside
    return message.with_text(answer.lstrip(trim))._replace(reasoning=reasoning.strip(trim))


def trim_content(message: ChatMessage) -> ChatMessage:
    """Return the message without white space at the start and at the end of its content."""
    content = list(message.content)
    if content and isinstance(content[0], str):
        content[0] = content[0].lstrip()
    if content and isinstance(content[-1], str):
        content[-1] = content[-1].rstrip()
    return message._replace(content=tuple(part for part in content if part != ""))

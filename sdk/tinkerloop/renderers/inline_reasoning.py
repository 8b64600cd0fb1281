"""Reasoning written inline, `<think>...</think>` at the start of an assistant's text, made a part of its own.

This happens to messages, before anything is rendered, and only in families whose official template does it.
"""

from __future__ import annotations

from tinkerloop.messages import ChatMessage


def lift_thinking(message: ChatMessage, trim: str = "\n") -> ChatMessage:
    """The message with its inline reasoning as `reasoning`, where that is unambiguous; else the message as it is.

    `trim` are the characters that the family's template takes off around the tags.

    Unambiguous: one `</think>`, and the only `<think>` before it, if any, begins the text. Templates also cut text that
    has several tags or words before the first, and lose what they cut; such text stays as it is here.
    """
    if message.role != "assistant" or message.reasoning is not None or len(message.content) != 1:
        return message
    content = message.text
    if content.count("</think>") != 1:
        return message
    inside, _, rest = content.partition("</think>")
    opened = inside.lstrip().removeprefix("<think>")
    if "<think>" in opened or "<think>" in rest or ("<think>" in inside and inside.lstrip() == opened):
        return message
    if "<think>" in inside:
        inside = opened
    return message.with_text(rest.lstrip(trim))._replace(reasoning=inside.strip(trim))

"""Changes that official templates make to a message before they write it; families call them in `Format.normalize`."""

from __future__ import annotations

from tinkerloop.messages import ChatMessage


def extract_inline_reasoning(message: ChatMessage, trim: str = "\n") -> ChatMessage:
    """Move reasoning that is written inline in an assistant's text to `reasoning`, where it is unambiguous.

    `"<think>\\nhm\\n</think>\\n\\n4"` becomes reasoning `"hm"` and text `"4"`.

    It is unambiguous if the text has one `</think>` and, before it, nothing but at most one `<think>` at the start of
    the text. From other text the templates cut a part, which is lost; such a message is returned unchanged.

    Args:
        trim: characters that the family's template removes around the tags.
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
    """Return the message without white space at both ends of its content."""
    content = list(message.content)
    if content and isinstance(content[0], str):
        content[0] = content[0].lstrip()
    if content and isinstance(content[-1], str):
        content[-1] = content[-1].rstrip()
    return message._replace(content=tuple(part for part in content if part != ""))

"""A conversation as HTML, for notebooks. Replies that are trained by default are shaded; text is escaped."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tinkerloop.renderers.message_text import format_content_as_string
from tinkerloop.renderers.token_html import text_html


def conversation_html(messages: Sequence[Mapping[str, Any]], tools: Any, path: str | None, line: int | None) -> str:
    """Return a conversation as HTML: its place in the data, then one line for the tools and one for each message.

    A page that shows it needs `TOKEN_STYLE`.
    """
    lines = [_line("tools", json.dumps(tools, ensure_ascii=False), False)] if tools else []
    lines += [_line(message["role"], _text(message), _is_trained(message)) for message in messages]
    place = "" if path is None else f"<p>{text_html(f'{path}:{line}')}</p>"
    return f'{place}<pre class="tinkerloop">{"".join(lines)}</pre>'


def _line(role: str, text: str, is_trained: bool) -> str:
    css = "trained" if is_trained else ""
    return f'<div><b>{text_html(role)}</b> <span class="{css}">{text_html(text)}</span></div>'


def _text(message: Mapping[str, Any]) -> str:
    """Return the content of a message, and its other keys as JSON."""
    rest = {key: value for key, value in message.items() if key not in ("role", "content")}
    content = format_content_as_string(message.get("content") or "")
    return content + (f"\n{json.dumps(rest, ensure_ascii=False, default=str)}" if rest else "")


def _is_trained(message: Mapping[str, Any]) -> bool:
    is_chosen = message.get("trainable", message["role"] == "assistant")
    return bool(is_chosen and message.get("weight", 1))

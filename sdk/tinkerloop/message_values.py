"""Checks of single values in messages, tool calls and declarations, and the error that they raise."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from tinkerloop.errors import RenderError


class MessageError(RenderError):
    """Error for a message or a tool declaration of the wrong shape.

    The error text gives the place, such as `messages[2]`, the problem and, where known, what to do.
    """

    def __init__(self, problem: str, *, place: str = "", remedy: str | None = None):
        self.problem, self.place, self.remedy = problem, place, remedy
        super().__init__(f"{place}{': ' if place else ''}{problem}{f'; {remedy}' if remedy else ''}")


def message_error(index: int, problem: str, remedy: str | None = None) -> MessageError:
    """Return the error for the message with this index."""
    return MessageError(problem, place=f"messages[{index}]", remedy=remedy)


def is_empty(value: Any) -> bool:
    """Return whether a value is null, "", [] or {}. Such a value counts as absent: tables have it in unused columns."""
    return value is None or (isinstance(value, (str, list, tuple, dict)) and not value)


def is_listlike(value: Any) -> bool:
    """Return whether a value has items and is neither a text nor a mapping."""
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping))


def checked_string(mapping: Mapping[str, Any], key: str, index: int) -> str | None:
    """Return the string under a key, or None if there is none. Raise `MessageError` for another value."""
    value = mapping.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise message_error(index, f"'{key}' must be a string, got {value!r}")
    return checked_unicode(value, index)


def refuse_other_keys(given: Mapping[str, Any], known: Collection[str], place: str, index: int) -> None:
    """Raise `MessageError` for a key that is not known and whose value is not empty."""
    if unknown := sorted(str(key) for key in given if key not in known and not is_empty(given[key])):
        remedy = f"remove them; known keys: {', '.join(sorted(known))}"
        raise message_error(index, f"{place}{' has ' if place else ''}unknown keys {', '.join(unknown)}", remedy)


def checked_unicode(text: str, index: int) -> str:
    """Return a text unchanged. Raise `MessageError` if it is not valid Unicode."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise message_error(
            index,
            f"the text is not valid Unicode: unpaired surrogate at character {error.start}",
            "repair the text, which was probably cut inside a character or escaped twice",
        ) from None
    return text

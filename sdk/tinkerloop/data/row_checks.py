"""Check that a row can be used as training data.

`tinkerloop.message_checks` checks the shape of each message, also for renderers. This module adds the checks that only
training data needs.

>>> check_messages([{"role": "user", "content": "hi", "name": None}, {"role": "assistant", "content": "hello"}])
[{'role': 'user', 'content': 'hi'}, {'role': 'assistant', 'content': 'hello'}]
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from tinkerloop.errors import DataError
from tinkerloop.message_checks import read_conversation
from tinkerloop.message_values import MessageError
from tinkerloop.messages import ChatMessage
from tinkerloop.tool_checks import read_tools

ROLES = ("system", "developer", "user", "assistant", "tool")
"""The roles that a message of a row may have."""

_FOREIGN_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "function": "tool"}


def check_messages(messages: Any, *, train: bool = True) -> list[dict[str, Any]]:
    """Check that the messages of one row can be used as training data.

    In addition to the shape of each message, which renderers check too, three things are required. Each role must be
    known. The content must not be empty, except in a tool's result or beside tool calls. The result of a tool call must
    follow the call that it answers.

    Args:
        messages: a list of messages.
        train: True if there must be at least one assistant message.

    Returns:
        The messages as new dictionaries, without the keys whose value is null.

    Raises:
        DataError: the messages cannot be trained on. The error gives the index of the message, the problem and a
            remedy.
    """
    return check_conversation(messages, None, train=train)[0]


def check_tools(tools: Any) -> list[dict[str, Any]] | None:
    """Check the tool declarations of one row.

    Args:
        tools: a list of declarations, or None.

    Returns:
        The declarations, unchanged; None if there are none.

    Raises:
        DataError: `tools` is not a list, or a declaration has no name or has parameters that are not a JSON schema.
    """
    try:
        return list(tools) if read_tools(tools) else None
    except MessageError as error:
        raise as_data_error(error) from error


def check_conversation(
    messages: Any, tools: Any, *, train: bool = True
) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """Check the messages with `check_messages` and the tool declarations with `check_tools`; return both.

    Raises:
        DataError: a check fails, or tools are declared both by the row and by one of its messages.
    """
    declared = check_tools(tools)
    if not isinstance(messages, list | tuple) or not messages:
        given = "an empty list" if isinstance(messages, list | tuple) else f"a {type(messages).__name__}"
        raise DataError(f"messages must be a list of at least one message, got {given}")
    rows = [_without_nulls(message) for message in messages]
    for index, row in enumerate(rows):
        if isinstance(row, dict):
            _check_role(row, index)
    try:
        checked = read_conversation(rows, declared).messages
    except MessageError as error:
        raise as_data_error(error) from error
    call_ids: set[str] = set()
    for index, (row, message) in enumerate(zip(rows, checked, strict=True)):
        _check_content(message, index)
        if message.role == "tool" and call_ids and message.tool_call_id not in (None, *call_ids):
            raise DataError(
                f"messages[{index}]: no earlier message has the tool call {message.tool_call_id!r}, which it answers",
                remedy="correct tool_call_id, or add the call to the assistant message before it",
            )
        call_ids.update(call.id for call in message.tool_calls if call.id is not None)
        row.setdefault("content", "")
        if not message.tool_calls:
            row.pop("tool_calls", None)
    if train and not any(message.role == "assistant" for message in checked):
        roles = ", ".join(dict.fromkeys(message.role for message in checked))
        raise DataError(
            f"there is no assistant message, so there is nothing to train on (roles: {roles})",
            remedy="add the reply that the model should learn, or remove the row",
        )
    return rows, declared


def as_data_error(error: MessageError) -> DataError:
    """Convert a MessageError to a DataError. The caller adds the file and the line, if they are known."""
    return DataError(f"{error.place}{': ' if error.place else ''}{error.problem}", remedy=error.remedy)


def nearest(value: str, known: Sequence[str]) -> str | None:
    """Return the name in `known` that is most similar to `value`, or None if none is similar."""
    return next(iter(difflib.get_close_matches(value, known, n=1)), None)


def _without_nulls(message: Any) -> Any:
    if not isinstance(message, Mapping):
        return message
    return {key: value for key, value in message.items() if value is not None}


def _check_role(message: Mapping[str, Any], index: int) -> None:
    role = message.get("role")
    if role in ROLES:
        return
    if role is None:
        hint = "ShareGPT rows need adapter='sharegpt'" if "from" in message else f"known roles: {', '.join(ROLES)}"
        raise DataError(
            f"messages[{index}]: the message has no role, only the keys {sorted(map(str, message))}", remedy=hint
        )
    name = str(role).lower()
    likely = _FOREIGN_ROLES.get(name) or nearest(name, ROLES)
    did_you_mean = f"did you mean {likely!r}? " if likely else ""
    raise DataError(
        f"messages[{index}]: unknown role {role!r}", remedy=f"{did_you_mean}known roles: {', '.join(ROLES)}"
    )


def _check_content(message: ChatMessage, index: int) -> None:
    may_be_empty = message.role == "tool" or message.tool_calls or message.unparsed
    if not may_be_empty and message.is_text and not message.text.strip():
        raise DataError(
            f"messages[{index}]: the {message.role} message has empty content",
            remedy="add content to the message, or remove the message",
        )

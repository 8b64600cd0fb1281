"""Checks of a row as training data. `tinkerloop.message_checks` checks the shape of its messages, as in renderers.

>>> check_messages([{"role": "user", "content": "hi", "name": None}, {"role": "assistant", "content": "hello"}])
[{'role': 'user', 'content': 'hi'}, {'role': 'assistant', 'content': 'hello'}]
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from tinkerloop.errors import DataError
from tinkerloop.message_checks import MessageError, read_conversation, read_tools
from tinkerloop.messages import ChatMessage

ROLES = ("system", "developer", "user", "assistant", "tool")

_FOREIGN_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "function": "tool"}


def check_messages(messages: Any, *, train: bool = True) -> list[dict[str, Any]]:
    """Check the messages of one row.

    Beside the shape of each message, which every renderer checks too, a row needs known roles, content that is not
    empty (a tool's result and a message with tool calls may have none), and results of calls that were made.

    Args:
        messages: a list of messages.
        train: True if the messages must include one of the assistant.

    Returns:
        The messages as new dictionaries, without the keys whose value is null.

    Raises:
        DataError: the messages cannot be trained on; the error names the message, the problem and the remedy.
    """
    return check_conversation(messages, None, train=train)[0]


def check_tools(tools: Any) -> list[dict[str, Any]] | None:
    """Check the tool declarations of one row.

    Args:
        tools: a list of declarations, or None.

    Returns:
        The declarations as they were given; None if there are none.

    Raises:
        DataError: not a list, or a declaration without a name or with parameters that are no JSON schema.
    """
    try:
        return list(tools) if read_tools(tools) else None
    except MessageError as error:
        raise as_data_error(error) from error


def check_conversation(
    messages: Any, tools: Any, *, train: bool = True
) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """Check the messages and the tool declarations of one row, as `check_messages` and `check_tools` do.

    Raises:
        DataError: also if both the row and a message declare tools.
    """
    declared = check_tools(tools)
    if not isinstance(messages, list | tuple) or not messages:
        given = "an empty list" if isinstance(messages, list | tuple) else f"a {type(messages).__name__}"
        raise DataError(f"messages must be a list of messages, this is {given}")
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
                f"messages[{index}]: answers the tool call {message.tool_call_id!r}, which was never made",
                remedy="correct tool_call_id, or add the call to the assistant message before it",
            )
        call_ids.update(call.id for call in message.tool_calls if call.id is not None)
        row.setdefault("content", "")
        if not message.tool_calls:
            row.pop("tool_calls", None)
    if train and not any(message.role == "assistant" for message in checked):
        roles = ", ".join(dict.fromkeys(message.role for message in checked))
        raise DataError(
            f"no assistant message, so there is nothing to train on (roles: {roles})",
            remedy="add the reply that the model should learn, or remove the row",
        )
    return rows, declared


def as_data_error(error: MessageError) -> DataError:
    """Return the same problem as a DataError; whoever knows the path and the line adds them."""
    return DataError(f"{error.place}{': ' if error.place else ''}{error.problem}", remedy=error.remedy)


def nearest(value: str, known: Sequence[str]) -> str | None:
    """Return the known name that `value` most likely means, or None."""
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
        raise DataError(f"messages[{index}]: has no role, only {sorted(map(str, message))}", remedy=hint)
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
            f"messages[{index}]: empty content of the {message.role} message",
            remedy="give the message content, or remove it",
        )

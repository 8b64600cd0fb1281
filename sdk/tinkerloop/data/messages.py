"""What a conversation must be before anybody renders it: one check for every source of rows."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from tinkerloop.errors import DataError

ROLES = ("system", "developer", "user", "assistant", "tool")

KEYS = ("role", "content", "tool_calls", "unparsed_tool_calls", "tool_call_id", "name", "trainable", "weight")
KEYS += ("tools", "thinking", "reasoning", "reasoning_content")
"""What a message may say that a renderer reads."""

_PARTS = {"text": "text", "thinking": "thinking", "image": "image", "image_url": "image_url"}
_FOREIGN_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "function": "tool"}


def check_messages(messages: Any, *, train: bool = True) -> list[dict[str, Any]]:
    """The messages, with absent values (null) left out.

    Refuses, by DataError: anything but a list of objects with a known role and content that is text or parts; empty
    content (allowed for tool results, and beside tool calls); text that is not Unicode; tool calls whose arguments
    are not JSON; results of calls that were never made. With `train`, there must be an assistant message.
    """
    if not isinstance(messages, list) or not messages:
        what = "an empty list" if isinstance(messages, list) else f"a {type(messages).__name__}"
        raise DataError(f"messages must be a list of messages, this is {what}")
    checked: list[dict[str, Any]] = []
    calls: set[str] = set()
    for index, message in enumerate(messages):
        try:
            checked.append(_check_message(message, calls))
        except DataError as error:
            raise DataError(f"message {index + 1}: {error.problem}", remedy=error.remedy) from None
    if train and not any(message["role"] == "assistant" for message in checked):
        roles = ", ".join(dict.fromkeys(message["role"] for message in checked))
        raise DataError(
            f"no assistant message, so there is nothing to train on (roles: {roles})",
            remedy="add the reply that the model should learn, or remove the row",
        )
    return checked


def check_tools(tools: Any) -> list[dict[str, Any]] | None:
    """Tool declarations: a list of JSON-schema functions, each with a name, or None."""
    if tools is None:
        return None
    if not isinstance(tools, list):
        raise DataError(f"tools must be a list, got {type(tools).__name__}")
    for index, tool in enumerate(tools):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise DataError(
                f"tool {index + 1} has no name",
                remedy='declare {"type": "function", "function": {"name": ..., "parameters": ...}}',
            )
    return tools or None


def _check_message(message: Any, calls: set[str]) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise DataError(f"must be an object with role and content, got {type(message).__name__}")
    checked = {key: value for key, value in message.items() if value is not None}
    role = checked.get("role")
    if role not in ROLES:
        raise _bad_role(role, checked)
    if "tool_calls" in checked:
        _check_calls(checked["tool_calls"], role, calls)
        if not checked["tool_calls"]:
            del checked["tool_calls"]
    _check_content(checked, role)
    if not isinstance(checked.get("unparsed_tool_calls", []), Sequence):
        raise DataError(f"unparsed_tool_calls must be a list, got {type(checked['unparsed_tool_calls']).__name__}")
    if role == "tool" and calls and "tool_call_id" in checked and _check_id(checked["tool_call_id"]) not in calls:
        raise DataError(f"answers the tool call {checked['tool_call_id']!r}, which was never made")
    weight = checked.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
        raise DataError(f"weight must be a finite number, got {weight!r}")
    if not isinstance(checked.get("trainable", True), bool):
        raise DataError(f"trainable must be true or false, got {checked['trainable']!r}")
    return checked


def _bad_role(role: Any, message: Mapping[str, Any]) -> DataError:
    if role is None:
        hint = "ShareGPT rows need adapter='sharegpt'" if "from" in message else None
        return DataError(f"has no role, only {sorted(message)}", remedy=hint)
    near = _FOREIGN_ROLES.get(str(role).lower()) or next(
        iter(difflib.get_close_matches(str(role).lower(), ROLES, n=1)), None
    )
    did_you_mean = f"did you mean {near!r}? " if near else ""
    return DataError(f"unknown role {role!r}", remedy=f"{did_you_mean}known roles: {', '.join(ROLES)}")


def _check_content(message: dict[str, Any], role: str) -> None:
    may_be_empty = role == "tool" or bool(message.get("tool_calls"))
    content = message.get("content")
    if content is None:
        if not may_be_empty:
            raise DataError(f"{role} message without content", remedy="give it content, or remove it")
        message["content"] = ""
        return
    if isinstance(content, str):
        _check_text(content, "content")
        empty = not content.strip()
    elif isinstance(content, list):
        empty = not [part for part in content if _check_part(part)]
    else:
        raise DataError(f"content must be text or a list of parts, got {type(content).__name__}")
    if empty and not may_be_empty:
        raise DataError(f"empty content of the {role} message", remedy="give it content, or remove it")


def _check_part(part: Any) -> bool:
    """Whether a part of the content holds anything."""
    if isinstance(part, str):
        _check_text(part, "a text part")
        return bool(part.strip())
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(part, Mapping) or not isinstance(kind, str) or kind not in _PARTS:
        raise DataError(
            f"unknown part of content: {kind if kind is not None else type(part).__name__!r}",
            remedy=f'parts are objects with a "type": {", ".join(_PARTS)}',
        )
    value = part.get(_PARTS[kind])
    if kind in ("text", "thinking"):
        if not isinstance(value, str):
            raise DataError(f'a {kind} part needs "{kind}": text, got {type(value).__name__}')
        _check_text(value, f"a {kind} part")
        return kind == "text" and bool(value.strip())
    if not value:
        raise DataError(f'a {kind} part needs "{kind}"')
    return True


def _check_text(text: str, what: str) -> None:
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"{what} holds half of a surrogate pair at character {error.start}",
                remedy="the text was cut inside a character, or escaped twice",
            ) from None


def _check_calls(tool_calls: Any, role: str, ids: set[str]) -> None:
    if not isinstance(tool_calls, Sequence) or isinstance(tool_calls, str):
        raise DataError(f"tool_calls must be a list, got {type(tool_calls).__name__}")
    if tool_calls and role != "assistant":
        raise DataError(f"only the assistant calls tools, this is a {role} message")
    for call in tool_calls:
        function = call.get("function") if isinstance(call, Mapping) else getattr(call, "function", None)
        read = function.get if isinstance(function, Mapping) else lambda key, f=function: getattr(f, key, None)
        name, arguments = read("name"), read("arguments")
        if not isinstance(name, str) or not name:
            raise DataError(
                "a tool call has no function name",
                remedy='write {"function": {"name": ..., "arguments": ...}}',
            )
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except ValueError as error:
                raise DataError(f"the arguments of {name} are not JSON: {error}") from None
        if not isinstance(arguments, Mapping):
            raise DataError(f"the arguments of {name} must be an object, got {type(arguments).__name__}")
        call_id = call.get("id") if isinstance(call, Mapping) else getattr(call, "id", None)
        if call_id is not None:
            ids.add(_check_id(call_id))


def _check_id(call_id: Any) -> str:
    if not isinstance(call_id, str):
        raise DataError(f"the id of a tool call must be text, got {call_id!r}")
    return call_id

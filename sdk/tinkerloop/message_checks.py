"""Validation of messages: dictionaries in the shape of OpenAI's API or the Tinker Cookbook -> `CheckedConversation`.

This is the only validator; data loading, renderers and episodes all use it. It does not modify its input. A table in
`data/README.md` lists which messages are accepted, which are rejected, and by which of these users.

    >>> call = {"name": "add", "arguments": '{"a": 1}'}
    >>> read_message({"role": "assistant", "content": None, "tool_calls": [call]}).tool_calls[0].function
    FunctionBody(name='add', arguments='{"a": 1}')
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tinkerloop.message_values import (
    MessageError,
    checked_string,
    checked_unicode,
    is_empty,
    is_listlike,
    message_error,
    refuse_other_keys,
)
from tinkerloop.messages import ChatMessage, CheckedConversation, Image, Message
from tinkerloop.tool_checks import read_call, read_tools, read_unparsed_call

MESSAGE_KEYS = frozenset(Message.__annotations__) | {"reasoning_content", "reasoning", "thinking"}
"""The keys that a message may have. A renderer raises for any other key whose value is not empty."""

_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
_KEYS_OF_A_CALLING_REPLY = frozenset({"role", "content", "tool_calls"})
_PART_KINDS = ("text", "thinking", "image", "image_url")
KEYS_OF_A_PART = frozenset({"type", *_PART_KINDS})
"""The keys that a part of a message's content may have."""
_LARGEST_WEIGHT = float(np.finfo(np.float32).max)


def read_conversation(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Any] | None = None,
    *,
    prompting: bool = False,
    normalize: Callable[[ChatMessage], ChatMessage] = lambda message: message,
) -> CheckedConversation:
    """Check a conversation and convert it to the immutable type that renderers use.

    Args:
        messages: dictionaries in the shape of the Tinker Cookbook or OpenAI's API. They are not modified.
        tools: tool declarations, bare or wrapped as in OpenAI's `{"type": "function", "function": ...}`. Alternatively,
            a system message at the start holds them under `tools`. If its content is empty, it only declares the
            tools: the conversation then has no system message, and its messages are counted without it.
        prompting: True if a reply is to be sampled after the messages.
        normalize: function that is applied to each checked message.

    Raises:
        MessageError: a message or a declaration has the wrong shape. The error gives its index, the problem and, where
            known, what to do.
    """
    if type(messages) not in (list, tuple):
        if not is_listlike(messages):
            raise MessageError(f"expected a list of messages, got {type(messages).__name__}")
        messages = list(messages)  # `messages` is read twice below, and an iterator can be read only once
    checked = tuple([normalize(read_message(message, i)) for i, message in enumerate(messages)])
    carried = [(i, message["tools"]) for i, message in enumerate(messages) if message.get("tools")]
    if carried:
        if tools:
            raise MessageError(
                "tools are declared twice: in the argument `tools` and in a message",
                remedy="declare them in one of the two",
            )
        if len(carried) > 1 or carried[0][0] != 0 or checked[0].role != "system":
            raise message_error(carried[-1][0], "'tools' is allowed only on a system message at the start")
        tools = carried[0][1]
        if not checked[0].content:
            checked = checked[1:]  # the message only declares the tools, so it is no system message
    return CheckedConversation(checked, read_tools(tools), prompting)


def read_message(message: Any, index: int = 0) -> ChatMessage:
    """Check one message and convert it to the immutable type that renderers use.

    A key with the value null counts as absent. Missing, null and empty arguments of a tool call become `{}`.

    Args:
        message: a dictionary in the shape of the Tinker Cookbook or OpenAI's API.
        index: position of the message in its conversation; errors name the message `messages[index]`.

    Raises:
        MessageError: the message has the wrong shape, or its text is not valid Unicode.
    """
    if type(message) is not dict and not isinstance(message, Mapping):  # `isinstance` of an abstract class is slow
        raise message_error(index, f"expected a dictionary with 'role' and 'content', got {type(message).__name__}")
    role, content = message.get("role"), message.get("content")
    if len(message) == 2 and type(role) is str and type(content) is str:  # fast path for nearly all messages
        return ChatMessage(role, (checked_unicode(content, index),) if content else ())
    calls = message.get("tool_calls")
    if (
        type(calls) is list
        and type(content) is str
        and role == "assistant"
        and _KEYS_OF_A_CALLING_REPLY.issuperset(message)
    ):
        read_calls = tuple([read_call(call, index) for call in calls])  # fast path for nearly all other messages
        return ChatMessage(role, (checked_unicode(content, index),) if content else (), None, read_calls)
    if not isinstance(role, str):
        raise message_error(index, f"'role' must be a string, got {role!r}")
    if not MESSAGE_KEYS.issuperset(message):
        refuse_other_keys(message, MESSAGE_KEYS, "", index)

    parts, thinking = _read_content(content, index)
    given = [checked_string(message, key, index) for key in _REASONING_KEYS if message.get(key) is not None]
    if len(given) + bool(thinking) > 1:
        raise message_error(
            index, "reasoning is given more than once", "give it under one key only, or as thinking parts"
        )
    reasoning = "".join(thinking) if thinking else (given[0] if given else None)
    read_calls = tuple([read_call(call, index) for call in _list(message, "tool_calls", index)])
    unparsed = tuple([read_unparsed_call(call, index) for call in _list(message, "unparsed_tool_calls", index)])
    has_more = bool(read_calls or unparsed or reasoning is not None)
    if has_more and role != "assistant":
        raise message_error(
            index, f"only an assistant message can have reasoning or tool calls, but the role is {role!r}"
        )
    if content is None and not has_more and role != "tool":
        raise message_error(index, "'content' is missing", "add 'content', or remove the message")
    trainable, weight = message.get("trainable"), message.get("weight")
    if not (trainable is None or isinstance(trainable, bool)):
        raise message_error(index, f"'trainable' must be true or false, got {trainable!r}")
    if weight is None:
        weight = 1.0
    elif isinstance(weight, bool) or not isinstance(weight, (int, float)) or not abs(weight) <= _LARGEST_WEIGHT:
        shown = repr(weight)
        shown = shown if len(shown) <= 40 else f"{shown[:40]}..."
        raise message_error(index, f"'weight' must be a finite number, got {shown}")
    return ChatMessage(
        role, parts, reasoning, read_calls, unparsed, checked_string(message, "tool_call_id", index),
        checked_string(message, "name", index), trainable, float(weight),
    )  # fmt: skip


def _list(message: Mapping[str, Any], key: str, index: int) -> Iterable[Any]:
    value: Any = message.get(key)
    if is_empty(value):
        return ()
    if not is_listlike(value):
        raise message_error(index, f"'{key}' must be a list, got {type(value).__name__}")
    return value


def _read_content(content: Any, index: int) -> tuple[tuple[str | Image, ...], list[str]]:
    """Return (texts and images in order, with adjacent texts joined; texts of the thinking parts)."""
    if content is None:
        return (), []
    if isinstance(content, str):
        return (checked_unicode(content, index),) if content else (), []
    if isinstance(content, (Mapping, bytes, bytearray)) or not isinstance(content, Sequence):
        raise message_error(index, f"'content' must be a string or a list of parts, got {type(content).__name__}")
    parts: list[str | Image] = []
    thinking: list[str] = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if not isinstance(kind, str) or kind not in _PART_KINDS:
            shown = repr(kind) if kind is not None else f"a {type(part).__name__} without a type"
            raise message_error(
                index, f"unknown content part {shown}", f'its "type" must be one of {", ".join(_PART_KINDS)}'
            )
        if len(part) > 2:
            if others := [k for k in _PART_KINDS if k != kind and not is_empty(part.get(k))]:
                raise message_error(index, f"a {kind} part also has {', '.join(others)}", "write one part for each")
            refuse_other_keys(part, KEYS_OF_A_PART, f"a {kind} part", index)
        value: Any = part.get(kind)
        if kind in ("text", "thinking"):
            if not isinstance(value, str):
                raise message_error(index, f'a {kind} part needs a string under "{kind}", got {value!r}')
            checked_unicode(value, index)
        if kind == "text":
            if parts and isinstance(parts[-1], str):
                parts[-1] += value
            elif value:
                parts.append(value)
        elif kind == "thinking":
            if parts:
                raise message_error(
                    index, "a thinking part comes after text or an image", "put the thinking part first"
                )
            thinking.append(value)
        else:
            source = value
            if kind == "image_url" and isinstance(value, Mapping):
                source = value.get("url")
                known = ("url", "detail") if value.get("detail") == "auto" else ("url",)  # what it means without it
                refuse_other_keys(value, known, "an image_url", index)
            if source is None or (isinstance(source, (str, bytes, list, dict)) and not source):
                raise message_error(index, f'an {kind} part needs an image under "{kind}", got {value!r}')
            parts.append(Image(source))
    return tuple(parts), thinking

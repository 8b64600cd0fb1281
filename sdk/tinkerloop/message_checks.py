"""Validation of messages: dictionaries in the shape of OpenAI's API or the Tinker Cookbook -> `CheckedConversation`.

This is the only validator; data loading, renderers and episodes all use it. It does not modify its input. A table in
`data/README.md` lists which messages are accepted, which are rejected, and by which of these users.

    >>> call = {"name": "add", "arguments": '{"a": 1}'}
    >>> read_message({"role": "assistant", "content": None, "tool_calls": [call]}).tool_calls[0].function
    FunctionBody(name='add', arguments='{"a": 1}')
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tinkerloop.errors import RenderError
from tinkerloop.messages import ChatMessage, CheckedConversation, Image, Message, ToolCall, ToolSpec, UnparsedToolCall
from tinkerloop.strict_json import STRICT_JSON, check_depth

MESSAGE_KEYS = frozenset(Message.__annotations__) | {"reasoning_content", "reasoning", "thinking"}
"""The keys that a message may have. A renderer raises for any other key whose value is not empty."""

_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
_KEYS_OF_A_CALLING_REPLY = frozenset({"role", "content", "tool_calls"})
_PART_KINDS = ("text", "thinking", "image", "image_url")
KEYS_OF_A_CALL = frozenset({"name", "arguments", "id", "type", "index", "function"})
"""The keys that a tool call may have: its own, and those of its function, which may be written in it."""
KEYS_OF_A_FUNCTION = frozenset({"name", "arguments"})
"""The keys that the function of a tool call may have."""
_KEYS_BESIDE_A_FUNCTION = KEYS_OF_A_CALL - KEYS_OF_A_FUNCTION
KEYS_OF_A_PART = frozenset({"type", *_PART_KINDS})
"""The keys that a part of a message's content may have."""
_LARGEST_WEIGHT = float(np.finfo(np.float32).max)
_KEEP_UNPARSED = "keep a sampled call that is not JSON as text under 'unparsed_tool_calls'"


class MessageError(RenderError):
    """Error for a message or a tool declaration of the wrong shape.

    The error text gives the place, such as `messages[2]`, the problem and, where known, what to do.
    """

    def __init__(self, problem: str, *, place: str = "", remedy: str | None = None):
        self.problem, self.place, self.remedy = problem, place, remedy
        super().__init__(f"{place}{': ' if place else ''}{problem}{f'; {remedy}' if remedy else ''}")


def _fail(index: int, problem: str, remedy: str | None = None) -> MessageError:
    return MessageError(problem, place=f"messages[{index}]", remedy=remedy)


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
        if not _is_listlike(messages):
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
            raise _fail(carried[-1][0], "'tools' is allowed only on a system message at the start")
        tools = carried[0][1]
        if not checked[0].content:
            checked = checked[1:]  # the message only declares the tools, so it is no system message
    return CheckedConversation(checked, read_tools(tools), prompting)


def read_tools(tools: Any) -> tuple[ToolSpec, ...]:
    """Check tool declarations and return them without OpenAI's wrapper.

    Args:
        tools: a list of declarations. None and other empty values declare no tools.

    Raises:
        MessageError: `tools` is not a list, or a declaration has the wrong shape.
    """
    if is_empty(tools):
        return ()
    if not _is_listlike(tools):
        raise MessageError(f"expected a list of tools, got {type(tools).__name__}")
    return tuple([_read_tool(tool, i) for i, tool in enumerate(tools)])


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
        raise _fail(index, f"expected a dictionary with 'role' and 'content', got {type(message).__name__}")
    role, content = message.get("role"), message.get("content")
    if len(message) == 2 and type(role) is str and type(content) is str:  # fast path for nearly all messages
        return ChatMessage(role, (_utf8(content, index),) if content else ())
    calls = message.get("tool_calls")
    if (
        type(calls) is list
        and type(content) is str
        and role == "assistant"
        and _KEYS_OF_A_CALLING_REPLY.issuperset(message)
    ):
        read_calls = tuple([_read_call(call, index) for call in calls])  # fast path for nearly all other messages
        return ChatMessage(role, (_utf8(content, index),) if content else (), None, read_calls)
    if not isinstance(role, str):
        raise _fail(index, f"'role' must be a string, got {role!r}")
    if not MESSAGE_KEYS.issuperset(message):
        _refuse_other_keys(message, MESSAGE_KEYS, "", index)

    parts, thinking = _read_content(content, index)
    given = [_string(message, key, index) for key in _REASONING_KEYS if message.get(key) is not None]
    if len(given) + bool(thinking) > 1:
        raise _fail(index, "reasoning is given more than once", "give it under one key only, or as thinking parts")
    reasoning = "".join(thinking) if thinking else (given[0] if given else None)
    read_calls = tuple([_read_call(call, index) for call in _list(message, "tool_calls", index)])
    unparsed = tuple([_read_unparsed(call, index) for call in _list(message, "unparsed_tool_calls", index)])
    has_more = bool(read_calls or unparsed or reasoning is not None)
    if has_more and role != "assistant":
        raise _fail(index, f"only an assistant message can have reasoning or tool calls, but the role is {role!r}")
    if content is None and not has_more and role != "tool":
        raise _fail(index, "'content' is missing", "add 'content', or remove the message")
    trainable, weight = message.get("trainable"), message.get("weight")
    if not (trainable is None or isinstance(trainable, bool)):
        raise _fail(index, f"'trainable' must be true or false, got {trainable!r}")
    if weight is None:
        weight = 1.0
    elif isinstance(weight, bool) or not isinstance(weight, (int, float)) or not abs(weight) <= _LARGEST_WEIGHT:
        shown = repr(weight)
        shown = shown if len(shown) <= 40 else f"{shown[:40]}..."
        raise _fail(index, f"'weight' must be a finite number, got {shown}")
    return ChatMessage(
        role, parts, reasoning, read_calls, unparsed, _string(message, "tool_call_id", index),
        _string(message, "name", index), trainable, float(weight),
    )  # fmt: skip


def is_empty(value: Any) -> bool:
    """Return whether a value is null, "", [] or {}. Such a value counts as absent: tables have it in unused columns."""
    return value is None or (isinstance(value, (str, list, tuple, dict)) and not value)


def _is_listlike(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping))


def _list(message: Mapping[str, Any], key: str, index: int) -> Iterable[Any]:
    value: Any = message.get(key)
    if is_empty(value):
        return ()
    if not _is_listlike(value):
        raise _fail(index, f"'{key}' must be a list, got {type(value).__name__}")
    return value


def _string(mapping: Mapping[str, Any], key: str, index: int) -> str | None:
    value = mapping.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise _fail(index, f"'{key}' must be a string, got {value!r}")
    return _utf8(value, index)


def _read_content(content: Any, index: int) -> tuple[tuple[str | Image, ...], list[str]]:
    """Return (texts and images in order, with adjacent texts joined; texts of the thinking parts)."""
    if content is None:
        return (), []
    if isinstance(content, str):
        return (_utf8(content, index),) if content else (), []
    if isinstance(content, (Mapping, bytes, bytearray)) or not isinstance(content, Sequence):
        raise _fail(index, f"'content' must be a string or a list of parts, got {type(content).__name__}")
    parts: list[str | Image] = []
    thinking: list[str] = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if not isinstance(kind, str) or kind not in _PART_KINDS:
            shown = repr(kind) if kind is not None else f"a {type(part).__name__} without a type"
            raise _fail(index, f"unknown content part {shown}", f'its "type" must be one of {", ".join(_PART_KINDS)}')
        if len(part) > 2:
            if others := [k for k in _PART_KINDS if k != kind and not is_empty(part.get(k))]:
                raise _fail(index, f"a {kind} part also has {', '.join(others)}", "write one part for each")
            _refuse_other_keys(part, KEYS_OF_A_PART, f"a {kind} part", index)
        value: Any = part.get(kind)
        if kind in ("text", "thinking"):
            if not isinstance(value, str):
                raise _fail(index, f'a {kind} part needs a string under "{kind}", got {value!r}')
            _utf8(value, index)
        if kind == "text":
            if parts and isinstance(parts[-1], str):
                parts[-1] += value
            elif value:
                parts.append(value)
        elif kind == "thinking":
            if parts:
                raise _fail(index, "a thinking part comes after text or an image", "put the thinking part first")
            thinking.append(value)
        else:
            source = value
            if kind == "image_url" and isinstance(value, Mapping):
                source = value.get("url")
                known = ("url", "detail") if value.get("detail") == "auto" else ("url",)  # what it means without it
                _refuse_other_keys(value, known, "an image_url", index)
            if source is None or (isinstance(source, (str, bytes, list, dict)) and not source):
                raise _fail(index, f'an {kind} part needs an image under "{kind}", got {value!r}')
            parts.append(Image(source))
    return tuple(parts), thinking


def _refuse_other_keys(given: Mapping[str, Any], known: Collection[str], place: str, index: int) -> None:
    """Raise `MessageError` for a key that is not known and whose value is not empty."""
    if unknown := sorted(str(key) for key in given if key not in known and not is_empty(given[key])):
        remedy = f"remove them; known keys: {', '.join(sorted(known))}"
        raise _fail(index, f"{place}{' has ' if place else ''}unknown keys {', '.join(unknown)}", remedy)


def _utf8(text: str, index: int) -> str:
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _fail(
            index,
            f"the text is not valid Unicode: unpaired surrogate at character {error.start}",
            "repair the text, which was probably cut inside a character or escaped twice",
        ) from None
    return text


def _read_call(call: Any, index: int) -> ToolCall:
    if type(call) is not dict and not isinstance(call, Mapping):
        return _check_call(call, index)
    body = call.get("function")
    if body is None:
        body = call
    name = body.get("name") if type(body) is dict or isinstance(body, Mapping) else None
    if not isinstance(name, str) or not name:
        raise _fail(index, f"a tool call needs a function with a name, got {str(call)[:80]}", _CALL_SHAPE)
    arguments = body.get("arguments")
    if type(arguments) is str and arguments:
        if not _is_plain_object(arguments):
            _check_arguments(name, arguments, index)
    else:
        arguments = _write_arguments(name, arguments, body, index)
    known = KEYS_OF_A_CALL if body is call else _KEYS_BESIDE_A_FUNCTION
    if not known.issuperset(call):
        _refuse_other_keys(call, known, f"the call of {name!r}", index)
    if body is not call and not KEYS_OF_A_FUNCTION.issuperset(body):
        _refuse_other_keys(body, KEYS_OF_A_FUNCTION, f"the function of the call of {name!r}", index)
    if call.get("type") not in (None, "function"):
        raise _fail(index, f"the call of {name!r} has the type {call['type']!r}", "only calls of functions are written")
    call_id = call.get("id")
    if call_id is not None and not (type(call_id) is str and call_id.isascii()):
        _string(call, "id", index)
    if not (name.isascii() and arguments.isascii()):
        _utf8(name, index)
        _utf8(arguments, index)
    return ToolCall(_FunctionBody(name, arguments), call_id)


_FunctionBody = ToolCall.FunctionBody
_CALL_SHAPE = 'write {"function": {"name": ..., "arguments": {...}}}'


def _check_call(call: Any, index: int) -> ToolCall:
    """Check a tool call that is given as a `ToolCall`, the type in which renderers return calls."""
    if not isinstance(call, ToolCall):
        raise _fail(index, f"a tool call must be a dictionary or a ToolCall, got {str(call)[:80]}", _CALL_SHAPE)
    (name, arguments), call_id = call.function, call.id
    if not (isinstance(name, str) and name and isinstance(arguments, str)):
        raise _fail(index, f"a ToolCall needs a name, and its arguments as JSON text, got {str(call)[:80]}")
    if not (name.isascii() and arguments.isascii()):
        _utf8(name, index)
        _utf8(arguments, index)
    if call_id is not None:
        _string({"id": call_id}, "id", index)
    if not arguments:
        return ToolCall(_FunctionBody(name, "{}"), call_id, call.type)
    _check_arguments(name, arguments, index)
    return call


_scan_json: Any = vars(STRICT_JSON)["scan_once"]  # takes half the time of `decode`, which also skips white space
_write_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def _is_plain_object(text: str) -> bool:
    """Return whether a text is a JSON object without white space around it, as nearly all arguments are."""
    try:
        return text[0] == "{" and _scan_json(text, 0)[1] == len(text)
    except (StopIteration, ValueError, RecursionError):
        return False


def _check_arguments(name: str, arguments: str, index: int) -> None:
    """Raise `MessageError` unless the arguments are the text of a JSON object."""
    if _is_plain_object(arguments):
        return
    try:
        value = STRICT_JSON.decode(arguments)
    except (ValueError, RecursionError) as error:
        raise _fail(index, f"the arguments of {name!r} are not JSON: {error}", _KEEP_UNPARSED) from None
    if type(value) is not dict:
        raise _not_an_object(name, value, index)


def _write_arguments(name: str, arguments: Any, body: Mapping[str, Any], index: int) -> str:
    """Write arguments as JSON text, for arguments that are not a plain `str` yet. Absent and empty ones become `{}`."""
    if arguments is None or arguments == "":
        others = sorted(str(key) for key in body if key not in KEYS_OF_A_CALL and not is_empty(body[key]))
        if others:  # arguments under another key, such as "parameters", would be lost
            raise _fail(index, f"the call of {name!r} needs 'arguments', got {', '.join(others)} instead", _CALL_SHAPE)
        return "{}"
    if isinstance(arguments, str):  # a subclass, such as numpy's
        _check_arguments(name, arguments, index)
        return str(arguments)
    if not isinstance(arguments, Mapping):
        raise _not_an_object(name, arguments, index)
    try:
        written = _write_json(arguments)
        check_depth(arguments, len(written))
        return written
    except (TypeError, ValueError, RecursionError) as error:
        raise _fail(index, f"the arguments of {name!r} are not JSON: {error}") from None


def _not_an_object(name: str, value: Any, index: int) -> MessageError:
    kind = type(value).__name__
    return _fail(index, f"the arguments of {name!r} must be a JSON object, got {kind}", _KEEP_UNPARSED)


def _read_unparsed(call: Any, index: int) -> UnparsedToolCall:
    if isinstance(call, Mapping) and isinstance(call.get("raw_text"), str):
        _refuse_other_keys(call, ("raw_text", "error"), "the unparsed tool call", index)
        return UnparsedToolCall(_utf8(call["raw_text"], index), str(call.get("error") or ""))
    if not isinstance(call, UnparsedToolCall) or not isinstance(call.raw_text, str):
        raise _fail(index, f"an unparsed tool call needs 'raw_text' and 'error', got {str(call)[:80]}")
    _utf8(call.raw_text, index)
    return call


def _read_tool(tool: Any, index: int) -> ToolSpec:
    """Check one tool declaration and return it bare.

    The declaration may be wrapped as in OpenAI's `{"type": "function", "function": ...}`, or have its `type` inside.
    """

    def fail(problem: str, remedy: str | None = None) -> MessageError:
        return MessageError(problem, place=f"tools[{index}]", remedy=remedy)

    body = tool.get("function") if isinstance(tool, Mapping) else None
    if body is None:
        body = tool
    name = body.get("name") if isinstance(body, Mapping) else None
    if not isinstance(name, str) or not name:
        raise fail(
            f"a tool needs a name, got {str(tool)[:80]}",
            'declare {"type": "function", "function": {"name": ..., "description": ..., "parameters": {...}}}',
        )
    if tool.get("type") not in (None, "function"):
        raise fail(f"the tool {name!r} has the type {tool['type']!r}", "only tools of the type 'function' are declared")
    beside = () if body is tool else sorted(str(k) for k in tool if k not in _WRAPPER and not is_empty(tool[k]))
    if beside:
        raise fail(
            f"the tool {name!r} has {', '.join(beside)} beside 'function'", "write them inside it, or remove them"
        )
    if body is tool and "type" in tool:
        body = {key: value for key, value in tool.items() if key != "type"}
    for key in ("input_schema", "inputSchema"):
        if not is_empty(body.get(key)):
            raise fail(f"the tool {name!r} has {key!r}, which no chat format writes", "name it 'parameters'")
    schema = body.get("parameters") or {}
    if not isinstance(schema, Mapping) or not _is_schema(schema):
        raise fail(
            f"the parameters of tool {name!r} must be a JSON schema of an object, got {str(schema)[:80]}",
            'write {"type": "object", "properties": {...}}',
        )
    try:
        written = json.dumps(dict(body), ensure_ascii=False, allow_nan=False)
        check_depth(dict(body), len(written.encode()))
    except (TypeError, ValueError, RecursionError) as error:
        raise fail(f"the declaration of tool {name!r} is not JSON-serializable: {error}") from None
    return body  # type: ignore[return-value]


_WRAPPER = frozenset({"type", "function"})
_OF_A_SCHEMA = frozenset({"type", "properties", "$ref", "anyOf", "oneOf", "allOf", "additionalProperties"})


def _is_schema(schema: Mapping[str, Any]) -> bool:
    """Return whether a mapping is a JSON schema, and not a bare mapping of parameters."""
    is_bare = bool(schema) and _OF_A_SCHEMA.isdisjoint(schema)
    return (
        not is_bare
        and not isinstance(schema.get("type"), Mapping)
        and isinstance(schema.get("properties") or {}, Mapping)
    )

"""Validation of tool calls and tool declarations, for `message_checks`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tinkerloop.message_values import (
    MessageError,
    checked_string,
    checked_unicode,
    is_empty,
    is_listlike,
    message_error,
    refuse_other_keys,
)
from tinkerloop.messages import ToolCall, ToolSpec, UnparsedToolCall
from tinkerloop.strict_json import STRICT_JSON, check_depth

KEYS_OF_A_CALL = frozenset({"name", "arguments", "id", "type", "index", "function"})
"""The keys that a tool call may have: its own, and those of its function, which may be written in it."""
KEYS_OF_A_FUNCTION = frozenset({"name", "arguments"})
"""The keys that the function of a tool call may have."""
_KEYS_BESIDE_A_FUNCTION = KEYS_OF_A_CALL - KEYS_OF_A_FUNCTION
_KEEP_UNPARSED = "keep a sampled call that is not JSON as text under 'unparsed_tool_calls'"


def read_call(call: Any, index: int) -> ToolCall:
    """Check one tool call of message `index` and return it. Missing, null and empty arguments become `{}`.

    Raises:
        MessageError: the call has the wrong shape.
    """
    if type(call) is not dict and not isinstance(call, Mapping):
        return _check_call(call, index)
    body = call.get("function")
    if body is None:
        body = call
    name = body.get("name") if type(body) is dict or isinstance(body, Mapping) else None
    if not isinstance(name, str) or not name:
        raise message_error(index, f"a tool call needs a function with a name, got {str(call)[:80]}", _CALL_SHAPE)
    arguments = body.get("arguments")
    if type(arguments) is str and arguments:
        if not _is_plain_object(arguments):
            _check_arguments(name, arguments, index)
    else:
        arguments = _write_arguments(name, arguments, body, index)
    known = KEYS_OF_A_CALL if body is call else _KEYS_BESIDE_A_FUNCTION
    if not known.issuperset(call):
        refuse_other_keys(call, known, f"the call of {name!r}", index)
    if body is not call and not KEYS_OF_A_FUNCTION.issuperset(body):
        refuse_other_keys(body, KEYS_OF_A_FUNCTION, f"the function of the call of {name!r}", index)
    if call.get("type") not in (None, "function"):
        raise message_error(
            index, f"the call of {name!r} has the type {call['type']!r}", "only calls of functions are written"
        )
    call_id = call.get("id")
    if call_id is not None and not (type(call_id) is str and call_id.isascii()):
        checked_string(call, "id", index)
    if not (name.isascii() and arguments.isascii()):
        checked_unicode(name, index)
        checked_unicode(arguments, index)
    return ToolCall(_FunctionBody(name, arguments), call_id)


_FunctionBody = ToolCall.FunctionBody
_CALL_SHAPE = 'write {"function": {"name": ..., "arguments": {...}}}'


def _check_call(call: Any, index: int) -> ToolCall:
    """Check a tool call that is given as a `ToolCall`, the type in which renderers return calls."""
    if not isinstance(call, ToolCall):
        raise message_error(index, f"a tool call must be a dictionary or a ToolCall, got {str(call)[:80]}", _CALL_SHAPE)
    (name, arguments), call_id = call.function, call.id
    if not (isinstance(name, str) and name and isinstance(arguments, str)):
        raise message_error(index, f"a ToolCall needs a name, and its arguments as JSON text, got {str(call)[:80]}")
    if not (name.isascii() and arguments.isascii()):
        checked_unicode(name, index)
        checked_unicode(arguments, index)
    if call_id is not None:
        checked_string({"id": call_id}, "id", index)
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
        raise message_error(index, f"the arguments of {name!r} are not JSON: {error}", _KEEP_UNPARSED) from None
    if type(value) is not dict:
        raise _not_an_object(name, value, index)


def _write_arguments(name: str, arguments: Any, body: Mapping[str, Any], index: int) -> str:
    """Write arguments as JSON text, for arguments that are not a plain `str` yet. Absent and empty ones become `{}`."""
    if arguments is None or arguments == "":
        others = sorted(str(key) for key in body if key not in KEYS_OF_A_CALL and not is_empty(body[key]))
        if others:  # arguments under another key, such as "parameters", would be lost
            raise message_error(
                index, f"the call of {name!r} needs 'arguments', got {', '.join(others)} instead", _CALL_SHAPE
            )
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
        raise message_error(index, f"the arguments of {name!r} are not JSON: {error}") from None


def _not_an_object(name: str, value: Any, index: int) -> MessageError:
    kind = type(value).__name__
    return message_error(index, f"the arguments of {name!r} must be a JSON object, got {kind}", _KEEP_UNPARSED)


def read_unparsed_call(call: Any, index: int) -> UnparsedToolCall:
    """Check one unparsed tool call of message `index` and return it; raise `MessageError` for another shape."""
    if isinstance(call, Mapping) and isinstance(call.get("raw_text"), str):
        refuse_other_keys(call, ("raw_text", "error"), "the unparsed tool call", index)
        return UnparsedToolCall(checked_unicode(call["raw_text"], index), str(call.get("error") or ""))
    if not isinstance(call, UnparsedToolCall) or not isinstance(call.raw_text, str):
        raise message_error(index, f"an unparsed tool call needs 'raw_text' and 'error', got {str(call)[:80]}")
    checked_unicode(call.raw_text, index)
    return call


def read_tools(tools: Any) -> tuple[ToolSpec, ...]:
    """Check tool declarations and return them without OpenAI's wrapper.

    Args:
        tools: a list of declarations. None and other empty values declare no tools.

    Raises:
        MessageError: `tools` is not a list, or a declaration has the wrong shape.
    """
    if is_empty(tools):
        return ()
    if not is_listlike(tools):
        raise MessageError(f"expected a list of tools, got {type(tools).__name__}")
    return tuple([_read_tool(tool, i) for i, tool in enumerate(tools)])


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

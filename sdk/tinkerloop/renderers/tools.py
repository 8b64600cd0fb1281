"""How families write tool calls, and read them back."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from tinkerloop.errors import RenderError
from tinkerloop.renderers.types import ToolCall, ToolSpec, UnparsedToolCall

_PLAIN_NAME = re.compile(r"[^\s\"'\\<>{}]+")


def checked_name(name: str) -> str:
    """A function's name, which formats write without quoting."""
    if not _PLAIN_NAME.fullmatch(name):
        raise RenderError(f"the function name {name!r} holds spaces, quotes or brackets and could not be read back")
    return name


def declared(tool: ToolSpec) -> dict[str, Any]:
    """A declaration as OpenAI and the official templates spell it."""
    return {"type": "function", "function": tool}


def arguments_of(call: ToolCall) -> dict[str, Any]:
    """The arguments as a dictionary, for formats that write them one by one."""
    try:
        arguments = json.loads(call.function.arguments)
    except ValueError as error:
        raise RenderError(f"the arguments of {call.function.name!r} are not JSON: {error}") from None
    if not isinstance(arguments, dict):
        raise RenderError(f"the arguments of {call.function.name!r} must be a JSON object, got {arguments!r}")
    return arguments


def write_json_call(call: ToolCall) -> str:
    """`{"name": "f", "arguments": {...}}`, the arguments exactly as given."""
    return f'{{"name": "{checked_name(call.function.name)}", "arguments": {call.function.arguments}}}'


def read_json_call(fields: Sequence[str], tools: Sequence[ToolSpec] = ()) -> ToolCall | UnparsedToolCall:
    """The inverse of `write_json_call`; arguments keep the spelling they were sampled with."""
    (body,) = fields
    written = re.fullmatch(r'\s*\{"name": "([^"\\]+)", "arguments": (.*)\}\s*', body, re.DOTALL)
    if written and _is_object(written[2]):
        return ToolCall(ToolCall.FunctionBody(written[1], written[2]))
    try:
        call = json.loads(body)
    except (ValueError, RecursionError) as error:
        return UnparsedToolCall(body, f"not JSON: {error}")
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or not call["name"]:
        return UnparsedToolCall(body, "expected an object with a 'name'")
    arguments = call.get("arguments", {})
    if isinstance(arguments, str) and _is_object(arguments):
        return ToolCall(ToolCall.FunctionBody(call["name"], arguments))
    if not isinstance(arguments, dict):
        return UnparsedToolCall(body, "'arguments' is not an object")
    return ToolCall(ToolCall.FunctionBody(call["name"], json.dumps(arguments, ensure_ascii=False)))


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False

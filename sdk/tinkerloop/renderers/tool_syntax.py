"""How families write tool calls, and read them back."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

from tinkerloop.errors import RenderError
from tinkerloop.messages import ToolCall, ToolSpec, UnparsedToolCall


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(written: str) -> float:
    number = float(written)
    return number if math.isfinite(number) else _refuse_constant(written)


_read_json = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite).decode
"""JSON without what Python adds to it: NaN and infinities, which it could not write again."""

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
        arguments = _read_json(call.function.arguments)
        if "\\u" in call.function.arguments:  # JSON can spell half of a surrogate pair, which is no text
            json.dumps(arguments, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise RenderError(f"the arguments of {call.function.name!r} are not JSON in Unicode: {error}") from None
    if not isinstance(arguments, dict):
        raise RenderError(f"the arguments of {call.function.name!r} must be a JSON object, got {arguments!r}")
    return arguments


def write_json_call(call: ToolCall) -> str:
    """`{"name": "f", "arguments": {...}}`, the arguments exactly as given."""
    return f'{{"name": "{checked_name(call.function.name)}", "arguments": {call.function.arguments}}}'


_AS_WRITTEN = re.compile(r'\s*\{"name": "([^"\\]+)", "arguments": (.*)\}\s*', re.DOTALL)


def read_json_call(fields: Sequence[str], tools: Sequence[ToolSpec] = ()) -> ToolCall | UnparsedToolCall:
    """The inverse of `write_json_call`; arguments keep the spelling they were sampled with."""
    (body,) = fields
    written = _AS_WRITTEN.fullmatch(body)
    if written and is_object(written[2]):
        return ToolCall(ToolCall.FunctionBody(written[1], written[2]))
    try:
        call = _read_json(body)
    except (ValueError, RecursionError) as error:
        return UnparsedToolCall(body, f"not JSON: {error}")
    name = call.get("name") if isinstance(call, dict) else None
    if not isinstance(name, str) or not name or _SURROGATE.search(name):
        return UnparsedToolCall(body, "expected an object with a 'name'")
    others = [key for key in call if key != "name"]
    if others and "arguments" not in call:  # under another name they would be lost
        return UnparsedToolCall(body, f"expected 'arguments' beside the name, got {others}")
    arguments = call.get("arguments", {})
    if isinstance(arguments, str) and is_object(arguments) and not _SURROGATE.search(arguments):
        return ToolCall(ToolCall.FunctionBody(name, arguments))
    if not isinstance(arguments, dict):
        return UnparsedToolCall(body, "'arguments' is not an object")
    return ToolCall(ToolCall.FunctionBody(name, _write_json(arguments)))


_SURROGATE = re.compile("[\ud800-\udfff]")


def _write_json(arguments: dict[str, Any]) -> str:
    """Arguments as text; half of a surrogate pair, which a model can spell in JSON, stays spelled out."""
    written = json.dumps(arguments, ensure_ascii=False)
    return json.dumps(arguments) if _SURROGATE.search(written) else written


def is_object(text: str) -> bool:
    """Whether a text is a JSON object."""
    try:
        return isinstance(_read_json(text), dict)
    except (ValueError, RecursionError):
        return False


_PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n(.*?)\n</parameter>\n", re.DOTALL)
_PYTHON_LITERALS: dict[str, Any] = {"True": True, "False": False, "None": None}


def write_xml_call(call: ToolCall, *, json_scalars: bool) -> str:
    """`<function=f>\\n<parameter=k>\\nv\\n</parameter>\\n</function>`; strings raw, the rest as JSON or Python."""
    written = [f"<function={checked_name(call.function.name)}>\n"]
    for key, value in arguments_of(call).items():
        if isinstance(value, str):
            spelled = value
        elif json_scalars or isinstance(value, (dict, list)):
            spelled = json.dumps(value, ensure_ascii=False)
        else:
            spelled = str(value)
        if "\n</parameter>" in spelled or not _PLAIN_NAME.fullmatch(key):
            raise RenderError(f"the argument {key!r} of {call.function.name!r} holds a tag and could not be read back")
        written.append(f"<parameter={key}>\n{spelled}\n</parameter>\n")
    return "".join(written) + "</function>"


def read_xml_call(fields: Sequence[str], tools: Sequence[ToolSpec] = ()) -> ToolCall | UnparsedToolCall:
    """The inverse of `write_xml_call`.

    A declared string stays a string. Without a declaration, `3`, `true`, `True`, `null`, `None`, `{...}` and `[...]`
    are read as values: the format cannot tell them from strings.
    """
    (body,) = fields
    call = re.fullmatch(r"\s*<function=([^>\n]+)>\n(.*)</function>\s*", body, re.DOTALL)
    if call is None:
        return UnparsedToolCall(body, "expected <function=NAME> ... </function>")
    types = _declared_types(call[1], tools)
    arguments: dict[str, Any] = {}
    at = 0
    for parameter in _PARAMETER.finditer(call[2]):
        if call[2][at : parameter.start()].strip():
            break
        arguments[parameter[1]] = typed(parameter[2], types.get(parameter[1]), python=True)
        at = parameter.end()
    if call[2][at:].strip():
        return UnparsedToolCall(body, f"not a parameter: {call[2][at:].strip()[:80]!r}")
    return ToolCall(ToolCall.FunctionBody(call[1], _write_json(arguments)))


def _declared_types(name: str, tools: Sequence[ToolSpec]) -> dict[str, Any]:
    """Parameter -> its declared type, of the tool called `name`."""
    for tool in tools:
        properties = (tool.get("parameters") or {}).get("properties")
        if tool["name"] == name and isinstance(properties, dict):
            return {k: v.get("type") for k, v in properties.items() if isinstance(v, dict)}
    return {}


def typed(written: str, declared_type: Any = None, *, python: bool = False) -> Any:
    """A value that was written without quotes, by its declared type or, without one, by its looks.

    `python` reads `True`, `False` and `None` too.
    """
    if declared_type == "string":
        return written
    if python and written in _PYTHON_LITERALS:
        return _PYTHON_LITERALS[written]
    try:
        value = _read_json(written)
    except (ValueError, RecursionError):
        return written
    return written if isinstance(value, str) else value


def read_named_call(fields: Sequence[str], tools: Sequence[ToolSpec] = ()) -> ToolCall | UnparsedToolCall:
    """A name and the arguments as JSON, divided by a control token."""
    if len(fields) != 2:
        return UnparsedToolCall("".join(fields), "expected a name and arguments")
    name, arguments = fields
    if not name.strip() or not is_object(arguments):
        return UnparsedToolCall("".join(fields), "the arguments are not a JSON object" if name.strip() else "no name")
    return ToolCall(ToolCall.FunctionBody(name.strip(), arguments))


def read_numbered_call(fields: Sequence[str], tools: Sequence[ToolSpec] = ()) -> ToolCall | UnparsedToolCall:
    """`functions.NAME:NUMBER`, which is the call's id too, and the arguments as JSON, divided by a control token."""
    call = read_named_call(fields, tools)
    if isinstance(call, UnparsedToolCall):
        return call
    name = re.fullmatch(r"(?:functions\.)?(.+?)(?::\d+)?", call.function.name)
    assert name is not None, "any non-empty name matches"
    return ToolCall(ToolCall.FunctionBody(name[1], call.function.arguments), id=call.function.name)


def read_keyed_call(fields: Sequence[str], tools: Sequence[ToolSpec] = ()) -> ToolCall | UnparsedToolCall:
    """A name, then key and value in turns, each between control tokens of its own (so that every other field is empty).

    Declared strings stay strings; other values are read as JSON where they are.
    """
    name = fields[0].strip()
    inside, between = fields[1::2], [field.strip() for field in fields[2::2]]
    if not name or len(inside) % 2 or any(between) or len(inside) != len(between):
        return UnparsedToolCall("".join(fields), "expected a name and pairs of keys and values")
    types = _declared_types(name, tools)
    arguments = {k: typed(v, types.get(k)) for k, v in zip(inside[::2], inside[1::2], strict=True)}
    return ToolCall(ToolCall.FunctionBody(name, _write_json(arguments)))

"""Writing and parsing of tool calls: a pair of functions, `write_..._call` and `read_..._call`, for each form of call.

The module `tool_declarations` has a function for each form that asks the model for it. A writer returns text, or pieces
if control tokens (such as `<arg_key>`) divide the call into fields. A reader takes these fields. It never raises: a
call that it cannot parse becomes an `UnparsedToolCall`. Calls that are ordinary text of a reply, in Llama 3, are in
`text_calls`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from tinkerloop.errors import RenderError
from tinkerloop.messages import ToolCall, ToolSpec, UnparsedToolCall
from tinkerloop.renderers.pieces import Part, Piece, Pieces, markup, text
from tinkerloop.renderers.tool_arguments import (
    arguments_of,
    checked_name,
    declared_schemas,
    is_object,
    is_plain_name,
    is_unicode,
    read_value,
    schema_allows,
    write_arguments,
)
from tinkerloop.strict_json import STRICT_JSON, unique_dict

# ---- JSON in tags: Qwen3


def write_json_call(call: ToolCall) -> str:
    """Return the call as `{"name": "NAME", "arguments": {...}}`, with the text of the arguments unchanged."""
    return f'{{"name": "{checked_name(call.function.name)}", "arguments": {call.function.arguments}}}'


_JSON_CALL = re.compile(r'\s*\{"name": "([^"\\]+)", "arguments": (.*)\}\s*', re.DOTALL)


def read_json_call(fields: Sequence[str], tools: Sequence[ToolSpec] = ()) -> ToolCall | UnparsedToolCall:
    """Parse a call that `write_json_call` wrote, or other JSON of this shape.

    A call in exactly the written form keeps the text of its arguments as it was sampled.
    """
    (body,) = fields
    written = _JSON_CALL.fullmatch(body)
    if written and is_object(written[2]):
        return ToolCall(ToolCall.FunctionBody(written[1], written[2]))
    try:
        call = STRICT_JSON.decode(body)
    except (ValueError, RecursionError) as error:
        return UnparsedToolCall(body, f"not JSON: {error}")
    name = call.get("name") if isinstance(call, dict) else None
    if not isinstance(name, str) or not name or not is_unicode(name):
        return UnparsedToolCall(body, "expected an object with a 'name'")
    if other_keys := [key for key in call if key not in ("name", "arguments", "id")]:  # they would be lost
        return UnparsedToolCall(body, f"expected only 'arguments' beside the name, got {other_keys}")
    arguments, call_id = call.get("arguments", {}), call.get("id")
    if call_id is not None and not (isinstance(call_id, str) and is_unicode(call_id)):
        return UnparsedToolCall(body, "'id' is not text")
    if isinstance(arguments, str) and is_object(arguments) and is_unicode(arguments):
        return ToolCall(ToolCall.FunctionBody(name, arguments), id=call_id)
    if not isinstance(arguments, dict):
        return UnparsedToolCall(body, "'arguments' is not an object")
    return ToolCall(ToolCall.FunctionBody(name, write_arguments(arguments)), id=call_id)


# ---- XML in tags: Qwen3.5, Nemotron 3

_XML_PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n(.*?)\n</parameter>\n", re.DOTALL)


def write_xml_call(call: ToolCall, *, json_scalars: bool) -> str:
    """Return the call as `<function=NAME>\\n<parameter=KEY>\\nVALUE\\n</parameter>\\n</function>`.

    Args:
        json_scalars: write `true` and `null`, as in JSON, instead of Python's `True` and `None`. In both cases, strings
            are written without quotes, and lists and objects as JSON.

    Raises:
        RenderError: a parser could not read a name or an argument back.
    """
    written = [f"<function={checked_name(call.function.name)}>\n"]
    for key, value in arguments_of(call).items():
        spelled = _spelled(value, json_scalars)
        if "\n</parameter>" in spelled or not is_plain_name(key):
            raise RenderError(
                f"the argument {key!r} of {call.function.name!r} could not be read back by a parser; remove spaces, "
                "quotes and brackets from its name, and the text '\\n</parameter>' from its value"
            )
        written.append(f"<parameter={key}>\n{spelled}\n</parameter>\n")
    return "".join(written) + "</function>"


def _spelled(value: Any, json_scalars: bool) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False) if json_scalars or isinstance(value, (dict, list)) else str(value)


def read_xml_call(
    fields: Sequence[str], tools: Sequence[ToolSpec] = (), *, json_scalars: bool | None = None
) -> ToolCall | UnparsedToolCall:
    """Parse a call that `write_xml_call` wrote.

    A parameter that is declared as a string stays a string. Without a declaration, `3`, `true`, `True`, `null`, `None`,
    `{...}` and `[...]` are converted to values, because the format does not mark strings.

    Args:
        json_scalars: how the format writes truth values and null. Those of the other spelling, which the format would
            write otherwise, stay strings, unless the declaration allows the value and not the string. None: both are
            converted.
    """
    (body,) = fields
    call = re.fullmatch(r"\s*<function=([^>\n]+)>\n(.*)</function>\s*", body, re.DOTALL)
    if call is None:
        return UnparsedToolCall(body, "expected <function=NAME> ... </function>")
    root, schemas = declared_schemas(call[1], tools)
    arguments: list[tuple[str, Any]] = []
    position = 0
    for parameter in _XML_PARAMETER.finditer(call[2]):
        if call[2][position : parameter.start()].strip():
            break
        written, schema = parameter[2], schemas.get(parameter[1])
        value = read_value(written, schema, root, python=True)
        is_scalar = value is None or isinstance(value, bool)
        if is_scalar and json_scalars is not None and written != _spelled(value, json_scalars):
            is_declared = (
                schema is not None and schema_allows(schema, value, root) and not schema_allows(schema, written, root)
            )
            value = value if is_declared else written
        arguments.append((parameter[1], value))
        position = parameter.end()
    if call[2][position:].strip():
        return UnparsedToolCall(body, f"not a parameter: {call[2][position:].strip()[:80]!r}")
    return _call_of(body, call[1], arguments)


# ---- keys and values in tags that are control tokens: GLM


def write_keyed_call(call: ToolCall, newline: str = "") -> Pieces:
    """Yield the pieces of a call in the form `NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value>...`.

    Strings are written without quotes, other values as JSON. GLM-4.5 writes a newline after the name and each tag that
    closes.
    """
    yield text(checked_name(call.function.name), Part.TOOL_CALL)
    yield markup(newline, Part.TOOL_CALL)
    for key, value in arguments_of(call).items():
        spelled = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for tag, inside in (("arg_key", key), ("arg_value", spelled)):
            yield markup(f"<{tag}>", Part.TOOL_CALL)
            yield text(inside, Part.TOOL_CALL)
            yield markup(f"</{tag}>{newline}", Part.TOOL_CALL)


def read_keyed_call(fields: Sequence[str], tools: Sequence[ToolSpec] = ()) -> ToolCall | UnparsedToolCall:
    """Parse a call that `write_keyed_call` wrote. A parameter that is declared as a string stays a string.

    The first field is the name. After it come keys and values in turn, each followed by the empty text before the next
    tag.
    """
    name = fields[0].strip()
    inside, between = fields[1::2], [field.strip() for field in fields[2::2]]
    if not name or len(inside) % 2 or any(between) or len(inside) != len(between):
        return UnparsedToolCall("".join(fields), "expected a name and pairs of keys and values")
    root, schemas = declared_schemas(name, tools)
    arguments = [(k, read_value(v, schemas.get(k), root)) for k, v in zip(inside[::2], inside[1::2], strict=True)]
    return _call_of("".join(fields), name, arguments)


def _call_of(raw: str, name: str, arguments: Sequence[tuple[str, Any]]) -> ToolCall | UnparsedToolCall:
    try:
        return ToolCall(ToolCall.FunctionBody(name, write_arguments(unique_dict(arguments))))
    except ValueError as error:
        return UnparsedToolCall(raw, str(error))


# ---- a name and JSON, divided by a control token: DeepSeek, Kimi


def write_named_call(name: str, separator: str, call: ToolCall) -> Pieces:
    """Yield the pieces of a call: `name`, the control token `separator`, and the unchanged text of the arguments."""
    yield text(checked_name(name), Part.TOOL_CALL)
    yield markup(separator, Part.TOOL_CALL)
    yield text(call.function.arguments, Part.TOOL_CALL)


def read_named_call(fields: Sequence[str], tools: Sequence[ToolSpec] = ()) -> ToolCall | UnparsedToolCall:
    """Parse a call that `write_named_call` wrote. The fields are the name and the arguments."""
    if len(fields) != 2:
        return UnparsedToolCall("".join(fields), "expected a name and arguments")
    name, arguments = fields
    if not name.strip() or not is_object(arguments):
        return UnparsedToolCall("".join(fields), "the arguments are not a JSON object" if name.strip() else "no name")
    return ToolCall(ToolCall.FunctionBody(name.strip(), arguments))


def read_numbered_call(fields: Sequence[str], tools: Sequence[ToolSpec] = ()) -> ToolCall | UnparsedToolCall:
    """Parse a Kimi call. The fields are the id of the call, `functions.NAME:NUMBER`, and the arguments."""
    call = read_named_call(fields, tools)
    if isinstance(call, UnparsedToolCall):
        return call
    return ToolCall(
        ToolCall.FunctionBody(name_in_id(call.function.name), call.function.arguments), id=call.function.name
    )


def name_in_id(call_id: str) -> str:
    """Return the name of the function in the id of a Kimi call: `functions.NAME:NUMBER` -> `NAME`."""
    return re.sub(r":\d+$", "", call_id.removeprefix("functions.")) or call_id


# ---- a list of JSON objects, and a name, an id and JSON: Mistral


def _checked_call_id(call: ToolCall) -> str:
    if not call.id:
        raise RenderError(
            f"the call of {call.function.name!r} has no 'id', which the chat format writes; set it, and the "
            "'tool_call_id' of its result, to nine letters and digits"
        )
    return call.id


def write_listed_calls(calls: Sequence[ToolCall]) -> str:
    """Return all calls of a reply as a JSON list of objects with `name`, `arguments` and `id` (Mistral until v7)."""
    listed = [
        {"name": checked_name(call.function.name), "arguments": arguments_of(call), "id": _checked_call_id(call)}
        for call in calls
    ]
    return json.dumps(listed, ensure_ascii=False)


def write_identified_call(call: ToolCall, before_id: str, before_arguments: str) -> Pieces:
    """Yield the pieces of a call: its name, its id and the unchanged text of the arguments, with control tokens."""
    yield text(checked_name(call.function.name), Part.TOOL_CALL)
    yield markup(before_id, Part.TOOL_CALL)
    yield text(_checked_call_id(call), Part.TOOL_CALL)
    yield markup(before_arguments, Part.TOOL_CALL)
    yield text(call.function.arguments, Part.TOOL_CALL)


def read_identified_call(fields: Sequence[str], tools: Sequence[ToolSpec] = ()) -> ToolCall | UnparsedToolCall:
    """Parse a call that `write_identified_call` wrote. The fields are the name, the id and the arguments."""
    if len(fields) != 3:
        return UnparsedToolCall("".join(fields), "expected a name, an id and arguments")
    name, call_id, arguments = fields
    call = read_named_call((name, arguments), tools)
    return call if isinstance(call, UnparsedToolCall) or not call_id else ToolCall(call.function, id=call_id)


# ---- XML tags that are spelled with one control token: DeepSeek V4.1

DSML = "｜DSML｜"
"""The control token in every tag of a call, as in `<｜DSML｜ calls>`."""


def write_dsml_calls(calls: Sequence[ToolCall]) -> Pieces:
    """Yield the pieces of all calls of a reply: one block of `invoke` tags, in which `parameter` tags hold arguments.

    Strings are written without quotes, other values as JSON.

    Raises:
        RenderError: a parser could not read a name back.
    """

    def tag(spelled: str) -> Piece:
        return markup(spelled.replace("DSML", DSML), Part.TOOL_CALL)

    yield tag("\n\n<DSML calls>")
    for call in calls:
        yield tag('\n<DSML invoke name="')
        yield text(checked_name(call.function.name), Part.TOOL_CALL)
        yield tag('">\n')
        for i, (key, value) in enumerate(arguments_of(call).items()):
            if '"' in key:
                raise RenderError(f"the argument {key!r} of {call.function.name!r} has a quote in its name; rename it")
            yield tag('\n<DSML parameter name="' if i else '<DSML parameter name="')
            yield text(key, Part.TOOL_CALL)
            yield tag('" string="true">' if isinstance(value, str) else '" string="false">')
            yield text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), Part.TOOL_CALL)
            yield tag("</DSML parameter>")
        yield tag("\n</DSML invoke>")
    yield tag("\n</DSML calls>")


_DSML_INVOKE = re.compile(r' invoke name="([^"]+)">\s*')
_DSML_PARAMETER = re.compile(r' parameter name="([^"]*)" string="(true|false)">(.*)', re.DOTALL)


def read_dsml_calls(fields: Sequence[str]) -> list[ToolCall] | str:
    """Parse the calls of a reply that `write_dsml_calls` wrote. Return them, or why they cannot be read.

    The fields are the texts after each control token. A text ends with `<` or `</`, which begins the next tag.
    """
    calls: list[ToolCall] = []
    name, arguments, inside = "", {}, ""
    closes = False
    for field in fields:
        body = field.removesuffix("</") if field.endswith("</") else field.removesuffix("<")
        invoke, parameter = _DSML_INVOKE.fullmatch(body), _DSML_PARAMETER.fullmatch(body)
        if closes and body.strip() == f"{inside}>":
            if inside == "invoke":
                calls.append(ToolCall(ToolCall.FunctionBody(name, write_arguments(arguments))))
            inside = {"parameter": "invoke", "invoke": "calls"}.get(inside, "nothing")
        elif not closes and not inside and body.strip() == "calls>":
            inside = "calls"
        elif not closes and inside == "calls" and invoke:
            name, arguments, inside = invoke[1], {}, "invoke"
        elif not closes and inside == "invoke" and parameter and parameter[1] not in arguments:
            try:
                value = parameter[3] if parameter[2] == "true" else STRICT_JSON.decode(parameter[3])
            except (ValueError, RecursionError) as error:
                return f"the argument {parameter[1]!r} is not JSON: {error}"
            arguments[parameter[1]], inside = value, "parameter"
        else:
            return f"not expected in the calls: {body[:80]!r}"
        closes = field.endswith("</")
    return calls if inside == "nothing" and calls else "the calls were not finished"


# ---- a message of its own, whose header names the function: Inkling


def write_message_call(call: ToolCall) -> str:
    """Return the call as `{"name":"NAME","args":{...}}`, without spaces, with the arguments sorted by name."""
    body = {"name": checked_name(call.function.name), "args": dict(sorted(arguments_of(call).items()))}
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"))


def read_message_call(fields: Sequence[str], tools: Sequence[ToolSpec] = ()) -> ToolCall | UnparsedToolCall:
    """Parse a call that `write_message_call` wrote. The fields are the name in the header and the JSON."""
    header, body = fields
    try:
        call = STRICT_JSON.decode(body)
    except (ValueError, RecursionError) as error:
        return UnparsedToolCall(body, f"not JSON: {error}")
    if not isinstance(call, dict) or call.keys() != {"name", "args"} or not isinstance(call["args"], dict):
        return UnparsedToolCall(body, "expected an object with 'name' and 'args'")
    if call["name"] != header or not header:
        return UnparsedToolCall(body, f"the header names {header!r}, and the call names {call['name']!r}")
    return ToolCall(ToolCall.FunctionBody(header, write_arguments(call["args"])))


# ---- a message to a function: gpt-oss, whose headers `families.gpt_oss` writes and `families.harmony` reads


def harmony_recipient(call: ToolCall, tools: Sequence[ToolSpec] = ()) -> str:
    """Return the recipient of a gpt-oss call: `functions.NAME`, or `NAME` for a built-in tool.

    A built-in tool has a namespace of its own, as in `browser.search`, and is not declared.
    """
    name = checked_name(call.function.name)
    is_built_in = "." in name and name not in [tool["name"] for tool in tools]
    return name if is_built_in else f"functions.{name}"


def read_harmony_call(fields: Sequence[str], tools: Sequence[ToolSpec] = ()) -> ToolCall | UnparsedToolCall:
    """Parse a gpt-oss message to a tool. The fields are the recipient and the text of the message.

    A recipient that `harmony_recipient` would not write again stays whole, as the name of the function.
    """
    recipient, arguments = fields
    name = recipient.removeprefix("functions.")
    if "." in name and name not in [tool["name"] for tool in tools]:
        name = recipient
    if not name:
        return UnparsedToolCall(arguments, "the header of the message does not name one function")
    if not is_object(arguments):
        return UnparsedToolCall(f"{recipient} {arguments}", "the arguments are not a JSON object")
    return ToolCall(ToolCall.FunctionBody(name, arguments))

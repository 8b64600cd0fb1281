"""Gemma 4's syntax for values, in which it declares tools, calls them and gives their results.

    call:f{city:<|"|>Bern<|"|>,days:3}

The control token `<|"|>` is on both sides of every string. A text in this syntax is therefore a list of *fields*, which
this token divides: syntax and strings in turn. Keys are sorted. Values without quotes are as in JSON, except `None`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tinkerloop.errors import RenderError
from tinkerloop.messages import ToolCall, ToolSpec, UnparsedToolCall
from tinkerloop.renderers.pieces import Part, Pieces, markup, text
from tinkerloop.renderers.tool_arguments import arguments_of, checked_name, write_arguments
from tinkerloop.strict_json import STRICT_JSON

QUOTE = '<|"|>'


class _Fields(list[str]):
    """The fields of a text that is being written."""

    def __init__(self) -> None:
        super().__init__([""])

    def add(self, syntax: str) -> None:
        self[-1] += syntax

    def quote(self, string: str) -> None:
        self.extend((string, ""))

    def value(self, value: Any, *, quotes_keys: bool = False) -> None:
        if isinstance(value, str):
            self.quote(value)
        elif isinstance(value, bool):
            self.add("true" if value else "false")
        elif isinstance(value, Mapping):
            self.add("{")
            self.members(value, quotes_keys=quotes_keys)
            self.add("}")
        elif isinstance(value, (list, tuple)):
            self.add("[")
            for i, inside in enumerate(value):
                self.add("," if i else "")
                self.value(inside, quotes_keys=quotes_keys)
            self.add("]")
        else:
            self.add(str(value))

    def members(self, value: Mapping[str, Any], *, quotes_keys: bool = False) -> None:
        for i, (key, inside) in enumerate(_sorted(value)):
            self.add("," if i else "")
            if quotes_keys:
                self.quote(key)
            else:
                self.add(key)
            self.add(":")
            self.value(inside, quotes_keys=quotes_keys)

    def pieces(self, part: Part) -> Pieces:
        for i, field in enumerate(self):
            if i:
                yield markup(QUOTE, part)
            yield text(field, part)


def _sorted(value: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return sorted(value.items(), key=lambda item: item[0].lower())


# ---- calls and results

_KEY = r"[^\s{}\[\]<>,:\"\\]+"
_CALL = re.compile(r"\s*call:([^\s{]+)(\{.*)", re.DOTALL)
_MEMBER = re.compile(rf"([{{,])({_KEY}):")
_NONE = re.compile(r"(?<=[:,\[])None(?=[,}\]])")


def write_quoted_call(call: ToolCall) -> Pieces:
    """Return the pieces of a call between its tags.

    Raises:
        RenderError: a parser could not read a name back.
    """
    arguments = arguments_of(call)
    for key in _keys(arguments):
        if not re.fullmatch(_KEY, key):
            raise RenderError(
                f"the argument {key!r} of {call.function.name!r} could not be read back by a parser; remove spaces, "
                "quotes, brackets, commas and colons from its name"
            )
    written = _Fields()
    written.add(f"call:{checked_name(call.function.name)}")
    written.value(arguments)
    return written.pieces(Part.TOOL_CALL)


def _keys(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [*value, *(key for inside in value.values() for key in _keys(inside))]
    return [key for inside in value for key in _keys(inside)] if isinstance(value, list) else []


def read_quoted_call(fields: Sequence[str], tools: Sequence[ToolSpec] = ()) -> ToolCall | UnparsedToolCall:
    """Parse a call that `write_quoted_call` wrote."""
    call = _CALL.fullmatch(fields[0])
    if call is None or len(fields) % 2 == 0:
        return UnparsedToolCall(QUOTE.join(fields), "expected call:NAME{KEY:VALUE,...}")
    syntax = [_NONE.sub("null", _MEMBER.sub(r'\1"\2":', field)) for field in (call[2], *fields[2::2])]
    written = [json.dumps(field) if i % 2 else syntax[i // 2] for i, field in enumerate(fields)]
    try:
        arguments = STRICT_JSON.decode("".join(written))
    except (ValueError, RecursionError) as error:
        return UnparsedToolCall(QUOTE.join(fields), f"not a list of arguments: {error}")
    return ToolCall(ToolCall.FunctionBody(call[1], write_arguments(arguments)))


def write_result(name: str, content: str) -> Pieces:
    """Return the pieces of the result of a tool call between its tags."""
    written = _Fields()
    written.add(f"response:{name}{{value:")
    written.quote(content)
    written.add("}")
    return written.pieces(Part.TEXT)


# ---- declarations

_OF_SCHEMAS = ("description", "type", "properties", "required", "nullable")


def declare_for_quoted_calls(tools: Sequence[ToolSpec]) -> Pieces:
    """Declare tools, each between the tags `<|tool>` and `<tool|>`. Types are in capital letters."""
    for tool in tools:
        written = _Fields()
        written.add(f"declaration:{tool['name']}{{description:")
        written.quote(str(tool.get("description", "")))
        if parameters := tool.get("parameters"):
            written.add(",parameters:{")
            if parameters.get("properties"):
                written.add("properties:{")
                _add_parameters(written, parameters["properties"])
                written.add("},")
            if parameters.get("required"):
                _add_required(written, parameters["required"])
                written.add(",")
            if parameters.get("type"):  # the template closes the bracket only here
                written.add("type:")
                written.quote(str(parameters["type"]).upper())
                written.add("}")
        written.add("}")
        yield markup("<|tool>", Part.SCAFFOLD)
        yield from written.pieces(Part.SCAFFOLD)
        yield markup("<tool|>", Part.SCAFFOLD)


def _add_required(written: _Fields, names: Sequence[str]) -> None:
    written.add("required:")
    written.value([str(name) for name in names])


def _add_parameters(written: _Fields, properties: Mapping[str, Any]) -> None:
    for i, (key, given) in enumerate(_sorted(properties)):
        schema: Mapping[str, Any] = given if isinstance(given, Mapping) else {}  # e.g. `true`, which allows any value
        kind = str(schema.get("type", "")).upper()
        written.add(f"{',' if i else ''}{key}:{{")
        if schema.get("description"):
            written.add("description:")
            written.quote(str(schema["description"]))
            written.add(",")
        if kind == "STRING" and schema.get("enum"):
            written.add("enum:")
            written.value(schema["enum"], quotes_keys=True)
            written.add(",")
        elif kind == "ARRAY" and isinstance(schema.get("items"), Mapping) and schema["items"]:
            written.add("items:{")
            _add_items(written, schema["items"])
            written.add("},")
        if schema.get("nullable"):
            written.add("nullable:true,")
        if kind == "OBJECT":
            inside = schema.get("properties")
            if not isinstance(inside, Mapping):  # then the template takes the schema's further keys for properties
                inside = {name: value for name, value in schema.items() if name not in _OF_SCHEMAS}
            written.add("properties:{")
            _add_parameters(written, inside)
            written.add("},")
            if schema.get("required"):
                _add_required(written, schema["required"])
                written.add(",")
        written.add("type:")
        written.quote(kind)
        written.add("}")


def _add_items(written: _Fields, items: Mapping[str, Any]) -> None:
    members = [(key, value) for key, value in _sorted(items) if value is not None]
    for i, (key, value) in enumerate(members):
        written.add("," if i else "")
        if key == "properties":
            written.add("properties:{")
            _add_parameters(written, value if isinstance(value, Mapping) else {})
            written.add("}")
        elif key == "required":
            _add_required(written, value)
        else:
            written.add(f"{key}:")
            if key == "type":
                value = value.upper() if isinstance(value, str) else [str(one).upper() for one in value]
            written.value(value, quotes_keys=True)

"""Kimi's declarations of tools: sorted JSON for K2, and TypeScript for K2.5 and later.

The reference is not the template alone but the publisher's tokenizer class. Its `apply_chat_template` sorts all keys of
the tools, converts the tools to TypeScript, and passes the text to the template. The JSON of the template serves only
if the conversion fails. For example, a tool with a required string and an optional array becomes:

    # Tools

    ## functions
    namespace functions {
    // Looks up the weather.
    type get_weather = (_: {
      // Where
      city: string,
      days?: Array<number>
    }) => any;
    }
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tinkerloop.messages import ToolSpec
from tinkerloop.renderers.tool_declarations import openai_declaration


def sorted_json_declarations(tools: Sequence[ToolSpec]) -> str:
    """Return the declarations as one JSON array without spaces, with the keys of all objects sorted."""
    declarations = list(map(openai_declaration, tools))
    return json.dumps(declarations, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def typescript_declarations(tools: Sequence[ToolSpec]) -> str:
    """Return the declarations in TypeScript; as `sorted_json_declarations` if a schema cannot be converted."""
    try:
        declared = "".join(_function(_sorted(tool)) + "\n" for tool in tools)
    except (_NoTypeScriptError, AttributeError, KeyError, TypeError, RecursionError):
        return sorted_json_declarations(tools)
    return f"# Tools\n\n## functions\nnamespace functions {{\n{declared}}}\n"


class _NoTypeScriptError(Exception):
    """Error for a schema that the publisher's conversion rejects."""


def _sorted(value: Any) -> Any:
    """Return a JSON value in which the keys of all objects are sorted."""
    if isinstance(value, Mapping):
        return {key: _sorted(value[key]) for key in sorted(value)}
    if isinstance(value, (list, tuple)):
        return [_sorted(element) for element in value]
    return value


@dataclass
class _Scope:
    """The named schemas of one tool's parameters, and whether a schema refers to the parameters themselves."""

    named: dict[str, Any] = field(default_factory=dict)
    has_self_reference: bool = False

    def name_of(self, reference: str) -> str:
        """Return the TypeScript name for a `$ref`: `#` is the whole schema, `#/$defs/NAME` is a named one."""
        if reference == "#":
            self.has_self_reference = True
            return "parameters"
        name = reference.split("/")[-1]
        if not reference.startswith("#/$defs/") or not isinstance(self.named.get(name), Mapping):
            raise _NoTypeScriptError(reference)
        return name


_INDENT = "  "
_SCALARS_OF_UNIONS = {
    "string": "string", "number": "number", "integer": "number", "boolean": "boolean", "null": "null", "object": "{}",
    "array": "Array<any>",
}  # fmt: skip
_CONSTRAINTS = {
    "string": ("maxLength", "minLength", "pattern"), "array": ("maxItems", "minItems"),
    "number": ("maximum", "minimum"), "integer": ("maximum", "minimum"),
}  # fmt: skip


def _function(tool: Mapping[str, Any]) -> str:
    """Return one function type, after the interfaces of its named schemas and its description."""
    scope = _Scope()
    schema = tool.get("parameters") or {}
    properties = _properties(schema, _INDENT, scope)
    lines: list[str] = []
    parameters = _object_of(properties, "")
    if scope.has_self_reference:
        own = [written for _, _, written in properties if not written.startswith(f"{_INDENT}[k: string]")]
        inside = "\n" + ",\n".join(own) + "\n" if own else ""
        lines.append(f"interface parameters {{{inside}}}")
        parameters = "parameters"
    for name, named in list(scope.named.items()):
        written = _type(named, "", scope)
        comment = _comment(named.get("description"), "")
        lines.append(f"{comment}interface {name} {written}")
    lines.append(f"{_comment(tool.get('description'), '')}type {tool['name']} = (_: {parameters}) => any;")
    return "\n".join(lines)


def _comment(description: Any, indent: str) -> str:
    """Return a description as comment lines. An empty line in the description stays empty."""
    if not description:
        return ""
    return "".join(f"{indent}// {line}\n" if line else "\n" for line in description.split("\n"))


_Property = tuple[int, str, str]
"""The rank of a property (0 required, 1 optional, 2 all further keys), its name, and its text with comments."""


def _properties(schema: Mapping[str, Any], indent: str, scope: _Scope) -> list[_Property]:
    """Return the properties of an object schema in the order of the schema."""
    scope.named.update(schema.get("$defs") or {})
    written: list[_Property] = []
    further = schema.get("additionalProperties")
    if further is not None:
        if isinstance(further, bool):
            value = "any" if further else "never"
        elif isinstance(further, Mapping):
            value = _type(further, indent, scope)
        else:
            raise _NoTypeScriptError(further)
        written.append((2, "", f"{indent}[k: string]: {value}"))
    declared = schema.get("properties", {})
    required = set(schema.get("required", ())) if "properties" in schema else set()
    for name, inner in declared.items():
        optional = name not in required
        comments = _comments(inner, indent)
        default = inner.get("default") if isinstance(inner, Mapping) else None
        if default is not None:
            spelled = repr(default) if isinstance(default, (int, float)) else json.dumps(default, ensure_ascii=False)
            comments += f"{indent}// Default: {spelled}\n"
        type_ = _type(inner, indent, scope)
        written.append((int(optional), name, f"{comments}{indent}{name}{'?' if optional else ''}: {type_}"))
    return written


def _object_of(properties: Sequence[_Property], indent: str) -> str:
    """Return an object type: required properties by name, then optional ones by name, then all further keys."""
    if not properties:
        return "{}"
    inside = ",\n".join(written for _, _, written in sorted(properties, key=lambda item: item[:2]))
    return f"{{\n{inside}\n{indent}}}"


def _comments(schema: Any, indent: str) -> str:
    """Return the comment lines before a property or an element: its description, then its constraints."""
    if not isinstance(schema, Mapping):
        return ""
    comments = _comment(schema.get("description"), indent)
    kind = None if {"$ref", "anyOf", "enum"} & schema.keys() else schema.get("type")
    known = _CONSTRAINTS.get(kind, ()) if isinstance(kind, str) else ()
    if constraints := ", ".join(f"{key}: {schema[key]}" for key in known if key in schema):
        comments += f"{indent}// {constraints}\n"
    return comments


def _type(schema: Any, indent: str, scope: _Scope) -> str:
    """Return the TypeScript type of a schema, without comments. Its further lines are indented by `indent`."""
    if isinstance(schema, bool):
        return "any" if schema else "null"
    if "$ref" in schema:
        return scope.name_of(schema["$ref"])
    if "anyOf" in schema:
        return " | ".join([_type(variant, indent, scope) for variant in schema["anyOf"]])
    if "enum" in schema:
        _check_enum(schema)
        return " | ".join(f'"{value}"' if isinstance(value, str) else str(value) for value in schema["enum"])
    if "type" not in schema:
        if schema:
            raise _NoTypeScriptError(schema)
        return "any"
    kind = schema["type"]
    if isinstance(kind, list):
        return " | ".join([_SCALARS_OF_UNIONS[name] for name in kind])
    if kind == "object":
        return _object_of(_properties(schema, indent + _INDENT, scope), indent)
    if kind == "array":
        items = schema.get("items") or True
        inner = indent + _INDENT
        if comments := _comments(items, inner):
            return f"Array<\n{comments}{inner}{_type(items, inner, scope)}\n{indent}>"
        return f"Array<{_type(items, indent, scope)}>"
    return "number" if kind == "integer" else kind


_PYTHON_TYPES: dict[str, Any] = {"string": str, "number": (int, float), "integer": int, "boolean": bool}


def _check_enum(schema: Mapping[str, Any]) -> None:
    """Raise if a value of an enum has not the declared type. Null is always allowed."""
    kind = schema.get("type")
    if isinstance(kind, list):
        others = [name for name in kind if name != "null"]
        if len(kind) > 2 or (len(kind) == 2 and len(others) == 2) or not kind:
            raise _NoTypeScriptError(kind)
        kind = others[0] if others else "null"
    expected = _PYTHON_TYPES.get(kind) if isinstance(kind, str) else None
    if expected and not all(value is None or isinstance(value, expected) for value in schema["enum"]):
        raise _NoTypeScriptError(schema["enum"])

"""The names and arguments of tool calls: as JSON, and as values that a format writes without quotes."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tinkerloop.errors import RenderError
from tinkerloop.messages import ToolCall, ToolSpec
from tinkerloop.strict_json import STRICT_JSON, unique_dict

_PLAIN_NAME = re.compile(r"[^\s\"'\\<>{}]+")
_SURROGATE = re.compile("[\ud800-\udfff]")


def is_plain_name(name: str) -> bool:
    """Return whether a name can be written without quotes: it has no spaces, quotes or brackets."""
    return _PLAIN_NAME.fullmatch(name) is not None


def checked_name(name: str) -> str:
    """Return a function name unchanged, after checking that it can be written without quotes.

    Raises:
        RenderError: a parser could not read the name back.
    """
    if not is_plain_name(name):
        raise RenderError(
            f"the function name {name!r} contains spaces, quotes or brackets and could not be read back by a parser; "
            "rename the function"
        )
    return name


def arguments_of(call: ToolCall) -> dict[str, Any]:
    """Return the arguments of a call as a dictionary, for formats that write each argument separately.

    Raises:
        RenderError: the arguments are not a JSON object.
    """
    try:
        arguments = STRICT_JSON.decode(call.function.arguments)
        if "\\u" in call.function.arguments:  # JSON can escape an unpaired surrogate, which is not valid Unicode
            json.dumps(arguments, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise RenderError(f"the arguments of {call.function.name!r} are not JSON in valid Unicode: {error}") from None
    if not isinstance(arguments, dict):
        raise RenderError(f"the arguments of {call.function.name!r} must be a JSON object, got {arguments!r}")
    return arguments


def is_object(text: str) -> bool:
    """Return whether a text is a JSON object."""
    try:
        return isinstance(STRICT_JSON.decode(text), dict)
    except (ValueError, RecursionError):
        return False


def is_unicode(text: str) -> bool:
    """Return whether a text is valid Unicode: JSON can escape an unpaired surrogate, which is not."""
    return not _SURROGATE.search(text)


def write_arguments(arguments: dict[str, Any]) -> str:
    """Return arguments as JSON text. If they contain an unpaired surrogate, all non-ASCII characters are escaped.

    A model can write an unpaired surrogate as an escape in JSON, but it is not valid Unicode.
    """
    written = json.dumps(arguments, ensure_ascii=False)
    return written if is_unicode(written) else json.dumps(arguments)


def declared_schemas(name: str, tools: Sequence[ToolSpec]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the parameters of tool `name`, and their properties; both empty without such a tool."""
    for tool in tools:
        parameters = tool.get("parameters") or {}
        properties = parameters.get("properties")
        if tool["name"] == name and isinstance(properties, Mapping):
            return parameters, properties
    return {}, {}


_PYTHON_LITERALS: dict[str, Any] = {"True": True, "False": False, "None": None}


def read_value(written: str, schema: Any, root: Mapping[str, Any], *, python: bool = False) -> Any:
    """Convert an argument that is written without quotes to a value: `3` -> 3, `[1]` -> [1], `abc` -> "abc".

    Without a schema, the text determines the type. With a schema, the value is the text itself if the schema allows
    this string but not the other value, and also if it allows both, except for null.

    Args:
        schema: the declared JSON schema of the argument.
        root: the schema of all parameters, to which a `$ref` refers.
        python: also convert Python's `True`, `False` and `None`.
    """
    value = _value_of(written, python=python)
    if isinstance(value, str) or (value is None and schema_allows(schema, value, root)):
        return value
    is_declared = isinstance(schema, Mapping) and not schema_allows(schema, object(), root)
    return written if is_declared and schema_allows(schema, written, root) else value


def _value_of(written: str, *, python: bool) -> Any:
    if python and written in _PYTHON_LITERALS:
        return _PYTHON_LITERALS[written]
    try:
        value = STRICT_JSON.decode(written)
    except (ValueError, RecursionError):
        return written
    return written if isinstance(value, str) else value


def read_keywords(call: ast.Call) -> dict[str, Any]:
    """Return the arguments of a call in Python: `f(a=1, b=["x"])` -> {"a": 1, "b": ["x"]}.

    Raises:
        ValueError: an argument has no name, is not a literal or not a value of JSON, or a name or a key is repeated.
            For some of these it is TypeError, and RecursionError or MemoryError for values that are nested too deeply.
    """
    if call.args or any(keyword.arg is None for keyword in call.keywords):
        raise ValueError("expected NAME(KEY=VALUE, ...)")
    for node in ast.walk(call):
        if isinstance(node, ast.Dict):
            unique_dict([(ast.literal_eval(key), None) for key in node.keys if key is not None])
    arguments = unique_dict([(str(keyword.arg), ast.literal_eval(keyword.value)) for keyword in call.keywords])
    if STRICT_JSON.decode(json.dumps(arguments)) != arguments:
        raise ValueError("an argument has no equal in JSON, such as a tuple")
    return arguments


_JSON_TYPES: dict[str, Any] = {
    "string": str, "number": (int, float), "integer": int, "boolean": bool, "null": type(None), "array": list,
    "object": dict,
}  # fmt: skip


def schema_allows(schema: Any, value: Any, root: Mapping[str, Any], depth: int = 0) -> bool:
    """Return whether a schema allows a value, by its `type`, `enum`, `const`, `anyOf`, `oneOf`, `allOf` and `$ref`.

    An unknown or circular reference allows everything, and so does a schema without these keys. Any other object as
    `value` stands for a value of no JSON type: it is allowed only by a schema that restricts nothing.
    """
    if not isinstance(schema, Mapping) or depth > 20:
        return True
    if isinstance(reference := schema.get("$ref"), str):
        target: Any = root
        for key in reference.removeprefix("#").split("/")[1:]:
            target = target.get(key) if isinstance(target, Mapping) else None
        return schema_allows(target, value, root, depth + 1)
    if "const" in schema and not _is_equal(schema["const"], value):
        return False
    if isinstance(allowed := schema.get("enum"), list) and not any(_is_equal(one, value) for one in allowed):
        return False
    kinds = schema.get("type")
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if isinstance(kinds, list) and kinds and not any(_has_type(value, kind) for kind in kinds):
        return schema.get("nullable") is True and value is None
    return all(
        combine(schema_allows(variant, value, root, depth + 1) for variant in schema[key])
        for key, combine in (("anyOf", any), ("oneOf", any), ("allOf", all))
        if isinstance(schema.get(key), list) and schema[key]
    )


def _is_equal(one: Any, other: Any) -> bool:
    return type(one) is type(other) and one == other


def _has_type(value: Any, kind: Any) -> bool:
    is_number = kind in ("number", "integer")
    return isinstance(value, _JSON_TYPES.get(kind, ())) and not (is_number and isinstance(value, bool))

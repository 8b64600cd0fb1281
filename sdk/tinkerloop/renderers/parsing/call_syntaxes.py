"""Readers of tool calls in the syntaxes of public chat templates, for the renderer `template`.

Each reader gets the whole text of a call block, in which control tokens (such as `<arg_key>`) appear by name, and
returns all calls in it. The reader for a template is the first one that reads back the call that the template wrote.

| reader | example | used by |
|---|---|---|
| `read_json` | `{"name": "f", "arguments": {...}}`, one or several, or a list of them | Qwen2.5, Qwen3, Llama 3, Granite, Cohere, Mistral until v7 |
| `read_functions` | `<function=f><parameter=k>v</parameter></function>` | Qwen3-Coder, Qwen3.5, Seed, Step, Nemotron 3 |
| `read_invokes` | `<invoke name="f"><parameter name="k">v</parameter></invoke>`, with any prefix of the tags | DeepSeek V3.2 and V4 (DSML), MiniMax |
| `read_keys` | `f<arg_key>k</arg_key><arg_value>v</arg_value>` | GLM 4.5 to 5.2 |
| `read_named_json` | `f[ARGS]{...}`, with control tokens between name, id and arguments | Mistral from v11, DeepSeek V3 to V3.1, Kimi |
| `read_python` | `[f(k="v"), g()]` | LFM, Llama 3.2 and 4 |
| `read_gemma` | `call:f{k:<\\|"\\|>v<\\|"\\|>}` | Gemma 4 |
"""  # noqa: E501

from __future__ import annotations

import ast
import contextlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from tinkerloop.messages import ToolCall, ToolSpec, UnparsedToolCall
from tinkerloop.renderers.tool_arguments import (
    declared_schemas,
    is_object,
    is_unicode,
    read_keywords,
    read_value,
    write_arguments,
)
from tinkerloop.renderers.tool_calls import name_in_id, read_xml_call
from tinkerloop.strict_json import STRICT_JSON, check_depth, unique_dict

Calls = Sequence[ToolCall | UnparsedToolCall]
Reader = Callable[[str, Sequence[ToolSpec]], Calls]


def _unparsed(body: str, error: str) -> Calls:
    return (UnparsedToolCall(body, error),)


def _call(name: str, arguments: dict[str, Any], call_id: str | None = None) -> ToolCall:
    return ToolCall(ToolCall.FunctionBody(name, write_arguments(arguments)), id=call_id)


# ---- JSON

_NAMES = ("name", "tool_name")
_ARGUMENTS = ("arguments", "parameters", "args")
_IDS = ("id", "tool_call_id", "call_id")
_KEYS = frozenset((*_NAMES, *_ARGUMENTS, *_IDS, "type", "function"))


def read_json(body: str, tools: Sequence[ToolSpec] = ()) -> Calls:
    """Read one or several JSON objects, or a list of objects, each with a name and arguments."""
    try:
        values = list(_json_values(body))
    except (ValueError, RecursionError) as error:
        return _unparsed(body, f"not JSON: {error}")
    if len(values) == 1 and isinstance(values[0], list):
        values = values[0]
    calls = [_json_call(value) for value in values]
    if not calls or None in calls:
        return _unparsed(body, "expected objects with a name and arguments")
    return [call for call in calls if call is not None]


def _json_values(body: str) -> Iterator[Any]:
    """Yield the JSON values of a text, which white space or semicolons divide."""
    position = 0
    while match := re.compile(r"[^\s;]").search(body, position):
        _, position = json.JSONDecoder().raw_decode(body, match.start())
        yield STRICT_JSON.decode(body[match.start() : position])


def _json_call(value: Any) -> ToolCall | None:
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        outside = {key: value[key] for key in value if key != "function"}
        if outside.keys() & value["function"].keys():
            return None
        value = outside | value["function"]
    if not isinstance(value, dict) or not _KEYS.issuperset(value):
        return None
    if any(len(value.keys() & set(keys)) > 1 for keys in (_NAMES, _ARGUMENTS, _IDS)):  # one of them would be lost
        return None
    name = next((value[key] for key in _NAMES if key in value), None)
    arguments = next((value[key] for key in _ARGUMENTS if key in value), {})
    call_id = next((value[key] for key in _IDS if key in value), None)
    if isinstance(arguments, str) and is_object(arguments):
        arguments = STRICT_JSON.decode(arguments)
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    if not isinstance(call_id, str | None) or value.get("type") not in (None, "function"):
        return None
    return _call(name, arguments, call_id) if is_unicode(f"{name}{call_id or ''}") else None


# ---- XML


def read_functions(body: str, tools: Sequence[ToolSpec] = (), *, json_scalars: bool) -> Calls:
    """Read `<function=NAME>` tags with `<parameter=KEY>` tags in them, with or without line breaks inside the tags.

    `json_scalars` tells how the template spells truth values and null (see `read_xml_call`).
    """
    calls: list[ToolCall | UnparsedToolCall] = []
    for found in re.finditer(r"\s*(<function=[^>\n]+>)(.*?)</function>\s*|\s*(\S.*)", body, re.DOTALL):
        opening, inside, rest = found.groups()
        if rest is not None:
            return _unparsed(body, f"not a function: {rest[:80]!r}")
        inside = re.sub(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>\s*", r"<parameter=\1>\n\2\n</parameter>\n",
                        inside.lstrip(), flags=re.DOTALL)  # fmt: skip
        calls.append(read_xml_call([f"{opening}\n{inside}</function>"], tools, json_scalars=json_scalars))
    return calls or _unparsed(body, "expected <function=NAME> ... </function>")


_INVOKE = re.compile(r'<([^\s<>/]*?)invoke name="([^"]+)">(.*?)</\1invoke>', re.DOTALL)
_INVOKED = re.compile(
    r'<([^\s<>/]*?)parameter name="([^"]+)"(?: string="(true|false)")?>(.*?)</\1parameter>', re.DOTALL
)


def read_invokes(body: str, tools: Sequence[ToolSpec] = ()) -> Calls:
    """Read `<invoke name="NAME">` tags. `string="true"` marks a string; without it the declared type decides."""
    calls: list[ToolCall] = []
    for _, name, inside in _INVOKE.findall(body):
        root, schemas = declared_schemas(name, tools)
        arguments: dict[str, Any] = {}
        for _, key, is_string, value in _INVOKED.findall(inside):
            if key in arguments:
                return _unparsed(body, f"the argument {key!r} occurs more than once")
            arguments[key] = value if is_string == "true" else read_value(value, schemas.get(key), root)
            if is_string == "false":  # JSON, also where the declared type is a string
                with contextlib.suppress(ValueError, RecursionError):
                    arguments[key] = STRICT_JSON.decode(value)
        if _INVOKED.sub("", inside).strip():
            return _unparsed(body, f"not a parameter: {_INVOKED.sub('', inside).strip()[:80]!r}")
        calls.append(_call(name, arguments))
    rest = re.sub(r"</?[^<>]*calls?>|\w*calls>", "", _INVOKE.sub("", body)).strip(" \n<")  # tags around all calls
    return _unparsed(body, f"not a call: {rest[:80]!r}") if rest or not calls else calls


# ---- keys and values

_KEYED = re.compile(r"\s*<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>\s*", re.DOTALL)


def read_keys(body: str, tools: Sequence[ToolSpec] = ()) -> Calls:
    """Read a name and `<arg_key>KEY</arg_key><arg_value>VALUE</arg_value>` for each argument."""
    name, tag, _ = body.partition("<arg_key>")
    name = name.strip()
    pairs = _KEYED.findall(body)
    if not re.fullmatch(r"[^\s<>{}\"]+", name) or _KEYED.sub("", body).strip() != name or bool(tag) != bool(pairs):
        return _unparsed(body, "expected a name and pairs of keys and values")
    root, schemas = declared_schemas(name, tools)
    try:
        return [_call(name, unique_dict([(key, read_value(value, schemas.get(key), root)) for key, value in pairs]))]
    except ValueError as error:
        return _unparsed(body, str(error))


# ---- a name and JSON

_TOKEN = r"(?:\[[A-Z_]+\]|<[|｜][^<>]+[|｜]>)"
_NAMED = re.compile(
    rf"\s*(?:{_TOKEN}\s*)*(?:function{_TOKEN})?(?P<name>[^\s\[<{{\"]+)\s*(?:\[CALL_ID\](?P<id>\w+))?"
    rf"(?:{_TOKEN})?\s*(?:```json)?\s*(?P<arguments>\{{)"
)
_AFTER_NAMED = re.compile(rf"\s*(?:```)?\s*(?:{_TOKEN}\s*)*")


def read_named_json(body: str, tools: Sequence[ToolSpec] = ()) -> Calls:
    """Read names, each followed by arguments in JSON. Control tokens divide them. A name may be the id of Kimi's calls.

    The text of the arguments is kept as it was sampled.
    """
    calls: list[ToolCall] = []
    position = 0
    while position < len(body):
        found = _NAMED.match(body, position)
        if found is None:
            return _unparsed(body, f"not a name with arguments: {body[position : position + 80]!r}")
        try:
            _, end = json.JSONDecoder().raw_decode(body, found.start("arguments"))
        except (ValueError, RecursionError) as error:
            return _unparsed(body, f"the arguments are not JSON: {error}")
        arguments = body[found.start("arguments") : end]
        if not is_object(arguments):
            return _unparsed(body, "the arguments are not a JSON object")
        name, call_id = found["name"], found["id"]
        if re.fullmatch(r"functions\..+:\d+", name):
            name, call_id = name_in_id(name), name
        calls.append(ToolCall(ToolCall.FunctionBody(name, arguments), id=call_id))
        after = _AFTER_NAMED.match(body, end)
        position = after.end() if after else end
    return calls or _unparsed(body, "expected a name and arguments")


# ---- Python


def read_python(body: str, tools: Sequence[ToolSpec] = ()) -> Calls:
    """Read a list of calls of Python functions, whose arguments have names and are literals; the list may be bare."""
    try:
        parsed = ast.parse(body.strip(), mode="eval").body
        nodes = parsed.elts if isinstance(parsed, (ast.List, ast.Tuple)) else [parsed]
        calls = [_python_call(node) for node in nodes]
    except (SyntaxError, ValueError, RecursionError, MemoryError, TypeError) as error:
        return _unparsed(body, f"not a list of calls with literal arguments: {error}")
    return calls or _unparsed(body, "the list has no calls")


def _python_call(node: ast.expr) -> ToolCall:
    if not isinstance(node, ast.Call):
        raise ValueError("expected NAME(KEY=VALUE, ...)")
    for keyword in node.keywords:
        keyword.value = _with_json_names(keyword.value)
    return _call(ast.unparse(node.func), read_keywords(node))


def _with_json_names(node: ast.expr) -> ast.expr:
    """Return the literal with JSON's `true`, `false` and `null` as values."""
    constants: dict[str, Any] = {"true": True, "false": False, "null": None}

    class Replace(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:
            return ast.Constant(constants[node.id]) if node.id in constants else node

    return Replace().visit(node)


# ---- Gemma 4

_QUOTE = '<|"|>'
_GEMMA_CALL = re.compile(r"\s*call:([^\s{]+)\{")
_GEMMA_ATOM = re.compile(r"[^,{}\[\]<:]+")


def read_gemma(body: str, tools: Sequence[ToolSpec] = ()) -> Calls:
    """Read `call:NAME{KEY:VALUE,...}`. The token `<|"|>` is on both sides of each string; keys have no quotes."""
    found = _GEMMA_CALL.match(body)
    try:
        if found is None:
            raise ValueError("expected call:NAME{")
        arguments, end = _gemma_object(body, found.end())
        check_depth(arguments, end)
        if body[end:].strip():
            raise ValueError(f"text after the call: {body[end : end + 80]!r}")
    except (ValueError, RecursionError) as error:
        return _unparsed(body, str(error))
    return [_call(found[1], arguments)]


def _gemma_object(body: str, at: int) -> tuple[dict[str, Any], int]:
    """Read an object whose opening bracket ends at `at`. Return it and the position after it."""
    values: dict[str, Any] = {}
    while not body.startswith("}", at):
        if body.startswith(_QUOTE, at):
            key, at = _gemma_value(body, at)
            if not body.startswith(":", at):
                raise ValueError(f"expected ':' at character {at}")
        else:
            key, colon, _ = body[at:].partition(":")
            if not colon:
                raise ValueError(f"expected a key at character {at}")
            at += len(key)
        if key in values:
            raise ValueError(f"the key {key!r} occurs more than once in one object")
        values[key], at = _gemma_value(body, at + 1)
        at = _gemma_comma(body, at, "}")
    return values, at + 1


def _gemma_value(body: str, at: int) -> tuple[Any, int]:
    if body.startswith(_QUOTE, at):
        end = body.find(_QUOTE, at + len(_QUOTE))
        if end < 0:
            raise ValueError("a string has no end")
        return body[at + len(_QUOTE) : end], end + len(_QUOTE)
    if body.startswith("{", at):
        return _gemma_object(body, at + 1)
    if body.startswith("[", at):
        values, at = [], at + 1
        while not body.startswith("]", at):
            value, at = _gemma_value(body, at)
            values.append(value)
            at = _gemma_comma(body, at, "]")
        return values, at + 1
    atom = _GEMMA_ATOM.match(body, at)
    if atom is None:
        raise ValueError(f"expected a value at character {at}")
    return STRICT_JSON.decode({"None": "null"}.get(atom[0].strip(), atom[0])), atom.end()


def _gemma_comma(body: str, at: int, closing: str) -> int:
    """Return the position after a comma, or the position of the closing bracket."""
    if body.startswith(",", at):
        return at + 1
    if not body.startswith(closing, at):
        raise ValueError(f"expected ',' or {closing!r} at character {at}")
    return at


READERS: tuple[Reader, ...] = (
    read_json,
    partial(read_functions, json_scalars=True),
    partial(read_functions, json_scalars=False),
    read_invokes,
    read_keys,
    read_named_json,
    read_python,
    read_gemma,
)
"""All readers, in the order in which they are tried."""


def reader_for(body: str, call: ToolCall, tools: Sequence[ToolSpec]) -> Reader | None:
    """Return the first reader that reads exactly `call` in `body`, or None."""
    for reader in READERS:
        calls = reader(body, tools)
        if len(calls) == 1 and isinstance(calls[0], ToolCall) and _is_same(calls[0], call):
            return reader
    return None


def _is_same(one: ToolCall, other: ToolCall) -> bool:
    arguments = [json.loads(call.function.arguments) for call in (one, other)]
    return one.function.name == other.function.name and arguments[0] == arguments[1]

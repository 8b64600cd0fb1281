"""Tool calls that are ordinary text of a reply, as in Llama 3: finding, reading and writing.

The chat format has one form, which `write_text_call` writes: `{"name": "f", "parameters": {"a": 1}}` and nothing else.
Models of this format also write other forms, most of them described in Meta's model cards:

    {"type": "function", "name": "f", "arguments": {"a": 1}}            other keys, another order, other spaces
    {"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}    several calls, also as a JSON list
    <|python_tag|>{"name": "f", "parameters": {"a": 1}}                 calls after the tag of built-in tools
    <|python_tag|>f.call(a=1)                                           the form of built-in tools
    <function=f>{"a": 1}</function>                                     Llama 3.1
    [f(a=1), g()]                                                       Llama 3.2

`read_tagged_calls` reads those after the control token `<|python_tag|>`, `read_text_calls` all others. Text that looks
like a call but cannot be read is an `UnparsedToolCall`.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tinkerloop.messages import ToolCall, ToolSpec, UnparsedToolCall
from tinkerloop.renderers.tool_arguments import arguments_of, checked_name, is_object, read_keywords, write_arguments
from tinkerloop.strict_json import STRICT_JSON

PYTHON_TAG = "<|python_tag|>"

Call = ToolCall | UnparsedToolCall


def write_text_call(call: ToolCall) -> str:
    """Return the call as `{"name": "NAME", "parameters": {...}}`, with the spaces that `json.dumps` writes."""
    parameters = json.dumps(arguments_of(call), ensure_ascii=False)
    return f'{{"name": "{checked_name(call.function.name)}", "parameters": {parameters}}}'


_OPENER = re.compile(r"[{\[<]")
_TAG = "<function="
_KEYS = ("name", "type", "function", "parameters", "arguments", "id")


def find_call(text: str) -> int:
    """Return the index from which on `text` may be a call, or its length if no call can begin in it.

    The end of the text counts too if a call may begin there and go on in text that is not known yet.
    """
    for opener in _OPENER.finditer(text):
        start = opener.start()
        if _may_begin_call(text[start : start + 100]):
            return start
    return len(text)


def _may_begin_call(text: str) -> bool:
    if text[0] == "<":
        return text.startswith(_TAG) or _TAG.startswith(text)
    inside = text[1:].lstrip()
    if text[0] == "[":
        if inside[:1] == "{":
            return _may_begin_call(inside)
        return re.fullmatch(r"[\w.]*|[\w.]+\(.*", inside, re.DOTALL) is not None
    key = inside[1:] if inside[:1] in ('"', "'") else inside
    return any(key.startswith(name) or name.startswith(key) for name in _KEYS)


def read_text_calls(
    text: str, tools: Sequence[ToolSpec] = (), *, follows_text: bool = False
) -> list[tuple[str, Call | None]]:
    """Split the text of a reply into calls and ordinary text.

    A call beside ordinary text may be a quotation. It is read only if its name is that of a declared tool; otherwise it
    is an `UnparsedToolCall`.

    Args:
        text: the text of a reply from the index that `find_call` returned.
        tools: the declared tools.
        follows_text: True if the reply has ordinary text before `text`.

    Returns:
        Pairs of a text and the call that it spells, or None for ordinary text. If one text spells several calls, the
        others have an empty text. White space, `,` and `;` between calls are left out.
    """
    return _split(text, {tool["name"] for tool in tools}, follows_text=follows_text)


def _split(text: str, declared: Collection[str], *, follows_text: bool = False) -> list[tuple[str, Call | None]]:
    segments: list[tuple[str, list[Call]]] = []
    begin = scan = 0  # where the ordinary text begins, and where to look for the next call
    while (start := scan + find_call(text[scan:])) < len(text):
        is_first = not (follows_text or segments or text[:start].strip())
        calls, end = _read_call(text, start, declared, is_first=is_first)
        if calls:
            segments += ((text[begin:start], []), (text[start:end], calls))
            begin = end
        scan = end
    segments.append((text[begin:], []))
    if len(segments) == 1:
        return [(text, None)]
    last = len(segments) - 1
    segments = [
        (raw, calls)
        for i, (raw, calls) in enumerate(segments)
        if calls or not re.fullmatch(r"[\s,;]*" if 0 < i < last else r"\s*", raw)
    ]
    is_beside_text = follows_text or not all(calls for _, calls in segments)
    read: list[tuple[str, Call | None]] = []
    for raw, calls in segments:
        if not calls:
            read.append((raw, None))
        elif is_beside_text and any(isinstance(c, ToolCall) and c.function.name not in declared for c in calls):
            error = "the reply has text beside the call, which may be a quotation, and no tool of this name is declared"
            read.append((raw, UnparsedToolCall(raw.strip(), error)))
        else:
            read += [(raw if i == 0 else "", call) for i, call in enumerate(calls)]
    return read


def _read_call(text: str, start: int, declared: Collection[str], *, is_first: bool) -> tuple[list[Call], int]:
    """Read the calls that begin at `start`. Return them and the index after them; no calls if it is ordinary text.

    Args:
        is_first: True if nothing but white space is before `start` in the reply.
    """
    rest = text[start:]
    if rest.startswith(_TAG):
        call = re.match(r"<function=([^>\s]+)>(.*?)(?:</function>|\Z)", rest, re.DOTALL)
        raw = call[0] if call else rest
        if call and raw.endswith("</function>") and is_object(call[2]):
            return [ToolCall(ToolCall.FunctionBody(call[1], call[2].strip()))], start + len(raw)
        return [UnparsedToolCall(raw.strip(), "expected <function=NAME>{...}</function>")], start + len(raw)
    if is_first and (python_calls := _read_python_list(rest.strip(), declared)):
        return python_calls, len(text)
    try:
        value, size = STRICT_JSON.raw_decode(rest)
    except (ValueError, RecursionError) as error:
        is_call = _SPELLS_CALL.search(rest) or (is_first and _BEGINS_LIKE_CALL.match(rest))
        if not is_call:
            return [], start + 1
        return [UnparsedToolCall(rest.strip(), f"not JSON: {error}")], len(text)
    raw = rest[:size]
    calls = [_read_object(one, raw, declared) for one in (value if isinstance(value, list) else [value])]
    known: list[Call] = [call for call in calls if call is not None]
    if len(known) < len(calls):
        known = [UnparsedToolCall(raw, "not every element of the list is a call")] if known else []
    return known, start + (size if known else 1)


_NAME = r"""["']?\b(?:name|function)["']?\s*:"""
_ARGUMENTS = r"""["']?\b(?:parameters|arguments)["']?\s*:"""
_SPELLS_CALL = re.compile(rf"{_NAME}.*{_ARGUMENTS}|{_ARGUMENTS}.*{_NAME}", re.DOTALL)
_BEGINS_LIKE_CALL = re.compile(rf"[\s\[{{]*(?:{_NAME}|{_ARGUMENTS}|[\"']type[\"']\s*:\s*[\"']function)")
_CANONICAL_CALL = re.compile(r'\{"name": "([^"\\]+)", "parameters": (\{.*\})\}', re.DOTALL)


def _read_object(value: Any, raw: str, declared: Collection[str]) -> Call | None:
    """Return the call that a JSON value is, or None if it is something else.

    A call in exactly the form of the chat format keeps the text of its arguments as it was sampled.
    """
    written = _CANONICAL_CALL.fullmatch(raw)
    if written and is_object(written[2]):
        return ToolCall(ToolCall.FunctionBody(written[1], written[2]))
    if not isinstance(value, Mapping):
        return None
    fields: dict[str, Any] = dict(value)
    is_function = fields.get("type") == "function"
    if isinstance(fields.get("function"), Mapping):
        fields |= fields.pop("function")
    name = fields.get("name", fields.get("function"))
    arguments = [fields[key] for key in ("parameters", "arguments") if key in fields]
    if not is_function and not (isinstance(name, str) and (arguments or name in declared)):
        return None
    others = sorted(fields.keys() - set(_KEYS))
    if others or len(arguments) > 1 or {"name", "function"} <= fields.keys():
        return UnparsedToolCall(raw, f"expected a name and parameters, got the keys {sorted(fields)}")
    if not isinstance(name, str) or not name or not isinstance(fields.get("id"), str | None):
        return UnparsedToolCall(raw, "expected a name, and an id only as text")
    given = arguments[0] if arguments else {}
    if isinstance(given, str) and is_object(given):
        given = STRICT_JSON.decode(given)
    if not isinstance(given, dict):
        return UnparsedToolCall(raw, "the parameters are not an object")
    return _checked(ToolCall(ToolCall.FunctionBody(name, write_arguments(given)), fields.get("id")), raw)


def _checked(call: ToolCall, raw: str) -> Call:
    """Return the call, or an unparsed call if its name or id is not valid Unicode."""
    try:
        f"{call.function.name}{call.id or ''}".encode()
    except UnicodeEncodeError:
        return UnparsedToolCall(raw, "the name or the id is not valid Unicode")
    return call


# ---- Python: <|python_tag|>f.call(a=1) and [f(a=1), g()]


def read_tagged_calls(fields: Sequence[str], tools: Sequence[ToolSpec] = ()) -> Sequence[Call]:
    """Read all of a reply after the control token `<|python_tag|>`: JSON calls, a call of a built-in tool, or code."""
    (body,) = fields
    read = _split(body, {tool["name"] for tool in tools})
    calls = [call for _, call in read if call is not None]
    if calls and len(calls) == len(read):
        return calls
    tree = _parse_python(body.strip())
    if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Attribute) and tree.func.attr == "call":
        call = _read_python_call(tree.func.value, tree, body.strip())
        if call is not None:
            return [call]
    return [UnparsedToolCall(PYTHON_TAG + body.rstrip(), "expected calls as JSON, or NAME.call(KEY=VALUE)")]


def _read_python_list(raw: str, declared: Collection[str]) -> list[Call]:
    """Read a whole reply as a Python list of calls. Return no calls if it is something else."""
    if not re.match(r"\[\s*[\w.]+\(", raw):
        return []
    tree = _parse_python(raw)
    elements = tree.elts if isinstance(tree, ast.List) else []
    read = [_read_python_call(e.func, e, raw) if isinstance(e, ast.Call) else None for e in elements]
    calls: list[Call] = [call for call in read if call is not None]
    if calls and len(calls) == len(elements):
        return calls
    begun = re.match(r"\[\s*([\w.]+)\(", raw)
    if begun and begun[1] in declared:
        return [UnparsedToolCall(raw, "expected a list of calls NAME(KEY=VALUE)")]
    return []


def _parse_python(source: str) -> ast.expr | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about escapes in sampled text, such as "\d"
        try:
            return ast.parse(source, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


def _read_python_call(function: ast.expr, call: ast.Call, raw: str) -> ToolCall | None:
    """Return a call with literal keyword arguments, or None for another expression."""
    try:
        written = write_arguments(read_keywords(call))
        name = ast.unparse(function)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None
    if not re.fullmatch(r"[\w.]+", name):
        return None
    read = _checked(ToolCall(ToolCall.FunctionBody(name, written)), raw)
    return read if isinstance(read, ToolCall) else None

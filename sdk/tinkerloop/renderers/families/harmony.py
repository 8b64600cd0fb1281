"""What is particular to Harmony: replies made of several messages, and tools declared in TypeScript."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tinkerloop.messages import ToolCall, ToolSpec, UnparsedToolCall
from tinkerloop.renderers.parsing.grammar import Block, Grammar
from tinkerloop.renderers.parsing.parsed import ParseTermination
from tinkerloop.renderers.parsing.reply_parser import ReplyParser
from tinkerloop.renderers.parsing.text_run import TextRun
from tinkerloop.renderers.pieces import Part
from tinkerloop.renderers.tool_syntax import is_object


def _read_call(fields: Sequence[str], tools: Sequence[ToolSpec] = ()) -> ToolCall | UnparsedToolCall:
    recipient, arguments = fields
    if not is_object(arguments):
        return UnparsedToolCall(f"{recipient} {arguments}", "the arguments are not a JSON object")
    return ToolCall(ToolCall.FunctionBody(recipient.removeprefix("functions."), arguments))


REASONING = Block(Part.REASONING, "<|channel|>", "<|end|>")
CALL = Block(Part.TOOL_CALL, "<|channel|>", "<|call|>")
GRAMMAR = Grammar(
    ("<|return|>", "<|call|>"),
    (REASONING, CALL),
    wrappers=("<|start|>", "<|message|>", "<|constrain|>"),
    read_call=_read_call,
)


class HarmonyParser(ReplyParser):
    """Between `<|start|>` or the prompt's end and `<|message|>` is a header, whose words say what the message is."""

    _header: list[str] | None = None  # None inside a message

    def _begin_header(self) -> None:
        self._header, self._sink = [], None

    def prime(self, ids: Any) -> None:
        self._begin_header()
        ids = list(ids)
        if ids:  # a caller's prefill is text of the answer
            self._header = None
        super().prime(ids)

    def _push(self, text: str) -> None:
        if self._header is None or self._end is not None:
            super()._push(text)
        else:
            self._header.append(text)

    def _control(self, name: str) -> Part:
        self._flush()
        if self._end is not None:
            self._flaw = True
            return Part.SCAFFOLD
        if self._header is not None:
            if name == "<|message|>":
                self._enter("".join(self._header))
                return self._part
            if name in ("<|channel|>", "<|constrain|>"):
                self._header.append(" " + name)
                return Part.TEXT
        if name == "<|start|>" and self._header is None and self._block is None and self._between:
            self._begin_header()
            self._between = False
            return Part.TEXT
        if name == "<|end|>" and self._header is None and not self._between:
            part = self._part
            self._leave()
            self._between = True
            return part
        if name in self._grammar.ends:
            part = self._part
            inside_call = part is Part.TOOL_CALL
            if part is Part.REASONING or (inside_call and name != "<|call|>"):
                self._broke_off_in = part
            self._flaw |= self._header is not None or inside_call != (name == "<|call|>") or part is Part.REASONING
            self._leave()
            self._end = ParseTermination.STOP_SEQUENCE
            return Part.STOP
        self._flaw = True
        self._push(name)
        return self._part

    _between = False  # after `<|end|>`, before the next `<|start|>`

    def _enter(self, header: str) -> None:
        """Opens what the header announces: reasoning, a call, or text."""
        self._header = None
        recipient = re.search(r"to=(\S+)", header)
        channel = re.search(r"<\|channel\|>(\w+)", header)
        self._block = None
        if recipient is not None:
            self._block = CALL
            self._fields = [[recipient[1].split("<|")[0]], []]
        elif channel is not None and channel[1] == "analysis":
            self._block = REASONING
        self._begin(TextRun())

    def _leave(self) -> None:
        if self._block is None:
            self._out(self._run.close())
            return
        if self._block is REASONING and self._sink is None and not self._run.pending:
            self._parts.append((Part.REASONING, []))  # an empty analysis is still one: the official template writes it
        self._close(self._block)


def typescript_namespace(name: str, tools: Sequence[ToolSpec]) -> str:
    """Declarations as the TypeScript that the official template writes."""
    lines = [f"## {name}\n\nnamespace {name} {{\n\n"]
    for tool in tools:
        parameters = tool.get("parameters") or {}
        lines.append(f"// {tool.get('description', '')}\ntype {tool['name']} = ")
        properties = parameters.get("properties")
        if not properties:
            lines.append("() => any;\n\n")
            continue
        lines.append("(_: {\n")
        required = parameters.get("required") or []
        for key, spec in properties.items():
            spec = spec if isinstance(spec, Mapping) else {}
            if spec.get("description"):
                lines.append(f"// {spec['description']}\n")
            lines.append(f"{key}{'' if key in required else '?'}: {_type(spec, required)}")
            if "default" in spec:
                raw = spec.get("enum") or spec.get("oneOf")
                comma = "" if spec.get("oneOf") and not spec.get("enum") else ", "
                lines.append(
                    f"{comma}// default: {spec['default'] if raw else json.dumps(spec['default'], ensure_ascii=False)}"
                )
            lines.append(",\n")
        lines.append("}) => any;\n\n")
    return "".join(lines) + f"}} // namespace {name}"


_PLAIN = {"number": "number", "integer": "number", "boolean": "boolean"}


def _type(spec: Mapping[str, Any], required: Sequence[str]) -> str:
    """A JSON schema as a TypeScript type, with the template's own line breaks and spaces."""
    if not isinstance(spec, Mapping):  # `true`, which allows anything
        return "any"
    kind = spec.get("type")
    nullable = " | null" if spec.get("nullable") else ""
    if kind == "array":
        items = spec.get("items")
        if not items:
            return "any[]" + nullable
        plain = items.get("type") if isinstance(items, Mapping) else None
        inner = "string" if plain == "string" else _type(items, required)
        inner = "any" if inner == "object | object" or len(inner) > 50 else inner
        return f"{inner}[]{nullable}"
    if isinstance(kind, (list, tuple)) and kind:
        return " | ".join(map(str, kind))
    if spec.get("oneOf"):
        return _union(spec["oneOf"], required)
    if kind == "string":
        return '"' + '" | "'.join(map(str, spec["enum"])) + '"' if spec.get("enum") else "string" + nullable
    if isinstance(kind, str) and kind in _PLAIN:
        return _PLAIN[kind]
    if kind == "object":
        properties = spec.get("properties")
        if not properties:
            return "object"
        needed = spec.get("required") or []
        written = [f"{k}{'' if k in needed else '?'}: \n{16 * ' '}{_type(v, needed)}" for k, v in properties.items()]
        return "{\n" + ", ".join(written) + "}"
    return "any"


def _union(variants: Sequence[Any], required: Sequence[str]) -> str:
    written = []
    for variant in variants:
        spec = variant if isinstance(variant, Mapping) else {}
        note = f"// {spec['description']}" if spec.get("description") else ""
        if "default" in spec:
            note += f"{20 * ' '}// default: {json.dumps(spec['default'], ensure_ascii=False)}"
        written.append(_type(spec, required) + note)
    return " | \n".join(written)

"""Functions that declare tools to the model, each named after the form of tool call that it asks for.

Each function takes the tools of a conversation and returns pieces: the format's instructions, with the declarations
between them. The declarations are untrusted text, so nothing in them can become a control token (such as
`<tool_call>`). The module `tool_calls` writes and parses the calls.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tinkerloop.errors import RenderError
from tinkerloop.messages import ToolSpec
from tinkerloop.renderers.pieces import Part, Pieces, scaffold, text


def openai_declaration(tool: ToolSpec) -> dict[str, Any]:
    """Return a declaration as in OpenAI's API and in official templates: `{"type": "function", "function": tool}`."""
    return {"type": "function", "function": tool}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def json_declaration(tool: ToolSpec) -> str:
    """Return a declaration as one line of JSON, wrapped as in OpenAI's API."""
    return _json(openai_declaration(tool))


def _declare(head: str, declarations: Iterable[str], foot: str = "") -> Pieces:
    yield scaffold(head)
    for declaration in declarations:
        yield text(declaration, Part.SCAFFOLD)
    yield scaffold(foot)


# ---- calls in tags: the Qwen, Nemotron and GLM families

_FUNCTION_SIGNATURES = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
_JSON_CALLS = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)
_XML_CALLS = (
    "\n</tools>\n\nIf you choose to call a function ONLY reply in the following format with NO suffix:\n\n"
    "<tool_call>\n<function=example_function_name>\n<parameter=example_parameter_1>\nvalue_1\n</parameter>\n"
    "<parameter=example_parameter_2>\nThis is the value for the second parameter\nthat can span\nmultiple lines\n"
    "</parameter>\n</function>\n</tool_call>\n\n<IMPORTANT>\nReminder:\n- Function calls MUST follow the specified "
    "format: an inner <function=...></function> block must be nested within <tool_call></tool_call> XML tags\n"
    "- Required parameters MUST be specified\n- You may provide optional reasoning for your function call in natural "
    "language BEFORE the function call, but NOT after\n- If there is no function call available, answer the question "
    "like normal with your current knowledge and do not tell the user about function calls\n</IMPORTANT>"
)
_CODER_CALLS = (
    "\n</tools>\n\nIf you choose to call a tool ONLY reply in the following format with NO suffix:\n\n"
    "<tool_call>\n<function=example_function_name>\n<parameter=example_parameter_1>\nvalue_1\n</parameter>\n"
    "<parameter=example_parameter_2>\nvalue_2\n</parameter>\n</function>\n</tool_call>\n\n<IMPORTANT>\nReminder:\n"
    "- Function calls MUST follow the specified format: the tool calling block MUST begin with an opening <tool_call> "
    "tag and end with a closing </tool_call> tag.\n- Required parameters MUST be specified\n- You may provide optional "
    "reasoning for your function call in natural language BEFORE the function call, but NOT after\n- If there is no "
    "function call available, answer the question like normal with your current knowledge and do not tell the user "
    "about function calls\n</IMPORTANT>"
)
_KEYED_CALLS = (
    "\n</tools>\n\nFor each function call, output the function name and arguments within the following XML format:\n",
    "<tool_call>{function-name}",
    "<arg_key>{arg-key-1}</arg_key>",
    "<arg_value>{arg-value-1}</arg_value>",
    "<arg_key>{arg-key-2}</arg_key>",
    "<arg_value>{arg-value-2}</arg_value>",
    "...",
    "</tool_call>",
)
"""The request for calls: its beginning, and its lines, which only GLM-4.5 divides by newlines."""


def declare_for_json_calls(tools: Sequence[ToolSpec]) -> Pieces:
    """Declare tools as JSON lines, and ask for calls as JSON in tags (Qwen3)."""
    return _declare(_FUNCTION_SIGNATURES, ["\n" + json_declaration(tool) for tool in tools], _JSON_CALLS)


def declare_for_xml_calls(
    tools: Sequence[ToolSpec], declaration: Callable[[ToolSpec], str] = json_declaration
) -> Pieces:
    """Declare tools, each as the text `declaration(tool)`, and ask for calls as XML in tags (Qwen3.5, Nemotron 3)."""
    head = "# Tools\n\nYou have access to the following functions:\n\n<tools>"
    return _declare(head, ["\n" + declaration(tool) for tool in tools], _XML_CALLS)


def declare_for_coder_calls(tools: Sequence[ToolSpec]) -> Pieces:
    """Declare tools as XML, and ask for calls as XML in tags (Qwen3-Coder)."""
    head = "# Tools\n\nYou have access to the following tools:\n\n<tools>"
    return _declare(head, ["\n" + _coder_declaration(tool) for tool in tools], _CODER_CALLS)


def _coder_declaration(tool: ToolSpec) -> str:
    """Return a declaration as XML (Qwen3-Coder): all keys but name, type and description in their order."""
    parameters = tool.get("parameters") or {}
    lines = ["<function>", f"<name>{tool['name']}</name>"]
    if "description" in tool:
        lines.append(f"<description>{str(tool['description']).strip()}</description>")
    lines.append("<parameters>")
    for name, schema in (parameters.get("properties") or {}).items():
        lines += ["<parameter>", f"<name>{name}</name>"]
        schema = schema if isinstance(schema, Mapping) else {}  # e.g. the JSON schema `true`, which allows any value
        if "type" in schema:
            lines.append(f"<type>{schema['type']}</type>")
        if "description" in schema:
            lines.append(f"<description>{str(schema['description']).strip()}</description>")
        lines += [*_further_tags(schema, {"name", "type", "description"}), "</parameter>"]
    lines += [*_further_tags(parameters, {"type", "properties"}), "</parameters>"]
    return "\n".join([*lines, *_further_tags(tool, {"type", "name", "description", "parameters"}), "</function>"])


def xml_declaration(tool: ToolSpec) -> str:
    """Return a declaration as XML (Nemotron 3). A key for which the format has no tag gets a tag named like the key."""
    parameters = tool.get("parameters") or {}
    lines = ["<function>", f"<name>{tool['name']}</name>"]
    if "description" in tool:
        lines.append(f"<description>{str(tool['description']).strip()}</description>")
    lines.append("<parameters>")
    for name, schema in (parameters.get("properties") or {}).items():
        lines += ["<parameter>", f"<name>{name}</name>"]
        schema = schema if isinstance(schema, Mapping) else {}  # e.g. the JSON schema `true`, which allows any value
        if "type" in schema:
            lines.append(f"<type>{schema['type']}</type>")
        if "description" in schema:
            lines.append(f"<description>{str(schema['description']).strip()}</description>")
        if "enum" in schema:
            lines.append(f"<enum>{_json(schema['enum'])}</enum>")
        lines += [*_further_tags(schema, {"name", "type", "description", "enum"}), "</parameter>"]
    lines += _further_tags(parameters, {"type", "properties", "required"})
    if "required" in parameters:
        lines.append(f"<required>{_json(parameters['required'])}</required>")
    lines += ["</parameters>", *_further_tags(tool, {"type", "name", "description", "parameters"}), "</function>"]
    return "\n".join(lines)


def _further_tags(fields: Mapping[str, Any], known: set[str]) -> list[str]:
    def spell(value: Any) -> str:
        return _json(value) if isinstance(value, (dict, list, tuple)) else str(value)

    return [f"<{key}>{spell(value)}</{key}>" for key, value in fields.items() if key not in known]


def declare_for_keyed_calls(tools: Sequence[ToolSpec]) -> Pieces:
    """Declare tools as JSON lines, and ask for calls as keys and values in tags (GLM)."""
    hidden = ("defer_loading", "strict")
    declarations = ["\n" + _json({k: v for k, v in tool.items() if k not in hidden}) for tool in tools]
    return _declare("\n" + _FUNCTION_SIGNATURES, declarations, "".join(_KEYED_CALLS))


def declare_for_glm4_calls(tools: Sequence[ToolSpec], newline: str) -> Pieces:
    """Like `declare_for_keyed_calls`, for GLM-4.5 and 4.7: declarations are wrapped, and `newline` divides the tags."""
    declarations = ["\n" + json_declaration(tool) for tool in tools]
    request = _KEYED_CALLS[0] + newline.join(_KEYED_CALLS[1:])
    return _declare("\n" + _FUNCTION_SIGNATURES, declarations, request)


# ---- calls between control tokens: DeepSeek (Kimi: `kimi_declarations`)

_NAMED_CALLS = (
    "IMPORTANT: ALWAYS adhere to this exact format for tool use:\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>"
    "tool_call_name<｜tool▁sep｜>tool_call_arguments<｜tool▁call▁end｜>{additional_tool_calls}<｜tool▁calls▁end｜>\n\n"
    "Where:\n- `tool_call_name` must be an exact match to one of the available tools\n- `tool_call_arguments` must be "
    "valid JSON that strictly follows the tool's Parameters Schema\n- For multiple tool calls, chain them directly "
    "without separators or spaces\n"
)


def declare_for_named_calls(tools: Sequence[ToolSpec]) -> Pieces:
    """Declare tools under headings, and ask for calls as a name, a control token and JSON arguments (DeepSeek)."""
    declarations = [
        f"### {tool['name']}\nDescription: {tool.get('description', '')}\n\n"
        f"Parameters: {_json(tool.get('parameters', {}))}\n\n"
        for tool in tools
    ]
    return _declare("## Tools\nYou have access to the following tools:\n\n", declarations, _NAMED_CALLS)


# ---- calls in tags with a control token: DeepSeek V4.1

_DSML_CALLS = (
    "## Tools\n\nYou have access to a set of tools to help answer the user's question. You can invoke tools by writing "
    'a "<｜DSML｜ calls>" block like the following:\n\n<｜DSML｜ calls>\n<｜DSML｜ invoke name="$TOOL_NAME">\n'
    '<｜DSML｜ parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</｜DSML｜ parameter>\n...\n'
    '</｜DSML｜ invoke>\n<｜DSML｜ invoke name="$TOOL_NAME2">\n...\n</｜DSML｜ invoke>\n</｜DSML｜ calls>\n\n'
    'String parameters should be specified as is and set `string="true"`. For all other types (numbers, booleans, '
    'arrays, objects), pass the value in JSON format and set `string="false"`.\n\nIf thinking_mode is enabled '
    "(triggered by <think>), you MUST output your complete reasoning inside <think>...</think> BEFORE any tool calls "
    "or final response.\n\nOtherwise, output directly after </think> with tool calls or final response.\n\n"
    "### Available Tool Schemas\n\n"
)
_DSML_RULES = "\n\nYou MUST strictly follow the above defined tool name and parameter schemas to invoke tool calls.\n"


def declare_for_dsml_calls(tools: Sequence[ToolSpec]) -> Pieces:
    """Declare tools as JSON lines without OpenAI's wrapper, and ask for calls as XML in DSML tags (DeepSeek V4.1)."""
    return _declare(_DSML_CALLS, ["\n".join(map(_json, tools))], _DSML_RULES)


# ---- calls as ordinary text: Llama 3

_TEXT_CALLS = (
    "Given the following functions, please respond with a JSON for a function call with its proper arguments that best "
    'answers the given prompt.\n\nRespond in the format {"name": function name, "parameters": dictionary of argument '
    "name and its value}.Do not use variables.\n\n"
)


def declare_for_text_calls(tools: Sequence[ToolSpec]) -> Pieces:
    """Declare tools as indented JSON, and ask for a call as JSON that is the whole text of a reply (Llama 3)."""
    declarations = [json.dumps(openai_declaration(tool), indent=4, ensure_ascii=False) + "\n\n" for tool in tools]
    return _declare(_TEXT_CALLS, declarations)


# ---- a JSON list between control tokens: Mistral


def declare_for_listed_calls(tools: Sequence[ToolSpec], space: str) -> Pieces:
    """Declare tools as a JSON list (Mistral v3). As in the official template, the tools' own strings are not escaped.

    Args:
        space: the text after `[AVAILABLE_TOOLS]`.
    """
    declarations: list[str] = []
    for tool in tools:
        fields = [
            f'"{key}": "{value}"' if isinstance(value, str) else f'"{key}": {_json(value)}'
            for key, value in tool.items()
            if key != "return"  # the type of the result, which transformers adds to declarations
        ]
        declarations.append('{"type": "function", "function": {' + ", ".join(fields) + "}}")
    return _declare(f"[AVAILABLE_TOOLS]{space}[", [", ".join(declarations)], "][/AVAILABLE_TOOLS]")


def declare_for_identified_calls(tools: Sequence[ToolSpec]) -> Pieces:
    """Declare tools as a JSON list (Mistral from v11). No tools are no text."""
    declared = _json([openai_declaration(tool) for tool in tools])
    return _declare("[AVAILABLE_TOOLS]", [declared], "[/AVAILABLE_TOOLS]") if tools else ()


# ---- calls as messages: Inkling


def declare_for_message_calls(tools: Sequence[ToolSpec]) -> Pieces:
    """Declare tools as one JSON array without spaces, with sorted keys (Inkling)."""
    declared = [{"type": "function", "description": "", "parameters": {}, **tool} for tool in tools]
    known = ("type", "name", "description", "parameters")
    if unknown := sorted({key for tool in declared for key in tool} - set(known)):
        raise RenderError(f"Inkling declares only {', '.join(known)} of a tool, got also {', '.join(unknown)}")
    return _declare("", [json.dumps(declared, ensure_ascii=False, separators=(",", ":"), sort_keys=True)])


# ---- calls as messages to a function: gpt-oss


def declare_for_harmony_calls(tools: Sequence[ToolSpec]) -> Pieces:
    """Declare tools as a TypeScript namespace. gpt-oss calls a tool with a message to `functions.NAME`.

    Raises:
        RenderError: the parameters of a tool are not a JSON schema that can be written in TypeScript.
    """
    try:
        namespace = _typescript_namespace("functions", tools)
    except (TypeError, AttributeError) as error:
        raise RenderError(
            f"cannot write the tools in TypeScript: the parameters of a tool are not a JSON schema: {error}"
        ) from error
    return _declare("# Tools\n\n", [namespace])


def _typescript_namespace(name: str, tools: Sequence[ToolSpec]) -> str:
    """Return tool declarations in TypeScript, with the spaces and line breaks of the official template."""
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
            lines.append(f"{key}{'' if key in required else '?'}: {_typescript_type(spec, required)}")
            if "default" in spec:
                raw = spec.get("enum") or spec.get("oneOf")
                comma = "" if spec.get("oneOf") and not spec.get("enum") else ", "
                lines.append(f"{comma}// default: {spec['default'] if raw else _json(spec['default'])}")
            lines.append(",\n")
        lines.append("}) => any;\n\n")
    return "".join(lines) + f"}} // namespace {name}"


_TYPESCRIPT_TYPES = {"number": "number", "integer": "number", "boolean": "boolean"}


def _typescript_type(spec: Mapping[str, Any], required: Sequence[str]) -> str:
    """Return the TypeScript type for a JSON schema."""
    if not isinstance(spec, Mapping):  # e.g. the JSON schema `true`, which allows any value
        return "any"
    kind = spec.get("type")
    nullable = " | null" if spec.get("nullable") else ""
    if kind == "array":
        items = spec.get("items")
        if not items:
            return "any[]" + nullable
        plain = items.get("type") if isinstance(items, Mapping) else None
        inner = "string" if plain == "string" else _typescript_type(items, required)
        inner = "any" if inner == "object | object" or len(inner) > 50 else inner
        return f"{inner}[]{nullable}"
    if isinstance(kind, (list, tuple)) and kind:
        return " | ".join(map(str, kind))
    if spec.get("oneOf"):
        return _typescript_union(spec["oneOf"], required)
    if kind == "string":
        return '"' + '" | "'.join(map(str, spec["enum"])) + '"' if spec.get("enum") else "string" + nullable
    if isinstance(kind, str) and kind in _TYPESCRIPT_TYPES:
        return _TYPESCRIPT_TYPES[kind]
    if kind == "object":
        properties = spec.get("properties")
        if not properties:
            return "object"
        needed = spec.get("required") or []
        written = [
            f"{k}{'' if k in needed else '?'}: \n{16 * ' '}{_typescript_type(v, needed)}" for k, v in properties.items()
        ]
        return "{\n" + ", ".join(written) + "}"
    return "any"


def _typescript_union(variants: Sequence[Any], required: Sequence[str]) -> str:
    written = []
    for variant in variants:
        spec = variant if isinstance(variant, Mapping) else {}
        note = f"// {spec['description']}" if spec.get("description") else ""
        if "default" in spec:
            note += f"{20 * ' '}// default: {_json(spec['default'])}"
        written.append(_typescript_type(spec, required) + note)
    return " | \n".join(written)

"""Kimi's declarations of tools are what the publisher's tokenizer class writes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from tests.renderers.chats import DECLARATIONS, renderer
from tinkerloop.errors import RenderError
from tinkerloop.renderers.kimi_declarations import sorted_json_declarations, typescript_declarations

USER = {"role": "user", "content": "q"}
STRING = {"type": "string"}
ITSELF = {"type": "array", "items": {"$ref": "#"}}


def parameters(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def declared(schema: dict[str, Any], **further: Any) -> str:
    """Return what stands between the first and the last line of the namespace."""
    written = typescript_declarations([{"name": "f", "parameters": schema, **further}])  # type: ignore[typeddict-item]
    head, _, rest = written.partition("namespace functions {\n")
    assert head == "# Tools\n\n## functions\n"
    return rest.removesuffix("}\n")


@pytest.mark.parametrize(
    ("schema", "wanted"),
    [
        ({}, "type f = (_: {}) => any;\n"),
        (
            parameters(b=STRING, a={"type": "integer"}, c={"type": "boolean"}) | {"required": ["c", "b"]},
            "type f = (_: {\n  b: string,\n  c: boolean,\n  a?: number\n}) => any;\n",
        ),
        (
            parameters(s={"type": "string", "description": "a\n\nb", "pattern": "^x", "maxLength": 9, "default": "é"}),
            "type f = (_: {\n  // a\n\n  // b\n  // maxLength: 9, pattern: ^x\n"
            '  // Default: "é"\n  s?: string\n}) => any;\n',
        ),
        (parameters(n={"type": "number", "minimum": 0, "default": 2.5}),
         "type f = (_: {\n  // minimum: 0\n  // Default: 2.5\n  n?: number\n}) => any;\n"),
        (parameters(e={"type": "string", "enum": ["C", "F"]}), 'type f = (_: {\n  e?: "C" | "F"\n}) => any;\n'),
        (parameters(e={"enum": [1, True, None]}), "type f = (_: {\n  e?: 1 | True | None\n}) => any;\n"),
        (parameters(u={"type": ["array", "null"]}), "type f = (_: {\n  u?: Array<any> | null\n}) => any;\n"),
        (parameters(u={"anyOf": [STRING, {"type": "null"}]}), "type f = (_: {\n  u?: string | null\n}) => any;\n"),
        (parameters(a={"type": "array", "items": STRING}), "type f = (_: {\n  a?: Array<string>\n}) => any;\n"),
        (
            parameters(a={"type": "array", "minItems": 1, "items": STRING | {"description": "each"}}),
            "type f = (_: {\n  // minItems: 1\n  a?: Array<\n    // each\n    string\n  >\n}) => any;\n",
        ),
        (
            parameters(o=parameters(x=STRING) | {"additionalProperties": False}),
            "type f = (_: {\n  o?: {\n    x?: string,\n    [k: string]: never\n  }\n}) => any;\n",
        ),
        (parameters(a=True, b={}), "type f = (_: {\n  a?: any,\n  b?: any\n}) => any;\n"),
        (
            parameters(d={"$ref": "#/$defs/Day"}) | {"$defs": {"Day": STRING | {"description": "a day"}}},
            "// a day\ninterface Day string\ntype f = (_: {\n  d?: Day\n}) => any;\n",
        ),
        (
            parameters(b=ITSELF, a=STRING),
            "interface parameters {\n  a?: string,\n  b?: Array<parameters>\n}\ntype f = (_: parameters) => any;\n",
        ),
    ],
)  # fmt: skip
def test_a_schema_becomes_this_type(schema: dict[str, Any], wanted: str) -> None:
    assert declared(schema) == wanted


def test_a_description_stands_before_its_function() -> None:
    assert declared({}, description="does\nthis") == "// does\n// this\ntype f = (_: {}) => any;\n"


@pytest.mark.parametrize(
    "schema",
    [
        {"oneOf": [STRING]},
        {"$ref": "#/definitions/Day"},
        {"$ref": "#/$defs/Missing"},
        {"type": "string", "enum": [1]},
        {"type": ["string", "any"]},
    ],
)
def test_a_schema_that_cannot_be_converted_makes_all_tools_json(schema: dict[str, Any]) -> None:
    tools: Any = [{"name": "f", "parameters": parameters(x=STRING)}, {"name": "g", "parameters": parameters(x=schema)}]
    assert typescript_declarations(tools) == sorted_json_declarations(tools)


def test_all_keys_of_json_declarations_are_sorted() -> None:
    tools: Any = [{"name": "f", "description": "é", "parameters": parameters(b={"type": "string", "enum": ["b", "a"]})}]
    assert sorted_json_declarations(tools) == (
        '[{"function":{"description":"é","name":"f","parameters":{"properties":{"b":{"enum":["b","a"],"type":"string"}},'
        '"type":"object"}},"type":"function"}]'
    )


@pytest.mark.parametrize("name", ["kimi_k25", "kimi_k26", "kimi_k26_disable_thinking"])
def test_declarations_are_written_in_typescript_since_k2_5(name: str) -> None:
    tools: Any = [{"name": "f", "description": "<|im_end|>", "parameters": parameters(x=STRING)}]
    ours = renderer(name)
    prompt = ours.decode(ours.build_generation_prompt([USER], tools=tools).to_ints())
    assert prompt.startswith(f"<|im_system|>tool_declare<|im_middle|>{typescript_declarations(tools)}<|im_end|>")


@settings(max_examples=100, suppress_health_check=list(HealthCheck))
@given(tool=DECLARATIONS)
def test_declarations_equal_those_of_the_cookbook(tool: dict[str, Any]) -> None:
    reference = pytest.importorskip("tinker_cookbook.renderers.kimi_k2_5_tool_declaration_ts")
    wrapped = json.loads(json.dumps([{"type": "function", "function": tool}], sort_keys=True))
    try:
        wanted = reference.encode_tools_to_typescript_style(wrapped)
    except Exception:  # the publisher's class then writes the JSON of the template
        wanted = sorted_json_declarations([tool])  # type: ignore[list-item]
    assert typescript_declarations([tool]) == wanted  # type: ignore[list-item]


@pytest.mark.parametrize("id", [None, "call_1", "functions.other:0", "functions.f:x"])
def test_a_call_whose_id_does_not_name_its_function_is_refused(id: str | None) -> None:
    """Only the id is written, so the name of the function would be lost."""
    calls = [{"id": id, "function": {"name": "f", "arguments": {}}}]
    messages = [USER, {"role": "assistant", "content": "", "tool_calls": calls}]
    with pytest.raises(RenderError, match=r"the call of 'f' has the id .*'functions\.f:0'"):
        renderer("kimi_k2").build_supervised_example(messages)

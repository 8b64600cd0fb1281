"""The renderer for any chat template: what it learns of replies, i.e. their ends, their reasoning and their calls."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from tests.renderers.chats import CONTROL, decode, everyones_tokenizer, tokenizer_with
from tinkerloop.errors import RenderError
from tinkerloop.messages import ToolCall
from tinkerloop.renderers import Part, Renderer, get_renderer
from tinkerloop.renderers.parsing.call_syntaxes import read_invokes
from tinkerloop.renderers.template import TemplateOptions

USER = {"role": "user", "content": "q"}
TOOLS = [{"name": "get_weather", "description": "d", "parameters": {"properties": {"days": {"type": "integer"}}}}]
ARGUMENTS = {"city": "Bern", "days": 3}
CALL = {"id": "abc123DEF", "type": "function", "function": {"name": "get_weather", "arguments": ARGUMENTS}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "sunny", "tool_call_id": "abc123DEF"}
HEADER = "{{ '<|im_start|>' + m.role + '\\n' }}"
PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
DECLARE = "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"


def template(body: str, prompt: str = PROMPT) -> str:
    return DECLARE + "{% for m in messages %}" + body + "{% endfor %}" + prompt


CHATML = template(HEADER + "{{ m.content + '<|im_end|>\\n' }}")


def with_template(source: Any, *tokens: str, **special: str) -> Renderer:
    tokenizer = tokenizer_with([*CONTROL, *tokens], source, **special) if tokens or special else everyones_tokenizer()
    return get_renderer("template", tokenizer, options=TemplateOptions(source))


def trained(ours: Renderer, messages: list[Any], mode: str = "all_assistant_messages", tools: Any = None) -> list[str]:
    """Return the runs of trained tokens as texts."""
    example = ours.build_supervised_example(messages, mode, tools=tools)
    texts: list[list[int]] = [[]]
    for token, weight in zip(example.tokens, example.weights, strict=True):
        if weight:
            texts[-1].append(token)
        elif texts[-1]:
            texts.append([])
    return [decode(ids, ours.tokenizer) for ids in texts if ids]


def parsed(ours: Renderer, reply: str, tools: Any = None) -> tuple[Any, list[Any], int, str]:
    """Return (text, calls as name and arguments, number of unparsed calls, termination) of a sampled reply."""
    ids = ours.tokenizer.encode(reply, add_special_tokens=False)
    message, termination = ours.parse_response(ids, tools=tools)
    calls = [(c.function.name, json.loads(c.function.arguments)) for c in message.get("tool_calls", [])]
    return message["content"], calls, len(message.get("unparsed_tool_calls", [])), str(termination)


# ---- prompts


def test_a_tag_in_the_templates_system_prompt_does_not_open_the_reply() -> None:
    ours = with_template("{{ '<|im_start|>system\\nUse <think>thoughts</think>.<|im_end|>\\n' }}" + CHATML)
    assert parsed(ours, "Paris.<|im_end|>")[::3] == ("Paris.", "stop_sequence")


@pytest.mark.parametrize("kind", [dict, list])
def test_of_several_templates_the_one_for_tools_or_the_default_is_used_or_the_one_that_is_named(kind: Any) -> None:
    named = {name: f"{{{{ '{name}:' }}}}" + CHATML for name in ("default", "tool_use", "rag")}
    known = named if kind is dict else [{"name": name, "template": source} for name, source in named.items()]
    tokenizer = tokenizer_with(CONTROL, None)
    tokenizer.chat_template = known

    def begins(tools: Any = None, **options: Any) -> str:
        ours = get_renderer("template", tokenizer, options=TemplateOptions(**options))
        return decode(ours.build_generation_prompt([USER], tools=tools).to_ints()).partition(":")[0]

    assert (begins(), begins(TOOLS)) == ("default", "tool_use")
    assert (begins(chat_template="rag"), begins(TOOLS, chat_template="rag")) == ("rag", "rag")
    assert begins(chat_template="{{ 'own:' }}" + CHATML) == "own"


def test_several_templates_without_a_default_are_refused_with_their_names() -> None:
    with pytest.raises(RenderError, match=r"\['rag', 'tool_use'\].*chat_template=NAME"):
        get_renderer("template", tokenizer_with(CONTROL, {"rag": CHATML, "tool_use": CHATML}))


def test_a_lost_tool_is_named_and_no_message_is() -> None:
    with pytest.raises(RenderError, match="'get_weather' would be lost") as raised:
        with_template(CHATML.replace(DECLARE, "")).build_generation_prompt([USER], tools=TOOLS)
    assert "messages[" not in str(raised.value)


def test_a_control_token_of_unknown_origin_is_refused() -> None:
    with pytest.raises(RenderError, match=r"computes a text that spells the control token '<\|im_end\|>'"):
        with_template(CHATML.replace("'<|im_end|>\\n'", "'{}'.format('<|im_end|>')"))


# ---- stop tokens


def test_a_reply_that_ends_with_the_next_roles_token_learns_this_token() -> None:
    roles = "{{ {'user': '<|user|>', 'assistant': '<|assistant|>', 'tool': '<|observation|>'}[m.role] }}"
    calls = (
        "{% for c in m.tool_calls or [] %}{{ '<tool_call>' }}{{ c.function | tojson }}{{ '</tool_call>' }}{% endfor %}"
    )
    source = template(roles + "{{ m.content }}" + calls, "{{ '<|assistant|>' if add_generation_prompt }}")
    ours = with_template(source)
    answer, call = {"role": "assistant", "content": "a"}, '<tool_call>{"name": "get_weather", "arguments": '
    assert trained(ours, [USER, answer, USER, answer]) == ["a<|user|>", "a<|user|>"]
    texts = trained(ours, [USER, CALLING, RESULT, answer, USER, CALLING], tools=TOOLS)
    assert [text.startswith(call) and text.endswith("</tool_call><|observation|>") for text in texts] == [1, 0, 1]
    assert sorted(decode(ours.get_stop_sequences()).split("><")) == ["<|user|", "|observation|>"]


@pytest.mark.parametrize(
    ("ending", "stop"),
    [
        ("<|end|><|endoftext|>", "<|endoftext|>"),
        ("<|end|>\\n<|endoftext|>", "<|end|>"),
        ("<|end|><|return|>", "<|end|>"),
    ],
)
def test_of_two_tokens_without_text_between_them_the_eos_token_is_the_stop(ending: str, stop: str) -> None:
    ours = with_template(template(HEADER + "{{ m.content + '" + ending + "' }}"))
    assert decode(ours.get_stop_sequences()) == stop
    reply = {"role": "assistant", "content": "a"}
    assert all(text.endswith(stop) for text in trained(ours, [USER, reply, USER, reply]))


def test_a_template_without_any_end_writes_prompts_but_trains_nothing() -> None:
    ours = with_template(template("{{ m.content }}", ""))
    assert decode(ours.build_generation_prompt([USER]).to_ints()) == "q"
    with pytest.raises(RenderError, match="cannot be trained"):
        ours.build_supervised_example([USER, {"role": "assistant", "content": "a"}])


def test_a_result_without_text_is_not_trained_with_the_call_before_it() -> None:
    """The result names the function of the call, so no text of the result's own message is between call and stop."""
    source = template(
        "{% if m.role == 'tool' %}{{ 'response:' + messages[loop.index0 - 1].tool_calls[0].function.name }}"
        "{{ m.content }}{% elif m.role == 'user' %}{{ m.content }}{{ '<|im_end|>' }}{% else %}{{ '<|im_start|>' }}"
        "{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}"
        "{% if not m.tool_calls %}{{ '<|im_end|>' }}{% endif %}{% endif %}",
        "{{ '<|im_start|>' if add_generation_prompt }}",
    )
    ours = with_template(source)
    messages = [USER, CALLING, {**RESULT, "content": ""}, {"role": "user", "content": ""}]
    with pytest.raises(RenderError, match="cannot be trained"):
        trained(ours, messages, tools=TOOLS)


# ---- reasoning


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
@pytest.mark.parametrize(
    "tags", [("<think>\\n", "\\n</think>\\n\\n"), ("[THINK]", "[/THINK]"), ("<|start|>thought\\n", "\\n<|end|>")]
)
def test_reasoning_is_written_and_read_under_each_name_that_templates_use(name: str, tags: tuple[str, str]) -> None:
    before, after = tags
    reasoning = "{{ '" + before + "' + m." + name + " + '" + after + "' if m." + name + " }}"
    ours = with_template(template(HEADER + reasoning + "{{ m.content + '<|im_end|>\\n' }}"), "[THINK]", "[/THINK]")
    reply = {"role": "assistant", "content": "a", "reasoning_content": "hm"}
    written = f"{before}hm{after}a<|im_end|>".replace("\\n", "\n")
    assert trained(ours, [USER, reply]) == [written]
    ids = ours.tokenizer.encode(written, add_special_tokens=False)
    message, termination = ours.parse_response(ids)
    parts = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}]
    assert (message["content"], str(termination)) == (parts, "stop_sequence")


def test_a_newline_that_the_template_writes_before_reasoning_is_no_text() -> None:
    """As in the template of GLM 4.6, whose prompt ends before the newline."""
    body = (
        "<|im_start|>{{ m.role }}{{ '\\n<think>' + (m.reasoning_content or '') + '</think>' if m.role == 'assistant' }}"
    )
    source = template(body + "{{ '\\n' + m.content + '<|im_end|>' }}", PROMPT.replace("\\n", ""))
    ours = with_template(source)
    for reasoning in ("", "because"):
        reply = {"role": "assistant", "content": "a"} | ({"reasoning_content": reasoning} if reasoning else {})
        (text,) = trained(ours, [USER, reply])
        assert text == f"\n<think>{reasoning}</think>\na<|im_end|>"
        message, termination = ours.parse_response(ours.tokenizer.encode(text, add_special_tokens=False))
        assert termination == "stop_sequence"
        assert ours.to_openai_message(message) == reply


def test_an_example_ends_with_the_stop_token_where_the_template_ends_a_document_with_another() -> None:
    """As in the template of Phi 3."""
    ours = with_template(CHATML + "{% if not add_generation_prompt %}{{ '<|endoftext|>' }}{% endif %}")
    example = ours.build_supervised_example([USER, {"role": "assistant", "content": "a"}])
    assert decode(example.tokens).endswith("a<|im_end|>")
    assert trained(ours, [USER, {"role": "assistant", "content": "a"}]) == ["a<|im_end|>"]


@pytest.mark.parametrize("change", ["", ".strip('\\n')"], ids=["kept", "removed"])
@pytest.mark.parametrize("around", ["", "\\n"], ids=["no fixed text", "fixed newlines"])
def test_newlines_at_the_ends_of_reasoning_are_read_if_the_template_writes_them(change: str, around: str) -> None:
    thought = (
        f"{{{{ '<think>{around}' + m.reasoning_content{change} + '{around}</think>{around}' if m.reasoning_content }}}}"
    )
    ours = with_template(template(HEADER + thought + "{{ m.content + '<|im_end|>\\n' }}"))
    (text,) = trained(ours, [USER, {"role": "assistant", "content": "a", "reasoning_content": "\nhm\n\n"}])
    expected = "hm" if change else "\nhm\n\n"
    assert parsed(ours, text)[0] == [{"type": "thinking", "thinking": expected}, {"type": "text", "text": "a"}]


def test_reasoning_that_the_prompt_opens_is_read() -> None:
    prompt = "{{ '<|im_start|>assistant\\n<think>\\n' if add_generation_prompt }}"
    body = "{% if m.role == 'assistant' %}{{ '<think>\\n' + (m.reasoning or '') + '</think>' }}{% endif %}"
    ours = with_template(template(HEADER + body + "{{ m.content + '<|im_end|>' }}", prompt))
    message, _ = ours.parse_response(ours.tokenizer.encode("hm</think>a<|im_end|>", add_special_tokens=False))
    assert [part.get("thinking") or part.get("text") for part in message["content"]] == ["hm", "a"]


WRITTEN_CALL = '\n<call>get_weather{"city": "Bern", "days": 3}</call>'


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ({"reasoning_content": "hm"}, [("REASONING", "<think>\nhm\n</think>"), ("TEXT", "\n\na")]),
        ({}, [("REASONING", "<think>\n\n</think>"), ("TEXT", "\n\na")]),
        (
            {"tool_calls": [CALL]},
            [
                ("REASONING", "<think>\n\n</think>"),
                ("TEXT", "\n\na"),
                ("TOOL_CALL", WRITTEN_CALL),
            ],
        ),
        (
            {"content": "", "reasoning_content": "hm", "tool_calls": [CALL, {**CALL, "id": "2"}]},
            [
                ("REASONING", "<think>\nhm\n</think>"),
                ("TOOL_CALL", "\n\n" + 2 * WRITTEN_CALL),
            ],
        ),
    ],
    ids=["reasoning", "text", "call", "calls after reasoning"],
)
def test_the_text_that_the_template_writes_around_a_part_belongs_to_it(reply: Any, expected: Any) -> None:
    thought = "{{ '<think>\\n' + (m.reasoning_content or '') + '\\n</think>\\n\\n' if m.role == 'assistant' }}"
    call = "{{ '\\n<call>' + c.function.name }}{{ c.function.arguments | tojson }}{{ '</call>' }}"
    body = thought + "{{ m.content }}{% for c in m.tool_calls or [] %}" + call + "{% endfor %}{{ '<|im_end|>\\n' }}"
    ours = with_template(template(HEADER + body))
    example = ours.build_supervised_example([USER, {"role": "assistant", "content": "a", **reply}])
    pairs = [(t, p) for t, w, p in zip(example.tokens, example.weights, example.parts, strict=True) if w]
    runs = [(Part(part).name, [t for t, _ in run]) for part, run in itertools.groupby(pairs, lambda pair: pair[1])]
    assert [(part, decode(ids, ours.tokenizer)) for part, ids in runs] == [*expected, ("STOP", "<|im_end|>")]


# ---- calls

NAME, ARGS = "c.function.name", "c.function.arguments"
NAMED, JSON = "' + c.function.name + '", "{{ c.function.arguments | tojson }}"
EACH = "{% for k, v in c.function.arguments.items() %}"
COMMA = "{{ ', ' if not loop.last }}"
PARAMETERS = "{{ {'name': c.function.name, 'parameters': c.function.arguments} | tojson }}"
DEEPSEEK = "{{ '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>"
SYNTAXES = {
    "JSON in tags": "{{ '\\n<tool_call>\\n' }}{{ c.function | tojson }}{{ '\\n</tool_call>' }}",
    "JSON without tags": PARAMETERS,
    "JSON after a token": "{{ '<|python_tag|>' }}" + PARAMETERS,
    "list in Mistral's token": "{{ '[TOOL_CALLS]' }}{{ [dict(c.function, id=c.id)] | tojson }}",
    "Mistral's name and arguments": f"{{{{ '[TOOL_CALLS]{NAMED}[ARGS]' }}}}{JSON}",
    "Mistral's name, id and arguments": f"{{{{ '[TOOL_CALLS]{NAMED}[CALL_ID]' + c.id + '[ARGS]' }}}}{JSON}",
    "XML in tags": f"{{{{ '<tool_call>\\n<function={NAMED}>\\n' }}}}{EACH}{{{{ '<parameter=' + k + '>\\n' }}}}"
    "{{ v }}{{ '\\n</parameter>\\n' }}{% endfor %}{{ '</function>\\n</tool_call>' }}",
    "XML without line breaks": f"{{{{ '<seed:tool_call><function={NAMED}>' }}}}{EACH}{{{{ '<parameter=' + k + '>' }}}}"
    "{{ v }}{{ '</parameter>' }}{% endfor %}{{ '</function></seed:tool_call>' }}",
    "DSML": f"{{{{ '\\n\\n<｜DSML｜function_calls>\\n<｜DSML｜invoke name=\"{NAMED}\">\\n' }}}}{EACH}"
    "{{ '<｜DSML｜parameter name=\"' + k + '\" string=\"' + ('true' if v is string else 'false') + '\">' }}"
    "{{ v if v is string else v | tojson }}{{ '</｜DSML｜parameter>\\n' }}{% endfor %}"
    "{{ '</｜DSML｜invoke>\\n</｜DSML｜function_calls>' }}",
    "keys and values": f"{{{{ '<tool_call>{NAMED}' }}}}{EACH}{{{{ '<arg_key>' + k + '</arg_key><arg_value>' }}}}"
    "{{ v }}{{ '</arg_value>' }}{% endfor %}{{ '</tool_call>' }}",
    "name and JSON in nested tags": f"{DEEPSEEK}{NAMED}<｜tool▁sep｜>' }}}}{JSON}"
    "{{ '<｜tool▁call▁end｜><｜tool▁calls▁end｜>' }}",
    "fenced JSON": f"{DEEPSEEK}function<｜tool▁sep｜>{NAMED}\\n```json\\n' }}}}{JSON}"
    "{{ '\\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>' }}",
    "Python in tags": f"{{{{ '<|tool_call_start|>[{NAMED}(' }}}}{EACH}{{{{ k + '=' }}}}{{{{ v | tojson }}}}{COMMA}"
    "{% endfor %}{{ ')]<|tool_call_end|>' }}",
    "Python without tags": f"{{{{ '[{NAMED}(' }}}}{EACH}{{{{ k + '=' }}}}{{{{ v | tojson }}}}{COMMA}"
    "{% endfor %}{{ ')]' }}",
    "Gemma 4": f"{{{{ '<|tool_call>call:{NAMED}{{' }}}}{EACH}{{{{ k + ':' }}}}"
    "{{ '<|\"|>' + v + '<|\"|>' if v is string else v }}{{ ',' if not loop.last }}{% endfor %}{{ '}<tool_call|>' }}",
}
TOKENS = """
    [TOOL_CALLS] [ARGS] [CALL_ID] <seed:tool_call> </seed:tool_call> ｜DSML｜ <|tool_call_start|> <|tool_call_end|>
    <|tool_call> <tool_call|> <|"|>
""".split()  # noqa: SIM905


def calling_template(call: str) -> str:
    body = HEADER + "{{ m.content }}{% for c in m.tool_calls or [] %}" + call + "{% endfor %}{{ '<|im_end|>\\n' }}"
    return template(body)


@pytest.mark.parametrize("call", SYNTAXES.values(), ids=SYNTAXES)
def test_a_call_is_read_in_the_syntax_in_which_the_template_writes_it(call: str) -> None:
    ours = with_template(calling_template(call), *TOKENS, eos_token="<|endoftext|>")
    (reply,) = trained(ours, [USER, CALLING], tools=TOOLS)
    assert reply.endswith("<|im_end|>")
    assert parsed(ours, reply, TOOLS) == ("", [("get_weather", ARGUMENTS)], 0, "stop_sequence")
    assert parsed(ours, "I am fine.<|im_end|>", TOOLS) == ("I am fine.", [], 0, "stop_sequence")


@pytest.mark.parametrize(("spell", "null", "text"), [("v | tojson", "null", "None"), ("v", "None", "null")])
@pytest.mark.parametrize("syntax", ["XML in tags", "XML without line breaks"])
def test_an_undeclared_null_is_read_only_as_the_template_spells_it(
    syntax: str, spell: str, null: str, text: str
) -> None:
    spelled = f"{{{{ v if v is string else ({spell}) }}}}"
    ours = with_template(calling_template(SYNTAXES[syntax].replace("{{ v }}", spelled)), *TOKENS)
    function = CALL["function"] | {"arguments": {"missing": None, "text": text, "true": True}}
    (reply,) = trained(ours, [USER, CALLING | {"tool_calls": [CALL | {"function": function}]}])
    assert null in reply
    assert parsed(ours, reply)[1] == [("get_weather", {"missing": None, "text": text, "true": True})]


@pytest.mark.parametrize("call", SYNTAXES.values(), ids=SYNTAXES)
def test_a_broken_call_is_never_clean_text(call: str) -> None:
    """Text that only looks like a call, without a token around it, stays text: an answer can be JSON."""
    ours = with_template(calling_template(call), *TOKENS, eos_token="<|endoftext|>")
    if not ours.grammar.blocks:
        pytest.skip("the call is ordinary text")
    (reply,) = trained(ours, [USER, CALLING], tools=TOOLS)
    broken = reply.replace("get_weather", "").replace('"', "")
    text, calls, unparsed, _ = parsed(ours, broken, TOOLS)
    assert (text, calls, unparsed) == ("", [], 1)


@pytest.mark.parametrize("call", SYNTAXES.values(), ids=SYNTAXES)
def test_a_stream_of_single_ids_gives_what_the_complete_reply_gives(call: str) -> None:
    ours = with_template(calling_template(call), *TOKENS, eos_token="<|endoftext|>")
    (reply,) = trained(ours, [USER, {**CALLING, "content": "Let me see."}], tools=TOOLS)
    ids = ours.tokenizer.encode(reply, add_special_tokens=False)
    parser = ours.parser(tools=TOOLS)
    for token in ids:
        parser.feed([token])
    assert parser.finish()[1].message == ours.parse_response(ids, tools=TOOLS).message


@pytest.mark.parametrize(
    ("call", "tokens"),
    [
        ("{{ '<|call|>' + " + NAME + " + ' with ' }}{{ " + ARGS + " | tojson }}", ()),
        ("{{ 'Action: ' + " + NAME + " + ' with ' }}{{ " + ARGS + " | tojson }}", ()),
    ],
)
def test_a_call_in_an_unknown_syntax_is_flagged(call: str, tokens: Any) -> None:
    ours = with_template(calling_template(call))
    (reply,) = trained(ours, [USER, CALLING], tools=TOOLS)
    text, calls, unparsed, _ = parsed(ours, reply, TOOLS)
    assert (text, calls, unparsed) == ("", [], 1)


def test_several_calls_in_one_block_are_read_in_order() -> None:
    ours = with_template(calling_template(SYNTAXES["Mistral's name and arguments"]), *TOKENS)
    reply = '[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g[ARGS]{}<|im_end|>'
    assert parsed(ours, reply)[1] == [("f", {"a": 1}), ("g", {})]


def test_text_that_the_template_writes_between_two_tokens_before_a_call_is_text() -> None:
    """As in a template for Llama 4."""
    wrapped = "{{ '<|python_start|>' + m.content + '<|python_end|>' if m.tool_calls else m.content }}"
    ours = with_template(
        calling_template(PARAMETERS).replace("{{ m.content }}", wrapped), "<|python_start|>", "<|python_end|>"
    )
    for content in ("", "Let me see."):
        (reply,) = trained(ours, [USER, {**CALLING, "content": content}], tools=TOOLS)
        assert reply.startswith(f"<|python_start|>{content}<|python_end|>{{")
        assert parsed(ours, reply, TOOLS) == (content, [("get_weather", ARGUMENTS)], 0, "stop_sequence")
    text, calls, unparsed, _ = parsed(ours, "<|python_start|>print(1)<|python_end|><|im_end|>", TOOLS)
    assert (text, calls, unparsed) == ("print(1)", [], 1)
    for reply in ("<|python_start|>print(1)<|im_end|>", "<|python_start|><|im_end|>", "<|python_start|>print(1)"):
        assert parsed(ours, reply, TOOLS)[3] == "malformed"  # nothing tells where the call would begin


def test_a_token_between_the_text_and_the_stop_token_is_no_text() -> None:
    """As in Cohere's templates."""
    ours = with_template(
        template(HEADER + "{{ m.content }}{{ '<|END_RESPONSE|>' if m.role == 'assistant' }}{{ '<|im_end|>' }}"),
        "<|END_RESPONSE|>",
        eos_token="<|im_end|>",
    )
    (reply,) = trained(ours, [USER, {"role": "assistant", "content": "a"}])
    assert reply == "a<|END_RESPONSE|><|im_end|>"
    assert parsed(ours, reply) == ("a", [], 0, "stop_sequence")


def test_a_token_between_the_prompt_and_the_text_is_no_text() -> None:
    """As in Cohere's templates for models that reason."""
    opener = "{{ '<|START_RESPONSE|>' if m.role == 'assistant' }}"
    ours = with_template(template(HEADER + opener + "{{ m.content + '<|im_end|>' }}"), "<|START_RESPONSE|>")
    (reply,) = trained(ours, [USER, {"role": "assistant", "content": "a"}])
    assert reply == "<|START_RESPONSE|>a<|im_end|>"
    assert parsed(ours, reply) == ("a", [], 0, "stop_sequence")


EMPTY_BLOCK = (
    "{% if m.role == 'assistant' %}{{ '<think>' }}{{ m.reasoning_content if loop.index0 > 9 }}{{ '</think>' }}"
    "{% endif %}{{ m.content + '<|im_end|>' }}"
)
"""A reply as in Kimi K2 Thinking: its reasoning is left out, but not the tags of reasoning."""


def test_a_newline_after_an_empty_block_that_the_template_writes_is_text() -> None:
    ours = with_template(template(HEADER + EMPTY_BLOCK))
    (reply,) = trained(ours, [USER, {"role": "assistant", "content": "\na"}])
    assert reply == "<think></think>\na<|im_end|>"
    assert parsed(ours, reply)[0] == "\na"


def test_reasoning_that_the_template_writes_only_beside_a_call_is_learned_there() -> None:
    """As in Gemma 4's template."""
    reasoning = "{% if m.tool_calls and m.reasoning_content %}{{ '<|channel>' + m.reasoning_content + '<channel|>' }}"
    source = calling_template(SYNTAXES["JSON in tags"]).replace(HEADER, HEADER + reasoning + "{% endif %}")
    ours = with_template(source, "<|channel>", "<channel|>")
    (reply,) = trained(ours, [USER, {**CALLING, "reasoning_content": "because"}], tools=TOOLS)
    content, calls, *_ = parsed(ours, reply, TOOLS)
    assert content == [{"type": "thinking", "thinking": "because"}]
    assert calls == [("get_weather", ARGUMENTS)]


def test_ids_that_the_template_checks_are_the_real_ones() -> None:
    check = "{% if c.id | length != 9 %}{{ raise_exception('nine characters') }}{% endif %}"
    ours = with_template(calling_template(check + SYNTAXES["list in Mistral's token"]), *TOKENS)
    assert '"id": "abc123DEF"' in trained(ours, [USER, CALLING], tools=TOOLS)[0]
    with pytest.raises(RenderError, match="nine characters"):
        trained(ours, [USER, {**CALLING, "tool_calls": [{**CALL, "id": "1"}]}], tools=TOOLS)


def test_sorted_keys_and_results_without_names_are_written_as_the_template_sorts_and_names_them() -> None:
    call = "{{ '<tool_call>' + " + NAME + " }}{% for k, v in " + ARGS + " | dictsort %}{{ k + ':' }}{{ v }}{% endfor %}"
    name = (
        "{% if m.role == 'tool' %}{% for c in messages[1].tool_calls if c.id == m.tool_call_id %}{{ "
        + NAME
        + " }}{% endfor %}{% endif %}"
    )
    ours = with_template(calling_template(call + "{{ '</tool_call>' }}").replace(HEADER, HEADER + name))
    arguments = {"b": "2", "a": "1", "C": "3"}
    calling = {**CALLING, "tool_calls": [{**CALL, "function": {"name": "f", "arguments": arguments}}]}
    example = ours.build_supervised_example([USER, calling, RESULT, {"role": "assistant", "content": "a"}])
    assert "<tool_call>fa:1b:2C:3</tool_call>" in decode(example.tokens)
    assert "<|im_start|>tool\nfsunny" in decode(example.tokens)


def test_results_in_another_order_than_their_calls_are_refused_if_the_template_writes_no_ids() -> None:
    ours = with_template(calling_template(SYNTAXES["JSON in tags"]))
    calling = {**CALLING, "tool_calls": [CALL, {**CALL, "id": "second"}]}
    results = [{**RESULT, "tool_call_id": "second"}, RESULT]
    with pytest.raises(RenderError, match="order of the calls"):
        ours.build_generation_prompt([USER, calling, *results], tools=TOOLS)


def test_a_value_that_is_marked_as_no_string_is_json_whatever_its_declared_type() -> None:
    """As in DeepSeek's DSML: null for a parameter that is declared as a string."""
    tool: Any = {"name": "f", "description": "", "parameters": {"properties": {"city": {"type": "string"}}}}
    for mark, value in (("false", None), ("true", "null")):
        body = f'<invoke name="f"><parameter name="city" string="{mark}">null</parameter></invoke>'
        (call,) = read_invokes(body, [tool])
        assert isinstance(call, ToolCall)
        assert json.loads(call.function.arguments) == {"city": value}

"""The renderer for any chat template: what it checks about the template, and what raises an error."""

from __future__ import annotations

from datetime import date

import numpy as np
import pytest

from tests.renderers.chats import decode, everyones_tokenizer, official, template_of
from tinkerloop.errors import RenderError
from tinkerloop.renderers import get_renderer
from tinkerloop.renderers.template import TemplateOptions

USER = {"role": "user", "content": "q"}
CHATML = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"


def with_template(source: str):
    return get_renderer("template", everyones_tokenizer(), options=TemplateOptions(source))


def test_it_equals_the_family_renderer_of_the_same_format() -> None:
    messages = [USER, {"role": "assistant", "content": "a"}, {"role": "user", "content": "\n r"}]
    messages.append({"role": "assistant", "content": "b "})
    ours, family = with_template(CHATML + PROMPT), get_renderer("qwen3_instruct", everyones_tokenizer())
    for mode in ("last_assistant_message", "all_assistant_messages"):
        one, other = (r.build_supervised_example(messages, mode) for r in (ours, family))
        assert one.tokens == other.tokens
        assert one.weights.tolist() == other.weights.tolist()
    assert ours.build_generation_prompt(messages[:3]) == family.build_generation_prompt(messages[:3])
    assert ours.get_stop_sequences() == family.get_stop_sequences()


@pytest.mark.parametrize(
    "path", ["qwen3/chat_template.jinja", "qwen3-instruct-2507/chat_template.jinja", "llama3.1/chat_template.jinja"]
)
def test_official_templates_are_rendered_and_their_last_reply_trained(path: str) -> None:
    template = template_of(path)
    messages = [{"role": "system", "content": "s"}, USER, {"role": "assistant", "content": "a"}]
    messages += [{"role": "user", "content": "r"}, {"role": "assistant", "content": "the end"}]
    ours = with_template(template)
    example = ours.build_supervised_example(messages)
    assert official(template, messages).startswith(decode(example.tokens))
    trained = decode([t for t, w in zip(example.tokens, example.weights, strict=True) if w])
    assert trained.endswith(f"the end{ours.grammar.stops[0]}")
    prompt = ours.build_generation_prompt(messages[:-1]).to_ints()
    assert np.flatnonzero(example.weights).tolist() == list(range(len(prompt), len(example.tokens)))


def test_a_reply_that_history_rewrites_is_not_trained_in_one_example_but_in_several() -> None:
    stripping = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' and loop.last %}"
        "{{ '<think>' }}{% endif %}{{ m.content + '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>' }}{% endif %}"
    )
    ours = with_template(stripping)
    messages = [USER, {"role": "assistant", "content": "a"}, USER, {"role": "assistant", "content": "b"}]
    with pytest.raises(RenderError, match="build_supervised_examples"):
        ours.build_supervised_example(messages, "all_assistant_messages")
    assert len(ours.build_supervised_examples(messages, "all_assistant_messages")) == 2


@pytest.mark.parametrize(
    "last", [{"role": "assistant", "content": "b", "weight": 0}, {"role": "assistant", "content": ""}]
)
def test_a_reply_whose_stop_token_comes_after_another_message_is_not_trained(last) -> None:
    """As in gpt-oss's template, only the last message ends with the stop token; earlier ones end with another token."""
    source = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content }}"
        "{{ '<|im_end|>' if loop.last and m.role == 'assistant' else '<|endoftext|>' }}{% endfor %}"
    )
    ours = with_template(source + PROMPT)
    messages = [USER, {"role": "assistant", "content": "a"}, {"role": "user", "content": ""}, last]
    with pytest.raises(RenderError, match=r"messages\[1\].*as it would be sampled.*build_supervised_examples"):
        ours.build_supervised_example(messages, "all_assistant_messages")
    (example, *_) = ours.build_supervised_examples(messages, "all_assistant_messages")
    assert decode([t for t, w in zip(example.tokens, example.weights, strict=True) if w]) == "a<|im_end|>"


@pytest.mark.parametrize(
    ("source", "content"),
    [
        (CHATML.replace("m.content +", "m.content | upper +") + PROMPT, "shout"),
        (CHATML.replace("m.content +", "(m.content if 'secret' not in m.content else 'gone') +") + PROMPT, "a secret"),
    ],
)
def test_a_template_that_changes_a_string_in_an_unknown_way_is_refused(source: str, content: str) -> None:
    with pytest.raises(RenderError, match=r"changes|depending"):
        with_template(source).build_generation_prompt([{"role": "user", "content": content}])


def test_the_fingerprint_depends_on_the_date_that_the_template_gets() -> None:
    days = (None, date(2026, 1, 1), date(2026, 1, 2))
    options = [TemplateOptions(CHATML + PROMPT, today=day) for day in days]
    prints = [get_renderer("template", everyones_tokenizer(), options=one).fingerprint() for one in options]
    assert len(set(prints)) == 3


def test_what_a_template_raises_is_a_render_error() -> None:
    source = "{{ raise_exception('no system') if messages[0].role == 'system' }}" + CHATML + PROMPT
    with pytest.raises(RenderError, match="no system"):
        with_template(source).build_generation_prompt([{"role": "system", "content": "s"}])


def test_a_template_cannot_reach_out_of_its_sandbox() -> None:
    source = "{{ messages.__class__.__mro__[1].__subclasses__() }}" + CHATML + PROMPT
    with pytest.raises(RenderError):
        with_template(source)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("{% for", "syntax error: .* in line 1"),
        ("", "does not write the text of messages"),
        (CHATML.replace("m.content", "m.content[0].text"), "raises an error|does not write the text of messages"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(source: str, problem: str) -> None:
    with pytest.raises(RenderError, match=problem):
        with_template(source)


def test_tools_are_refused_by_a_template_that_has_no_words_for_them() -> None:
    ours = with_template(CHATML + PROMPT)
    with pytest.raises(RenderError, match="does not write tools"):
        ours.build_generation_prompt([USER], tools=[{"name": "f", "description": "", "parameters": {}}])


@pytest.mark.parametrize(
    ("source", "lost"),
    [
        (CHATML.replace("in messages", "in messages if m.role != 'system'"), r"messages\[0\].* its text"),
        (CHATML, r"messages\[2\].* its tool_call"),
        (CHATML.replace("in messages", "in messages[1:]"), r"messages\[0\].* its text"),
    ],
)
def test_a_template_that_leaves_out_what_a_message_says_is_refused(source: str, lost: str) -> None:
    call = {"function": {"name": "f", "arguments": {}}}
    messages = [{"role": "system", "content": "s"}, USER, {"role": "assistant", "content": "a", "tool_calls": [call]}]
    with pytest.raises(RenderError, match=lost):
        with_template(source + PROMPT).build_generation_prompt([*messages, USER])


def test_a_template_that_leaves_out_the_reasoning_of_the_last_reply_alone_is_refused() -> None:
    reply = {"role": "assistant", "content": "a", "reasoning_content": "hm"}
    ours = with_template(CHATML + PROMPT)
    ours.build_supervised_example([USER, reply, USER, {"role": "assistant", "content": "b"}])
    with pytest.raises(RenderError, match=r"messages\[1\].* its reasoning"):
        ours.build_supervised_example([USER, reply])


def test_a_template_that_marks_what_is_generated_is_rendered() -> None:
    marked = CHATML.replace("{{", "{% generation %}{{").replace("}}", "}}{% endgeneration %}")
    messages = [USER, {"role": "assistant", "content": "a"}]
    one, other = (with_template(s + PROMPT).build_supervised_example(messages) for s in (marked, CHATML))
    assert (one.tokens, one.span_table) == (other.tokens, other.span_table)


@pytest.mark.parametrize(
    "schema",
    [
        lambda s: {"properties": {s: {"type": "string"}}},
        lambda s: {"properties": {"type": {"type": "string", "description": s}}},
        lambda s: {"properties": {"a": {"type": [s]}}},
        lambda s: {"properties": {}, "required": [s]},
        lambda s: {"properties": {}, s: 1},
    ],
)
@pytest.mark.parametrize("forged", ["<|im_end|>", "think"])
def test_no_string_of_a_declaration_becomes_a_control_token(schema, forged: str) -> None:
    tag = "{% for k in t.function.parameters.properties %}{{ '<' + k + '>' }}{% endfor %}"
    ours = with_template("{% for t in tools or [] %}{{ t | tojson }}" + tag + "{% endfor %}" + CHATML + PROMPT)

    def control(spelled: str) -> list[int]:
        tools = [{"name": "f", "description": "d", "parameters": schema(spelled)}]
        ids = ours.build_generation_prompt([USER], tools=tools).to_ints()
        return [i for i in ids if i in everyones_tokenizer().added_tokens_decoder]

    assert control(forged) == control("harmless")

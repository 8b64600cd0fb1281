"""The renderer for any chat template: the forms in which it passes messages, and the remedies that its errors name."""

from __future__ import annotations

from typing import Any

import pytest

from tests.renderers.test_template_replies import (
    CALLING,
    CHATML,
    DECLARE,
    HEADER,
    PROMPT,
    RESULT,
    SYNTAXES,
    TOOLS,
    USER,
    calling_template,
    parsed,
    template,
    trained,
    with_template,
)
from tinkerloop.errors import RenderError
from tinkerloop.renderers import get_renderer
from tinkerloop.renderers.template import TemplateOptions

ANSWER = {"role": "assistant", "content": "a"}
REASONED = ANSWER | {"reasoning_content": "because"}
# As in QwQ: the prompt opens the reasoning, and history loses it.
THINKING_PROMPT = "{{ '<|im_start|>assistant\\n<think>\\n' if add_generation_prompt }}"
INLINE = template(
    HEADER + "{{ m.content if loop.last else m.content.split('</think>')[-1].lstrip('\\n') }}{{ '<|im_end|>\\n' }}",
    THINKING_PROMPT,
)


def test_reasoning_is_written_into_the_text_for_a_template_that_reads_its_tags_there() -> None:
    ours = with_template(INLINE)
    assert trained(ours, [USER, REASONED], "last_assistant_message") == ["because\n</think>\n\na<|im_end|>"]
    first, last = ours.build_supervised_examples([USER, REASONED, USER, REASONED], "all_assistant_messages")
    assert "because" not in ours.decode(last.tokens[: -len(first)])
    message, _ = ours.parse_response(ours.tokenizer.encode("because\n</think>\n\na<|im_end|>"))
    assert message["content"] == [{"type": "thinking", "thinking": "because"}, {"type": "text", "text": "a"}]


def test_reasoning_is_not_written_into_the_text_for_a_template_that_does_not_name_its_tags() -> None:
    with pytest.raises(RenderError, match="'because' of its reasoning; remove it"):
        with_template(CHATML).build_supervised_example([USER, REASONED])


@pytest.mark.parametrize(
    "source",
    [
        INLINE.replace("<think>\\n' if", "<think>\\n\\n</think>\\n\\n' if"),
        INLINE.replace("{{ m.content", "{{ m.reasoning_content if never }}{{ m.content"),
    ],
    ids=["the prompt closes it", "the template reads it in a field"],
)
def test_reasoning_is_not_written_into_the_text_after_a_closed_block_or_beside_a_field(source: str) -> None:
    assert source != INLINE
    with pytest.raises(RenderError, match="'because' of its reasoning; remove it"):
        with_template(source).build_supervised_example([USER, REASONED])


def test_reasoning_is_a_part_of_the_content_for_a_template_that_reads_it_there() -> None:
    parts = (
        "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
        "{{ '[THINK]' + p.thinking + '[/THINK]' if p.type == 'thinking' else p.text }}{% endfor %}{% endif %}"
    )
    ours = with_template(template(HEADER + parts + "{{ '<|im_end|>' }}"), "[THINK]", "[/THINK]")
    assert trained(ours, [USER, REASONED]) == ["[THINK]because[/THINK]a<|im_end|>"]
    assert trained(ours, [USER, ANSWER]) == ["a<|im_end|>"]
    assert trained(ours, [USER, ANSWER | {"reasoning_content": ""}]) == ["a<|im_end|>"]


@pytest.mark.parametrize(("prompt", "written"), [(THINKING_PROMPT, "\n</think>\n\na"), (PROMPT, "a")])
def test_empty_reasoning_in_the_text_is_written_only_if_the_prompt_opens_it(prompt: str, written: str) -> None:
    ours = with_template(INLINE.replace(THINKING_PROMPT, prompt))
    assert trained(ours, [USER, ANSWER | {"reasoning_content": ""}]) == [f"{written}<|im_end|>"]


def test_an_error_says_that_every_reply_needs_reasoning_if_this_makes_it_work() -> None:
    with pytest.raises(RenderError, match=r"continues with '<think>\\n'.*; give every reply reasoning"):
        with_template(INLINE).build_supervised_example([USER, ANSWER])


@pytest.mark.parametrize("message", [ANSWER, REASONED])
def test_an_error_names_the_variable_that_makes_it_work(message: dict[str, Any]) -> None:
    """The template writes reasoning only if thinking is on, and an empty block in prompts if it is off."""
    thought = "{{ '<think>' + m.reasoning_content + '</think>' if thinking and m.reasoning_content }}"
    prompt = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' + ('' if thinking else '<think></think>') }}"
    source = template(HEADER + thought + "{{ m.content + '<|im_end|>\\n' }}", prompt + "{% endif %}")
    with pytest.raises(RenderError, match=r"TemplateOptions\(variables=\(\('thinking', True\),\)\)"):
        with_template(source).build_supervised_example([USER, message])
    tokenizer = with_template(source).tokenizer
    ours = get_renderer("template", tokenizer, options=TemplateOptions(source, (("thinking", True),)))
    assert trained(ours, [USER, message])[0].endswith("a<|im_end|>")


def test_an_error_that_no_variable_changes_says_so() -> None:
    dropping = INLINE.replace("m.content if loop.last else ", "")
    with pytest.raises(RenderError, match="no variable of the template changes this"):
        with_template(dropping).build_supervised_example([USER, ANSWER])


def test_a_reply_with_calls_and_without_text_can_be_recognised_by_the_content_none() -> None:
    source = calling_template(SYNTAXES["JSON in tags"])
    only_none = source.replace("m.tool_calls or []", "(m.tool_calls or []) if m.content is none").replace(
        "{{ m.content }}", "{{ m.content or '' }}"
    )
    assert trained(with_template(only_none), [USER, CALLING], tools=TOOLS) == trained(
        with_template(source), [USER, CALLING], tools=TOOLS
    )


def test_calls_are_read_even_if_the_template_does_not_declare_tools() -> None:
    ours = with_template(calling_template(SYNTAXES["JSON in tags"]).replace(DECLARE, ""))
    (reply,) = trained(ours, [USER, CALLING])
    assert parsed(ours, reply)[1] == [("get_weather", {"city": "Bern", "days": 3})]
    with pytest.raises(RenderError, match="describe them in a system message and pass no tools"):
        ours.build_supervised_example([USER, CALLING], tools=TOOLS)


def test_calls_are_read_even_if_every_reply_needs_reasoning() -> None:
    calls = "{% for c in m.tool_calls or [] %}" + SYNTAXES["JSON in tags"] + "{% endfor %}{{ '<|im_end|>\\n' }}"
    ours = with_template(INLINE.replace("{{ '<|im_end|>\\n' }}", calls))
    reasoned = CALLING | {"reasoning_content": "because"}
    (example,) = ours.build_supervised_examples([USER, reasoned], tools=TOOLS)
    reply = ours.decode([t for t, w in zip(example.tokens, example.weights, strict=True) if w])
    assert reply.startswith("because\n</think>\n<tool_call>")
    _, calls_read, unparsed, _ = parsed(ours, reply, TOOLS)
    assert (calls_read, unparsed) == ([("get_weather", {"city": "Bern", "days": 3})], 0)
    assert "because" not in ours.decode(ours.build_generation_prompt([USER, reasoned, RESULT], tools=TOOLS).to_ints())


def test_an_error_of_python_about_a_form_is_not_shown_if_another_form_tells_more() -> None:
    """The first form fails in Python (text + dictionary); with the second the template says what is wrong."""
    call = "{{ '<tool_call>' + c.function.arguments + raise_exception('one call only') }}"
    with pytest.raises(RenderError, match="one call only"):
        with_template(calling_template(call)).build_supervised_example([USER, CALLING])


def test_the_error_names_the_renderer_of_the_family_if_there_is_one() -> None:
    source = (
        "{% for m in messages %}{{ '<｜User｜>' if m.role == 'user' else '<｜Assistant｜>' }}{{ m.content }}"
        "{{ '<｜end▁of▁sentence｜>' if m.role != 'user' }}{% endfor %}"
        "{{ '<｜Assistant｜><think>\\n' if add_generation_prompt }}"
    )
    with pytest.raises(RenderError, match="use the renderer 'deepseek_r1_distill'"):
        with_template(source).build_supervised_example([USER, {"role": "assistant", "content": "a"}])

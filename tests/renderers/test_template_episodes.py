"""Episodes of the renderer `template`: what a template writes for a longer conversation extends what was sampled."""

from __future__ import annotations

from typing import Any

import pytest

from tests.renderers.chats import A_TEMPLATE, decode, everyones_tokenizer, template_of
from tinkerloop.errors import BrokenReplyError, EpisodeError, RenderError
from tinkerloop.renderers import Renderer, get_renderer
from tinkerloop.renderers.template import TemplateOptions
from tinkerloop.testing._invariant import sampled as sampled_tokens

QUESTION, NEXT = [{"role": "user", "content": "q"}], [{"role": "user", "content": "and?"}]
CHATML = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
SMOL = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}{% endif %}"
    + CHATML
    + PROMPT
)
"""A template like SmolLM2's: a default system message."""
TURNS = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + m.content | trim }}"
    "{{ '<end_of_turn>\\n' }}{% endfor %}{{ '<start_of_turn>model\\n' if add_generation_prompt }}"
)
"""A template like Gemma's: alternating roles, trimmed texts, and no control token after the header."""
NEXT_ROLE = (
    "{% for m in messages %}{{ '<|' + {'tool': 'observation'}.get(m.role, m.role) + '|>' }}{{ m.content }}"
    '{% for c in m.tool_calls or [] %}{{ \'<tool_call>{"name": "\' + c.function.name + \'", "arguments": \' }}'
    "{{ c.function.arguments | tojson }}{{ '}</tool_call>' }}{% endfor %}{% endfor %}"
    "{{ '<|assistant|>' if add_generation_prompt }}"
)
"""A template like GLM's: a reply ends with the token of the next role."""
TOOLS_LAST = (
    "{% for m in messages %}{% if tools and m.role == 'user' and loop.last %}{{ tools | tojson }}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}" + PROMPT
)
"""A template like Mistral's: tools are declared before the last user message, so that they move."""
HEADER_OF_CALLS = (
    "{% for m in messages %}{% if m.role != 'assistant' %}{{ '<|' + m.role + '|>' + m.content }}{% else %}"
    "{{ '<|assistant|>' if m.tool_calls or loop.index0 < 2 }}{{ m.content }}{% for c in m.tool_calls or [] %}"
    '{{ \'<tool_call>{"name": "\' + c.function.name + \'", "arguments": \' }}{{ c.function.arguments | tojson }}'
    "{{ '}</tool_call>' }}{% endfor %}{{ '<|im_end|>' }}{% endif %}{% endfor %}"
    "{{ '<|assistant|>' if add_generation_prompt and messages[-1].role != 'tool' }}"
)
"""A template like DeepSeek V3's: after a tool result, calls have a header, but prompts and answers have none."""
STRIPPING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.reasoning_content and loop.last %}"
    "{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}{{ m.content + '<|im_end|>\\n' }}{% endfor %}"
    + PROMPT
)
"""A template like Qwen3's: reasoning is left out of history."""


def with_template(source: str) -> Renderer:
    return get_renderer("template", everyones_tokenizer(), options=TemplateOptions(source))


def ids_of(ours: Renderer, text: str) -> list[int]:
    """Return the ids of a text in which control tokens are spelled."""
    return everyones_tokenizer().encode(text, add_special_tokens=False)


def sample(ours: Renderer, messages: list[Any], content: str, **more: Any) -> list[int]:
    """Return the ids that a model would sample as this reply."""
    reply = {"role": "assistant", "content": content, **more}
    return sampled_tokens(ours.build_supervised_example([*messages, reply]))


@pytest.mark.parametrize("source", [SMOL, TURNS, NEXT_ROLE], ids=["SMOL", "TURNS", "NEXT_ROLE"])
def test_an_episode_has_the_tokens_of_the_whole_prompt_and_the_sampled_ids(source: str) -> None:
    ours = with_template(source)
    episode = ours.episode(QUESTION)
    for turn in range(3):
        episode.add_sampled(sample(ours, episode.messages, f"answer {turn}"))
        episode.add(NEXT)
        assert episode.tokens == ours.build_generation_prompt(episode.messages).to_ints()
    assert len(episode.segments) == 1
    (example,) = episode.examples()
    trained = decode([t for t, w in zip(example.tokens, example.weights, strict=True) if w])
    assert trained == "".join(f"answer {turn}{ours.grammar.stops[0]}" for turn in range(3))


def test_ids_that_the_template_would_write_in_another_way_stay_as_they_were_sampled() -> None:
    ours = with_template(TURNS)
    episode = ours.episode(QUESTION)
    before = list(episode.tokens)
    ids = [*ids_of(ours, "  a"), *ids_of(ours, "b  "), *ids_of(ours, "<end_of_turn>")]  # the template trims the text
    episode.add_sampled(ids)
    episode.add(NEXT)
    assert episode.tokens[: len(before) + len(ids)] == before + ids
    appended = decode(episode.tokens[len(before) + len(ids) :])
    assert appended == "\n<start_of_turn>user\nand?<end_of_turn>\n<start_of_turn>model\n"


def test_a_reply_without_the_header_that_the_template_writes_before_it_is_not_trained_and_begins_a_segment() -> None:
    ours = with_template(HEADER_OF_CALLS)
    call = {"id": "call00001", "type": "function", "function": {"name": "f", "arguments": {}}}
    calling = {"role": "assistant", "content": "", "tool_calls": [call]}
    result = {"role": "tool", "content": "r", "tool_call_id": "call00001"}
    answer = {"role": "assistant", "content": "a"}
    assert decode(sampled_tokens(ours.build_supervised_example([*QUESTION, calling, result, answer]))) == "a<|im_end|>"
    with pytest.raises(RenderError, match=r"the prompt ends before the header in '<\|assistant\|><tool_call>"):
        ours.build_supervised_example([*QUESTION, calling, result, calling])
    episode = ours.episode([*QUESTION, calling, result], on_rewrite="segment")
    episode.add_sampled(ids_of(ours, '<tool_call>{"name": "f", "arguments": {}}</tool_call><|im_end|>'))
    episode.add([result])
    assert len(episode.segments) == 2
    assert episode.tokens == ours.build_generation_prompt(episode.messages).to_ints()


@pytest.mark.parametrize(
    ("source", "reply", "appended"),
    [
        (SMOL, "a", "<|im_end|>\n<|im_start|>user\nand?<|im_end|>\n<|im_start|>assistant\n"),
        (NEXT_ROLE, "a", "<|user|>and?<|assistant|>"),
        (NEXT_ROLE, "a<|user|>", "and?<|assistant|>"),
        (NEXT_ROLE, "a<|observation|>", "<|user|>and?<|assistant|>"),
    ],
    ids=["cut", "cut before the next role", "the next role", "another role"],
)
def test_a_reply_without_the_end_that_the_template_writes_gets_this_end(source, reply: str, appended: str) -> None:
    episode = with_template(source).episode(QUESTION)
    ids = ids_of(episode.renderer, reply)  # type: ignore[arg-type]
    length = len(episode.tokens) + len(ids)
    episode.add_sampled(ids)
    episode.add(NEXT)
    assert decode(episode.tokens[length:]) == appended


def test_a_result_follows_the_call_as_it_was_sampled() -> None:
    ours = with_template(NEXT_ROLE)
    episode = ours.episode(QUESTION)
    parsed = episode.add_sampled(ids_of(ours, '<tool_call>{ "name":"f","arguments":{} }</tool_call><|observation|>'))
    assert parsed.message["tool_calls"][0].function.name == "f"
    episode.add([{"role": "tool", "content": "1"}])
    assert decode(episode.tokens).endswith('"arguments":{} }</tool_call><|observation|>1<|assistant|>')


def test_a_call_that_cannot_be_read_is_followed_too_and_keeps_its_tags() -> None:
    ours = with_template(A_TEMPLATE)
    episode = ours.episode(QUESTION)
    parsed = episode.add_sampled(ids_of(ours, "a\n<tool_call>not JSON</tool_call><|im_end|>"))
    assert parsed.message["unparsed_tool_calls"]
    episode.add([{"role": "tool", "content": "an error"}])
    assert len(episode.segments) == 1
    prompt = ours.build_generation_prompt(episode.messages).to_ints()
    assert ours._assembler.ids["<tool_call>"] in prompt
    assert decode(episode.tokens).replace("a\n<tool", "a<tool") == decode(prompt)


def test_a_reply_that_history_strips_begins_a_segment_or_is_refused() -> None:
    ours = with_template(STRIPPING)
    refusing, splitting = (ours.episode(QUESTION, on_rewrite=how) for how in ("refuse", "segment"))
    for episode in (refusing, splitting):
        episode.add_sampled(sample(ours, QUESTION, "a", reasoning_content="because"))
    with pytest.raises(EpisodeError, match=r"messages\[1\].*'a<\|im_end\|>.*instead of '<think>because"):
        refusing.add(NEXT)
    splitting.add(NEXT)
    assert len(splitting.segments) == 2
    assert splitting.prompt() == ours.build_generation_prompt(splitting.messages)


def test_a_template_that_moves_an_earlier_text_begins_a_segment() -> None:
    ours = with_template(TOOLS_LAST)
    tools = [{"name": "f", "description": "d", "parameters": {}}]
    episode = ours.episode(QUESTION, tools, on_rewrite="segment")
    episode.add_sampled(ids_of(ours, "a<|im_end|>"))
    episode.add(NEXT)
    assert len(episode.segments) == 2
    assert episode.prompt() == ours.build_generation_prompt(episode.messages, tools=tools)


def test_a_reply_that_the_template_cannot_write_ends_the_episode() -> None:
    source = "{% for m in messages %}{% if m.tool_calls and m.tool_calls | length > 1 %}"
    ours = with_template(source + "{{ raise_exception('one call only') }}{% endif %}{% endfor %}" + A_TEMPLATE)
    call = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    episode = ours.episode(QUESTION, on_rewrite="segment")
    episode.add_sampled(ids_of(ours, f"{call}\n{call}<|im_end|>"))
    tokens = list(episode.tokens)
    with pytest.raises(BrokenReplyError, match=r"cannot write it.*one call only.*end the episode"):
        episode.add([{"role": "tool", "content": "1"}, {"role": "tool", "content": "2"}])
    assert episode.tokens == tokens


def test_a_new_message_that_the_template_rejects_is_no_fault_of_the_reply() -> None:
    ours = with_template(TURNS)
    episode = ours.episode(QUESTION, on_rewrite="segment")
    episode.add_sampled(sample(ours, QUESTION, "a"))
    with pytest.raises(RenderError, match="roles must alternate") as caught:
        episode.add([*NEXT, *NEXT])
    assert not isinstance(caught.value, BrokenReplyError)


@pytest.mark.parametrize("path", ["llama3.1/chat_template.jinja", "qwen3-instruct-2507/chat_template.jinja"])
def test_an_official_template_appends(path: str) -> None:
    ours = with_template(template_of(path))
    episode = ours.episode(QUESTION)
    for _ in range(2):
        episode.add_sampled(sample(ours, episode.messages, "a"))
        episode.add(NEXT)
    assert episode.prompt() == ours.build_generation_prompt(episode.messages)

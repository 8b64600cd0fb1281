"""Prompts for a turn of any role continue the conversation exactly as it is written with a message of this role."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.renderers.chats import NAMES, everyones_tokenizer, renderer
from tinkerloop.errors import RenderError
from tinkerloop.renderers import get_renderer
from tinkerloop.renderers.template import TemplateOptions

USER = {"role": "user", "content": "q"}
REPLY = {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}
CALL = {"id": "functions.f:0", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "r", "tool_call_id": "functions.f:0"}
BEFORE: dict[str, list[dict[str, Any]]] = {
    "nothing": [],
    "system": [SYSTEM],
    "user": [USER],
    "system and user": [SYSTEM, USER],
    "reply": [USER, REPLY],
    "call": [USER, CALLING],
    "result": [USER, CALLING, RESULT],
    "later system": [USER, REPLY, SYSTEM],
}


def ids_of(name: str, messages: list[dict[str, Any]]) -> list[int]:
    return renderer(name).build_supervised_example(messages, allow_zero_weight=True).tokens


def prompt_ids(name: str, messages: list[dict[str, Any]], role: str = "assistant") -> list[int]:
    return renderer(name).build_generation_prompt(messages, role=role).to_ints()


def prompt_of(name: str, messages: list[dict[str, Any]], role: str = "assistant") -> str:
    return renderer(name).decode(prompt_ids(name, messages, role))


def unless_refused(render: Callable[..., list[int]], *arguments: Any) -> list[int] | None:
    try:
        return render(*arguments)
    except RenderError:
        return None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("before", BEFORE)
def test_the_conversation_begins_with_the_prompt_for_its_next_message(name: str, before: str) -> None:
    for role in sorted(renderer(name).roles - ({"tool"} if before != "call" else set())):
        message = {"role": role, "content": "a thing"}
        longer = [*BEFORE[before], message | ({"tool_call_id": CALL["id"]} if role == "tool" else {})]
        ids, prompt = unless_refused(ids_of, name, longer), unless_refused(prompt_ids, name, BEFORE[before], role)
        if prompt is None:
            assert ids is None or role == "system"  # which may be moved to the start
        elif ids is None:
            assert role == "assistant"  # for example, a reply that needs reasoning
        else:
            assert ids[: len(prompt)] == prompt, (role, prompt_of(name, BEFORE[before], role))


@pytest.mark.parametrize(
    ("name", "role", "end"),
    [
        ("glm4_7", "user", "</think>a<|user|>"),
        ("glm4_7", "assistant", "</think>a<|assistant|><think>"),
        ("glm4_5_disable_thinking", "user", "\na<|user|>\n"),
        ("glm5_3_max_reasoning", "system", "</think>a<|system|>"),
        ("role_colon", "user", "Assistant: a\n\nUser:"),
        ("role_colon", "assistant", "Assistant: a\n\nAssistant:"),
        ("qwen3_5", "user", "<|im_start|>assistant\na<|im_end|>\n<|im_start|>user\n"),
        ("mistral_v3", "user", "[INST] q[/INST] a</s>[INST]"),
    ],
)
def test_a_prompt_after_a_reply_has_the_header_of_the_next_role_once(name: str, role: str, end: str) -> None:
    assert prompt_of(name, [USER, REPLY], role).endswith(end)


@pytest.mark.parametrize("order", [(1, 0, 2), (2, 0, 1), (1, 2, 0), (0, 2, 1)])
@pytest.mark.parametrize("name", ["kimi_k2", "kimi_k25", "mistral_v3", "mistral_v11"])
def test_a_prompt_for_a_result_names_the_first_call_without_one(name: str, order: tuple[int, ...]) -> None:
    ids = [f"functions.f:{i}" if name.startswith("kimi") else f"call{i:05}" for i in range(3)]
    messages = [USER, CALLING | {"tool_calls": [CALL | {"id": call_id} for call_id in ids]}]
    for answered in order:
        awaited = next(call_id for call_id in ids if call_id not in {one.get("tool_call_id") for one in messages})
        prompt = prompt_ids(name, messages, "tool")
        assert ids_of(name, [*messages, RESULT | {"tool_call_id": awaited}])[: len(prompt)] == prompt
        messages.append(RESULT | {"tool_call_id": ids[answered]})


@pytest.mark.parametrize("name", ["glm4_5", "glm4_7", "glm5_3_max_reasoning", "role_colon"])
def test_each_of_two_replies_in_a_row_is_trained_after_its_own_prompt(name: str) -> None:
    messages = [USER, REPLY, {"role": "assistant", "content": "b"}]
    last = renderer(name).build_supervised_examples(messages, "all_assistant_messages")[-1]
    prompt = prompt_ids(name, messages[:2])
    assert last.tokens[: len(prompt)] == prompt
    assert last.weights[len(prompt) - 1 : len(prompt) + 1].tolist() == [0, 1]


@pytest.mark.parametrize("name", ["deepseekv3", "deepseekv3_thinking"])
def test_a_system_message_that_would_be_moved_to_the_start_cannot_be_prompted(name: str) -> None:
    with pytest.raises(RenderError, match=r"messages\[1\], whose turn is prompted, before earlier messages"):
        renderer(name).build_generation_prompt([USER], role="system")


def test_a_template_that_refuses_the_next_message_refuses_its_prompt() -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'user' and loop.index0 % 2 %}{{ raise_exception('alternate') }}"
        "{% endif %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' }}{% endfor %}"
        "{{ '<|im_start|>assistant\n' if add_generation_prompt }}"
    )
    ours = get_renderer("template", everyones_tokenizer(), options=TemplateOptions(source))
    with pytest.raises(RenderError, match="alternate"):
        ours.build_generation_prompt([USER], role="user")
    prompt = ours.build_generation_prompt([USER, REPLY], role="user").to_ints()
    assert ours.decode(prompt).endswith("a<|im_end|><|im_start|>user\n")


# ---- prefills


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("gpt_oss_no_sysprompt", "<|start|>assistant<|channel|>final<|message|>Sure"),
        ("role_colon", "\n\nAssistant: Sure"),
        ("mistral_v3", "[/INST] Sure"),
        ("glm4_5", "<|assistant|>\n<think></think>\nSure"),
        ("glm4_5_disable_thinking", "<|assistant|>\n<think></think>\nSure"),
        ("qwen3", "assistant\n<think>\n\n</think>\n\nSure"),
        ("kimi_k2", "<|im_middle|><think></think>Sure"),
        ("tml_v0", "<|message_model|><|content_text|>Sure"),
        ("qwen3_5", "<|im_start|>assistant\n<think>\nSure"),
    ],
)
def test_a_prefill_follows_what_the_format_writes_before_such_a_text(name: str, end: str) -> None:
    prompt = renderer(name).build_generation_prompt([USER], prefill="Sure").to_ints()
    assert renderer(name).decode(prompt).endswith(end)


@pytest.mark.parametrize("name", ["role_colon", "mistral_v3"])
def test_a_prefill_is_encoded_together_with_the_space_before_it(name: str) -> None:
    prompt = renderer(name).build_generation_prompt([USER], prefill="a").to_ints()
    assert prompt == ids_of(name, [USER, REPLY])[: len(prompt)]


def test_a_prefill_follows_the_prompt_of_a_template_that_writes_replies_otherwise() -> None:
    """Gemma 4's template writes an empty reasoning block in prompts, but not in finished conversations."""
    source = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' }}{% endfor %}"
        "{{ '<|im_start|>assistant\n<think></think>' if add_generation_prompt }}"
    )
    ours = get_renderer("template", everyones_tokenizer(), options=TemplateOptions(source))
    prompt = ours.build_generation_prompt([USER], prefill="Sure").to_ints()
    assert ours.decode(prompt).endswith("<|im_start|>assistant\n<think></think>Sure")


@pytest.mark.parametrize("name", NAMES)
def test_a_prefill_and_what_is_sampled_after_it_are_one_part(name: str) -> None:
    ours = renderer(name)
    parser = ours.parser(prefill="Sure")
    parser.feed(everyones_tokenizer().encode(" thing"))
    content: Any = parser.finish()[1].message["content"]
    assert content in ("Sure thing", [{"type": "thinking", "thinking": "Sure thing"}])


def test_an_answer_after_a_prefilled_answer_is_malformed() -> None:
    second = "<|end|><|start|>assistant<|channel|>final<|message|>again<|return|>"
    ids = everyones_tokenizer().encode(second, add_special_tokens=False)
    assert renderer("gpt_oss_no_sysprompt").parse_response(ids, prefill="Sure").termination == "malformed"


@pytest.mark.parametrize(
    ("name", "prefill"),
    [
        ("qwen3", "<think>\nLet me"),
        ("qwen3_5", "</think>Sure"),
        ("qwen3_instruct", "Sure<|im_end|>"),
        ("gpt_oss_no_sysprompt", "<|channel|>final<|message|>Sure"),
        ("template", "<tool_call>"),
    ],
)
def test_a_prefill_that_spells_a_tag_is_refused(name: str, prefill: str) -> None:
    ours = get_renderer(name, everyones_tokenizer())
    with pytest.raises(RenderError, match=r"the prefill spells .*tags_in_replies='text'"):
        ours.build_generation_prompt([USER], prefill=prefill)
    prompt = renderer(name).build_generation_prompt([USER], prefill=prefill).to_ints()  # as ordinary text
    assert renderer(name).decode(prompt).endswith(prefill)


def test_a_reply_to_an_empty_conversation_is_not_parsed_as_a_reply_to_a_question() -> None:
    ours = renderer("deepseekv3_thinking")
    ids = [*everyones_tokenizer().encode("hello"), *ours.get_stop_sequences()]
    assert ours.parse_response(ids, messages=[]).message == {"role": "assistant", "content": "hello"}
    assert ours.parse_response(ids).termination == "malformed"  # its prompt has opened the reasoning

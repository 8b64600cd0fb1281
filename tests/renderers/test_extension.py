"""Each format keeps or rewrites the earlier turns of a longer conversation, as its `has_extension_property` says."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.renderers.chats import NAMES, TOOLS, conversations, decode, everyones_tokenizer, renderer
from tests.renderers.test_invariants import COMMON, FEW, every_format, fitted, prompt, supervised, takes_tools
from tinkerloop.renderers import Part, Renderer, get_renderer
from tinkerloop.renderers.template import TemplateOptions

USER = {"role": "user", "content": "q"}
PLAIN = [USER, {"role": "assistant", "content": "a"}, USER, {"role": "assistant", "content": "b"}]
REASONED = [USER, {"role": "assistant", "content": "a", "reasoning_content": "r"}, *PLAIN[2:]]


def called(content: str) -> list[dict[str, Any]]:
    """Return a conversation with a tool call after some text, the call's result and one more turn."""
    call = {"id": "functions.search:0", "type": "function", "function": {"name": "search", "arguments": {}}}
    asks = {"role": "assistant", "content": content, "tool_calls": [call]}
    return [USER, asks, {"role": "tool", "content": "t", "tool_call_id": call["id"]}, *PLAIN[1:]]


WITNESSES: dict[str, list[dict[str, Any]]] = {
    # In history, reasoning is removed or emptied.
    "deepseekv3_thinking": REASONED,
    "deepseekv4_1": REASONED,
    "deepseekv4_1_low_reasoning": REASONED,
    "deepseekv4_1_max_reasoning": REASONED,
    "kimi_k2": REASONED,
    "kimi_k25": REASONED,
    "kimi_k26": REASONED,
    "nemotron3": REASONED,
    "nemotron3_low_thinking": REASONED,
    "nemotron3_ultra": REASONED,
    "nemotron3_ultra_medium_thinking": REASONED,
    "qwen3": REASONED,
    "qwen3_5": REASONED,
    "qwen3_thinking": REASONED,
    "qwen3_vl": REASONED,
    "template": REASONED,
    # The last answer and earlier answers end with different tokens.
    "gpt_oss_high_reasoning": PLAIN,
    "gpt_oss_low_reasoning": PLAIN,
    "gpt_oss_medium_reasoning": PLAIN,
    "gpt_oss_no_sysprompt": PLAIN,
    # The empty reasoning block of the prompt is removed in history.
    "qwen3_5_disable_thinking": PLAIN,
    "qwen3_disable_thinking": PLAIN,
    # The prompt opens a reasoning block that the reply leaves empty. History then joins two newlines into one token, or
    # writes the empty block differently.
    "nemotron3_preserve_thinking": PLAIN,
    "nemotron3_ultra_preserve_thinking": PLAIN,
    "qwen3_5_preserve_thinking": PLAIN,
    "qwen3_8_low_reasoning": PLAIN,
    "qwen3_8_medium_reasoning": PLAIN,
    "qwen3_8_xhigh_reasoning": PLAIN,
    # The text before a call is stripped only in history, or only in the last turn.
    "nemotron3_disable_thinking": called(" x"),
    "nemotron3_ultra_disable_thinking": called("x "),
}
"""Formats without the extension property, each with the smallest known conversation that it rewrites."""

REWRITING = """\
{%- for m in messages -%}
    {{- '<|im_start|>' + m.role + '\\n' -}}
    {{- '<think>' + m.reasoning_content + '</think>' if loop.last and m.reasoning_content else '' -}}
    {{- m.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{{- '<|im_start|>assistant\\n' if add_generation_prompt else '' -}}
"""
"""A chat template that rewrites history.

The renderer `template` must be right for every chat template, so its example needs a template as well as messages.
"""


def witness_renderer(name: str) -> Renderer:
    options = TemplateOptions(REWRITING) if name == "template" else None
    return get_renderer(name, everyones_tokenizer(), options=options)


def test_every_format_that_claims_nothing_has_a_witness_and_no_other_has() -> None:
    assert sorted(WITNESSES) == [name for name in NAMES if not renderer(name).has_extension_property]


@pytest.mark.parametrize("name", WITNESSES)
def test_a_format_that_does_not_claim_to_extend_conversations_rewrites_one(name: str) -> None:
    ours, messages = witness_renderer(name), WITNESSES[name]
    whole = ours.build_supervised_example(messages).tokens
    earlier = [i + 1 for i, m in enumerate(messages[:-1]) if m["role"] == "assistant"]
    shorter = [ours.build_supervised_example(messages[:end]).tokens for end in earlier]
    assert any(whole[: len(tokens)] != tokens for tokens in shorter)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in WITNESSES])
@settings(max_examples=25, **COMMON)
@given(messages=conversations(), tools=st.booleans())
def test_a_format_that_claims_to_extend_conversations_extends_all(name, messages, tools):
    messages = fitted(name, messages)
    declared = TOOLS if tools and takes_tools(name) else None
    whole = supervised(name, messages, tools=declared).tokens
    for i, message in enumerate(messages[:-1]):
        if message["role"] == "assistant":
            shorter = supervised(name, messages[: i + 1], tools=declared).tokens
            assert decode(whole).startswith(decode(shorter))
            assert message["content"][:1].isspace() or whole[: len(shorter)] == shorter


@every_format
@FEW
@given(messages=conversations(), tools=st.booleans())
def test_split_examples_train_every_reply_once_as_it_would_be_sampled(name, messages, tools):
    messages = fitted(name, messages)
    declared = TOOLS if tools and takes_tools(name) else None
    ours = renderer(name)
    trained: dict[int, list[list[int]]] = defaultdict(list)
    for example in ours.build_supervised_examples(messages, "all_assistant_messages", tools=declared):
        for i in sorted(set(example.message_index[example.weights > 0].tolist())):
            at = ((example.weights > 0) & (example.message_index == i)).nonzero()[0]
            asked = prompt(name, messages[:i], tools=declared)
            assert at.tolist() == list(range(len(asked), len(asked) + len(at)))
            assert example.tokens[: len(asked)] == asked
            assert set(example.parts[at].tolist()) <= {Part.REASONING, Part.TEXT, Part.TOOL_CALL, Part.STOP}
            trained[i].append(example.tokens[at[0] : at[-1] + 1])
    sampled = {}
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            alone = supervised(name, messages[: i + 1], tools=declared)
            sampled[i] = [[t for t, w in zip(alone.tokens, alone.weights, strict=True) if w]]
    assert trained == sampled

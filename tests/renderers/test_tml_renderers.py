"""Tokens and weights equal those of the package `tml_renderers` 0.2.1, with its tokenizers, in two chat formats.

The formats have no official chat template here. The package must be installed, else the tests are skipped.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.renderers.chats import TOOLS, conversations
from tests.renderers.test_goldens import WHEEL_GOLDENS as GOLDENS
from tinkerloop.renderers import Renderer
from tinkerloop.renderers.families.tml_v0 import TmlV0, TmlV0Options
from tinkerloop.renderers.registry import presets

wheel = pytest.importorskip("tml_renderers")
from tml_renderers import chat, renderers, tokenizers, v0  # noqa: E402  # pyright: ignore[reportMissingImports]

Messages = list[dict[str, Any]]


class WheelEncoder:
    """The wheel's tokenizer as an encoder of ours."""

    name = "tml_renderers"

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode_ordinary(text))

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return bytes(self._tokenizer.decode_bytes(list(ids)))

    def id_of(self, token: str) -> int | None:
        for spelled in (token, token.strip("<|>"), token.strip("<｜>").replace("▁", "_")):
            try:
                return self._tokenizer.encode_special(spelled)
            except ValueError:
                continue
        return None


@functools.cache
def theirs(name: str) -> Any:
    match name:
        case "tml_v0":
            return v0.Renderer(tokenizers.O200kBaseChatTokenizer())
        case "deepseekv4_1_disable_thinking":
            return renderers.DeepSeekV41.chat()
        case _:
            return renderers.DeepSeekV41({"low": "low", "max": "max"}.get(name.split("_")[-2]))


@functools.cache
def ours(name: str) -> Renderer:
    family, options = presets()[name]
    tokenizer = theirs(name).tokenizer
    return family(tokenizer, options, name=name, encoder=WheelEncoder(tokenizer), tags_in_replies="text")


def written_for_the_wheel(messages: Messages, tools: Any) -> list[Any]:
    """Return the messages in the wheel's shape: reasoning is a part of the content, tools are a message."""
    written: Messages = []
    for message in messages:
        parts = [{"type": "text", "text": message["content"]}]
        reasoning = message.get("reasoning_content")
        if not message["content"] and (message.get("tool_calls") or reasoning is not None):
            parts = []
        if reasoning is not None:
            parts.insert(0, {"type": "thinking", "thinking": reasoning})
        shown = {"role": message["role"], "content": parts or ""}
        if "tool_calls" in message:
            calls = [json.loads(json.dumps(call)) for call in message["tool_calls"]]
            for call in calls:
                call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
            shown["tool_calls"] = calls
        if "tool_call_id" in message:
            shown["tool_call_id"] = message["tool_call_id"]
        written.append(shown)
    if tools:
        declared = json.dumps([{"type": "function", "function": tool} for tool in tools])
        at = next((i for i, message in enumerate(messages) if message["role"] != "system"), len(messages))
        written.insert(at, {"role": "tool_declare", "content": declared})
    return chat.OpenAIMessage.from_oss_messages(written)


def with_sorted_arguments(messages: Messages) -> Messages:
    """Return the messages with the arguments of calls sorted by name, as the wheel's reader of messages sorts them.

    Inkling's chat format has this order too.
    """
    for call in (call for message in messages for call in message.get("tool_calls", ())):
        call["function"]["arguments"] = dict(sorted(call["function"]["arguments"].items()))
    return messages


def ids(spans: Any) -> list[int]:
    return [token for span in spans for token in getattr(span, "span", span).tokens]


def prompt_of_the_wheel(name: str, messages: Messages, tools: Any) -> list[int]:
    shown = written_for_the_wheel(messages, tools)
    if name == "tml_v0":
        return ids(theirs(name).render_for_completion_with_effort(shown, 0.9)[0])
    return ids(theirs(name).render_for_completion(shown)[0])


NAMES = [
    "tml_v0",
    "deepseekv4_1",
    "deepseekv4_1_low_reasoning",
    "deepseekv4_1_max_reasoning",
    "deepseekv4_1_disable_thinking",
]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(data=st.data(), declare=st.booleans())
def test_prompts_and_finished_conversations_are_the_wheels(name: str, data: st.DataObject, declare: bool) -> None:
    late_system = (
        name == "tml_v0" or not declare
    )  # the wheel would declare the tools of DeepSeek V4.1 in a late message
    messages = data.draw(conversations(late_system=late_system, reasoning=not ours(name).disables_reasoning))
    if name != "tml_v0":
        messages = with_sorted_arguments(messages)
    tools = TOOLS if declare else None
    example = ours(name).build_supervised_example(messages, tools=tools).tokens
    finished = prompt_of_the_wheel(name, messages, tools)  # the wheel adds no header after a reply
    assert ours(name).decode(example) == ours(name).decode(finished)
    if name != "tml_v0":
        reply = ours(name).build_generation_prompt(messages[:-1], tools=tools).to_ints()
        assert finished[: len(reply)] == reply == prompt_of_the_wheel(name, messages[:-1], tools)
    assert example == finished


@pytest.mark.parametrize("name", NAMES)
def test_the_golden_files_hold_what_the_wheel_writes(name: str) -> None:
    for row in json.loads((GOLDENS / f"{name}.json").read_text(encoding="utf-8")):
        assert ours(name).decode(prompt_of_the_wheel(name, row["messages"], row["tools"])) == row["text"]


def test_the_effort_is_written_as_by_the_wheel() -> None:
    tokenizer, messages = theirs("tml_v0").tokenizer, [{"role": "user", "content": "q"}]
    encoder, shown = WheelEncoder(tokenizer), written_for_the_wheel(messages, None)
    for effort in (*(i / 1000 for i in range(0, 1000, 5)), 0.1749, 0.17449, 0.9999):
        ours_at = TmlV0(tokenizer, TmlV0Options(effort), encoder=encoder)
        wanted = ids(theirs("tml_v0").render_for_completion_with_effort(shown, effort)[0])
        assert ours_at.build_generation_prompt(messages).to_ints() == wanted, effort


@pytest.mark.parametrize("name", NAMES)
def test_sampling_stops_where_the_wheel_stops(name: str) -> None:
    assert ours(name).get_stop_sequences() == theirs(name).stop()

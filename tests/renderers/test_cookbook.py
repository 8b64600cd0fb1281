"""Tokens and weights equal those of the Cookbook's renderers in every mode. Needs the package `tinker_cookbook`.

`DIFFERENCES` lists intended differences; the table in sdk/tinkerloop/renderers/README.md gives the reasons.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.renderers.chats import decode, everyones_tokenizer, renderer
from tests.renderers.test_differences import rows
from tinkerloop.errors import RenderError
from tinkerloop.renderers import TrainOnWhat

cookbook = pytest.importorskip("tinker_cookbook.renderers")

NAMES = [
    "deepseekv3", "deepseekv3_thinking", "deepseekv4_1", "deepseekv4_1_low_reasoning", "deepseekv4_1_max_reasoning",
    "deepseekv4_1_disable_thinking", "deepseekv4_1_preserve_thinking", "glm5_3_max_reasoning", "gpt_oss_no_sysprompt",
    "kimi_k2", "kimi_k25",
    "kimi_k25_disable_thinking", "kimi_k26", "kimi_k26_preserve_thinking", "llama3", "nemotron3",
    "nemotron3_disable_thinking", "qwen3", "qwen3_disable_thinking", "qwen3_instruct", "qwen3_5",
    "qwen3_5_disable_thinking", "qwen3_8_xhigh_reasoning", "qwen3_8_disable_thinking", "role_colon",
]  # fmt: skip
CHATS = {
    "one turn": ["user", "assistant"],
    "two turns": ["user", "assistant", "user", "assistant"],
    "system": ["system", "user", "assistant", "user", "assistant"],
    "ends with a user": ["user", "assistant", "user"],
}


def chat(title: str, mode: TrainOnWhat) -> list[dict[str, Any]]:
    messages = [{"role": role, "content": f"{role} says the {i}"} for i, role in enumerate(CHATS[title])]
    if mode is TrainOnWhat.CUSTOMIZED:
        messages = [{**message, "trainable": i % 3 == 0} for i, message in enumerate(messages)]
    return messages


LAST, TURN, REPLIES, ALL, TOKENS, OTHERS, CHOSEN = (
    TrainOnWhat.LAST_ASSISTANT_MESSAGE, TrainOnWhat.LAST_ASSISTANT_TURN, TrainOnWhat.ALL_ASSISTANT_MESSAGES,
    TrainOnWhat.ALL_MESSAGES, TrainOnWhat.ALL_TOKENS, TrainOnWhat.ALL_USER_AND_SYSTEM_MESSAGES, TrainOnWhat.CUSTOMIZED,
)  # fmt: skip
PREFILLED = ("deepseekv3_thinking", "kimi_k25", "kimi_k26", "qwen3_disable_thinking")
UNASKED = ("kimi_k2", "nemotron3", "nemotron3_disable_thinking")
EFFORT = "qwen3_8_xhigh_reasoning"

# Part of the text of a row in the table -> function that tells if the row applies to this name, conversation and mode.
DIFFERENCES: dict[str, Callable[[str, str, TrainOnWhat], bool]] = {
    "text that the prompt already contains": lambda name, title, mode: (
        name.startswith(PREFILLED)
        and title != "ends with a user"
        and (mode in (REPLIES, ALL) or (mode is CHOSEN and title == "two turns"))
    ),
    "text that the format adds": lambda name, title, mode: (
        (name in UNASKED and title != "system" and mode in (ALL, OTHERS, CHOSEN))
        or (name == EFFORT and (mode in (ALL, OTHERS) or (mode is CHOSEN and title == "system")))
    ),
    "the tokens that begin a sequence": lambda name, title, mode: (
        name.startswith(("deepseek", "glm", "llama")) and mode is TOKENS
    ),
    "is part of the header": lambda name, title, mode: name.startswith("gpt_oss") and mode in (ALL, OTHERS, CHOSEN),
    "no default system message": lambda name, title, mode: (
        name.startswith(("kimi_k25", "kimi_k26")) and title != "system"
    ),
    "trains the last reply even if": lambda name, title, mode: (
        name == "kimi_k2" and title == "ends with a user" and mode is TURN
    ),
    "in the empty reasoning block of an earlier reply": lambda name, title, mode: (
        name == EFFORT
        and title != "one turn"
        and (mode in (REPLIES, ALL) or (mode is TURN and title == "ends with a user"))
    ),
    "a last reply without reasoning": lambda name, title, mode: name == "nemotron3" and title != "ends with a user",
    "ends with `User:`": lambda name, title, mode: (
        name == "role_colon" and (title == "ends with a user" or (title != "one turn" and mode in (REPLIES, ALL)))
    ),
}


TOOL = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}}
OF_TOOLS = "each tool is declared wrapped"
OF_ORDER = "not in the order of their calls"
OF_HEADERS = "follows the first system message or another reply"


def test_every_row_of_the_table_tells_of_a_difference_here() -> None:
    claimed = [
        difference for _, difference in rows("## Where tokens or weights differ from the Tinker Cookbook's, and why")
    ]
    for says, tells in DIFFERENCES.items():
        assert len([row for row in claimed if says in row]) == 1, says
        assert any(tells(name, title, mode) for name in NAMES for title in CHATS for mode in TrainOnWhat), says
    for says in (OF_TOOLS, OF_ORDER, OF_HEADERS):
        assert len([row for row in claimed if says in row]) == 1
    assert len(claimed) == len(DIFFERENCES) + 3


@pytest.mark.parametrize("name", ["qwen3", "qwen3_instruct", "qwen3_5", "kimi_k2", "nemotron3"])
def test_tools_are_declared_as_by_the_cookbook_but_for_what_the_table_says(name: str) -> None:
    user = [{"role": "user", "content": "q"}]
    theirs = cookbook.get_renderer(name, everyones_tokenizer())
    wanted = theirs.build_generation_prompt([*theirs.create_conversation_prefix_with_tools([TOOL]), *user])
    ours = renderer(name)
    declared = ours.build_generation_prompt([*ours.create_conversation_prefix_with_tools([TOOL]), *user])
    assert (decode(declared.to_ints()) != decode(wanted.to_ints())) is (name == "qwen3_5")


@pytest.mark.parametrize("name", ["glm5_3_max_reasoning", "deepseekv4_1"])
def test_results_out_of_order_raise_where_the_cookbook_sorts_them(name: str) -> None:
    call, body = cookbook.ToolCall, cookbook.ToolCall.FunctionBody
    calls = [call(id=f"c{i}", function=body(name="f", arguments='{"a": "x"}')) for i in range(2)]
    first, second = ({"role": "tool", "content": f"r{i}", "tool_call_id": f"c{i}"} for i in range(2))
    before = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": calls}]
    theirs, ours = cookbook.get_renderer(name, everyones_tokenizer()), renderer(name)
    ordered = theirs.build_generation_prompt([*before, first, second]).to_ints()
    assert theirs.build_generation_prompt([*before, second, first]).to_ints() == ordered
    before[1]["tool_calls"] = [{"id": c.id, "function": {"name": "f", "arguments": {"a": "x"}}} for c in calls]
    assert ours.build_generation_prompt([*before, first, second]).to_ints() == ordered
    with pytest.raises(RenderError, match="not in the order of the calls"):
        ours.build_generation_prompt([*before, second, first])


@pytest.mark.parametrize("before", [[], [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]])
def test_a_deepseek_reply_after_no_user_message_has_a_header_unlike_the_cookbooks(before: list[Any]) -> None:
    chat = [*(before or [{"role": "system", "content": "s"}]), {"role": "assistant", "content": "b"}]
    theirs = cookbook.get_renderer("deepseekv4_1", everyones_tokenizer()).build_supervised_example(chat)[0]
    ours = renderer("deepseekv4_1").build_supervised_example(chat).tokens
    assert decode(ours).endswith("<｜Assistant｜><think></think>b<｜end▁of▁sentence｜>")
    assert not decode(theirs.to_ints()).endswith("<｜Assistant｜><think></think>b<｜end▁of▁sentence｜>")


@pytest.mark.parametrize("mode", list(TrainOnWhat))
@pytest.mark.parametrize("title", CHATS)
@pytest.mark.parametrize("name", NAMES)
def test_tokens_and_weights_are_the_cookbooks_but_for_what_the_table_says(
    name: str, title: str, mode: TrainOnWhat
) -> None:
    ours = renderer(name).build_supervised_example(chat(title, mode), mode, allow_zero_weight=True)
    try:
        made = cookbook.get_renderer(name, everyones_tokenizer()).build_supervised_example(
            chat(title, mode), cookbook.TrainOnWhat(mode.value)
        )
        theirs = made[0].to_ints(), made[1].tolist()
    except AssertionError:  # the Cookbook adds a system message without `trainable`
        theirs = None
    differs = any(tells(name, title, mode) for tells in DIFFERENCES.values())
    assert ((ours.tokens, ours.weights.tolist()) != theirs) is differs

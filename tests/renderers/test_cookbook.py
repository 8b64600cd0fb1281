"""The same tokens and weights as the Cookbook's own renderers, in every mode, where `tinker_cookbook` is installed.

`differs` says where they differ on purpose; the table in sdk/tinkerloop/renderers/README.md says why.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.renderers.chats import everyones_tokenizer, renderer
from tinkerloop.renderers import TrainOnWhat

cookbook = pytest.importorskip("tinker_cookbook.renderers")

NAMES = [
    "deepseekv3", "deepseekv3_thinking", "glm5_3_max_reasoning", "gpt_oss_no_sysprompt", "kimi_k2", "kimi_k25",
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


REPLIES = (TrainOnWhat.LAST_ASSISTANT_MESSAGE, TrainOnWhat.LAST_ASSISTANT_TURN)


def differs(name: str, title: str, mode: TrainOnWhat) -> bool:
    ends = title == "ends with a user"
    if name.startswith(("kimi_k25", "kimi_k26")) and title != "system":
        return True  # no default system message
    if ends and (name == "role_colon" or (name in ("kimi_k2", "qwen3_8_xhigh_reasoning") and mode is REPLIES[1])):
        return True
    if name == "nemotron3":
        return not ends or mode not in (*REPLIES, TrainOnWhat.ALL_ASSISTANT_MESSAGES, TrainOnWhat.ALL_TOKENS)
    if mode is TrainOnWhat.ALL_TOKENS:
        return name.startswith(("deepseek", "glm", "llama"))  # what begins a sequence
    return mode not in REPLIES and name in (
        "deepseekv3_thinking", "kimi_k25", "kimi_k25_disable_thinking", "kimi_k26", "kimi_k26_preserve_thinking",
        "qwen3_disable_thinking", "gpt_oss_no_sysprompt", "kimi_k2", "nemotron3_disable_thinking",
        "qwen3_8_xhigh_reasoning", "role_colon",
    )  # fmt: skip


@pytest.mark.parametrize("mode", list(TrainOnWhat))
@pytest.mark.parametrize("title", CHATS)
@pytest.mark.parametrize("name", NAMES)
def test_tokens_and_weights_are_the_cookbooks(name: str, title: str, mode: TrainOnWhat) -> None:
    if differs(name, title, mode):
        return
    theirs = cookbook.get_renderer(name, everyones_tokenizer())
    tokens, weights = theirs.build_supervised_example(chat(title, mode), cookbook.TrainOnWhat(mode.value))
    ours = renderer(name).build_supervised_example(chat(title, mode), mode, allow_zero_weight=True)
    assert renderer(name).decode(ours.tokens) == renderer(name).decode(tokens.to_ints())
    assert ours.tokens == tokens.to_ints()
    assert ours.weights.tolist() == weights.tolist()

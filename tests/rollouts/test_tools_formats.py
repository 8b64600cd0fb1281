"""Tool results can follow a reply in every chat format that has tools."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.renderers.chats import claims, renderer
from tests.renderers.test_episode import sample
from tests.renderers.test_invariants import every_format
from tests.rollouts.conftest import QUESTION, run
from tests.rollouts.test_tools import add
from tinkerloop.messages import Message, UnparsedToolCall
from tinkerloop.rollouts import ToolEnvironment


@pytest.mark.parametrize("is_parsed", [True, False])
@every_format
def test_the_result_of_a_call_can_follow_it(name: str, is_parsed: bool) -> None:
    if not claims(name).tools:
        return
    environment = ToolEnvironment(QUESTION, [add], lambda reply: 0.0)
    tools = run(environment.start()).tools
    call = {"id": "functions.add:0", "name": "add", "arguments": {"a": 123}}
    episode = renderer(name).episode(QUESTION, tools, on_rewrite="segment")
    reply = episode.add_sampled(
        sample(name, QUESTION, {"role": "assistant", "content": "", "tool_calls": [call]}, tools)
    )
    if not is_parsed:
        broken = Message(role="assistant", content="", unparsed_tool_calls=[UnparsedToolCall("{", "123 is not JSON")])
        reply = replace(reply, message=broken)
    before = len(episode.tokens)
    episode.add(run(environment.step(reply)).messages)
    assert "123" in renderer(name).decode(episode.tokens[before:] if len(episode.segments) == 1 else episode.tokens)

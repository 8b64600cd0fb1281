"""`FormatClaims`: what a chat format can express, as claims that are tested both ways.

A conversation that a format claims to express must be rendered, and one that it claims not to express must raise a
`RenderError`. Everything else that the kit checks is drawn from the conversations that the format claims to express.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tinkerloop.errors import CheckFailedError, ImageError, RenderError
from tinkerloop.messages import ToolSpec
from tinkerloop.renderers import Renderer

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class FormatClaims:
    """The messages that a chat format can express. `probe_claims` finds out what a renderer accepts.

    Attributes:
        roles: the roles of messages.
        tools: declarations of tools.
        calls: tool calls, and their results.
        parallel_calls: several tool calls in one reply.
        text_with_calls: text in a reply with tool calls.
        reasoning: reasoning in a reply.
        reasoning_with_calls: reasoning in a reply with tool calls.
        text_and_reasoning_with_calls: both of them in a reply with tool calls.
        reasoning_after_results: reasoning in a reply to the result of a tool call.
        system: a system message at the start.
        later_system: system messages after the first message.
        images: images in messages of users.
        spaces: spaces at both ends of the text of a reply. A format that trims texts does not claim this.
        newlines: newlines at both ends of the text of a reply, also after reasoning.
        argument_order: the order of the arguments of a call. A format that does not claim this sorts them by name.
        rewrites: a conversation that the format rewrites when it goes on, for a format without the extension property.
            Needed only if none of `REWRITTEN` is rewritten.
    """

    roles: frozenset[str] = frozenset({"system", "user", "assistant", "tool"})
    tools: bool = True
    calls: bool = True
    parallel_calls: bool = True
    text_with_calls: bool = True
    reasoning: bool = True
    reasoning_with_calls: bool = True
    text_and_reasoning_with_calls: bool = True
    reasoning_after_results: bool = True
    system: bool = True
    later_system: bool = True
    images: bool = False
    spaces: bool = True
    newlines: bool = True
    argument_order: bool = True
    rewrites: Sequence[Mapping[str, Any]] = ()


DECLARED_TOOLS: list[ToolSpec] = [
    {
        "name": name,
        "description": "Looks up the wéather.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Where"},
                "n": {"type": "integer"},
                "unit": {"type": "string", "enum": ["C", "F"]},
            },
            "required": ["city"],
        },
    }
    for name in ("get_weather", "search")
]
"""The declarations of the tools that are called in drawn conversations."""

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000040000000400802000000250be6890000004f4944415478daedcf410d000008042035d9f5"
    "4f650a1f6ed0804e529f4d3d27202020202020202020202020202020202020202020202020202020202020202020202020202020202020"
    "202020706f01719001404c6ff97b0000000049454e44ae426082"
)
"""An image of 64 by 64 pixels, as the content of a file."""


def _user() -> dict[str, Any]:
    return {"role": "user", "content": "q"}


def _reply(content: str = "a", reasoning: str = "", calls: int = 0) -> dict[str, Any]:
    reply: dict[str, Any] = {"role": "assistant", "content": content}
    if reasoning:
        reply["reasoning_content"] = reasoning
    if calls:
        reply["tool_calls"] = [
            {"id": f"functions.search:{i}", "type": "function", "function": {"name": "search", "arguments": {}}}
            for i in range(calls)
        ]
    return reply


def _result(index: int = 0) -> dict[str, Any]:
    return {"role": "tool", "content": "t", "tool_call_id": f"functions.search:{index}"}


def _probes() -> dict[str, Messages]:
    """Return, for each claim that rendering can decide, the smallest conversation that needs it."""
    return {
        "tools": [_user(), _reply()],  # and declarations
        "calls": [_user(), _reply("", calls=1), _result(), _reply()],
        "parallel_calls": [_user(), _reply("", calls=2), _result(0), _result(1), _reply()],
        "text_with_calls": [_user(), _reply("a", calls=1)],
        "reasoning": [_user(), _reply(reasoning="r")],
        "reasoning_with_calls": [_user(), _reply("", "r", calls=1)],
        "text_and_reasoning_with_calls": [_user(), _reply("a", "r", calls=1)],
        "reasoning_after_results": [_user(), _reply("", calls=1), _result(), _reply(reasoning="r")],
        "system": [{"role": "system", "content": "s"}, _user(), _reply()],
        "later_system": [_user(), _reply(), {"role": "system", "content": "s"}, _user(), _reply()],
    }


REWRITTEN: list[Messages] = [
    # The last answer and earlier answers end differently, or the reasoning block of the prompt is changed in history.
    [_user(), _reply(), _user(), _reply("b")],
    # In history, reasoning is removed or emptied.
    [_user(), _reply(reasoning="r"), _user(), _reply("b")],
    # The text before a call is stripped only in history, or only in the last turn.
    [_user(), _reply(" x", calls=1), _result(), _reply(), _user(), _reply("b")],
    [_user(), _reply("x ", calls=1), _result(), _reply(), _user(), _reply("b")],
    # The tools are declared in the last user message.
    [{"role": "system", "content": "s", "tools": DECLARED_TOOLS}, _user(), _reply(), _user(), _reply("b")],
]
"""Conversations of which every known format without the extension property rewrites one."""


def probe_claims(renderer: Renderer, **stated: Any) -> FormatClaims:
    """Return what the renderer accepts, as claims.

    A bug that makes a renderer refuse too much is not found by a probe: compare the result with what the format should
    express, or pass the claims yourself.

    Args:
        stated: claims that are known; they are not probed.
    """
    roles = frozenset(renderer.roles)
    found: dict[str, Any] = {"roles": roles}
    for claim, messages in _probes().items():
        found[claim] = roles.issuperset(m["role"] for m in messages) and not refuses(renderer, claim, messages)
    found["spaces"], found["newlines"] = keeps_text(renderer, " a "), keeps_text(renderer, "\na\n")
    found["argument_order"] = not found["calls"] or keeps_argument_order(renderer)
    found["images"] = not refuses(renderer, "images", with_image())
    return replace(FormatClaims(**found), **stated)


def check_claims(renderer: Renderer, claims: FormatClaims) -> None:
    """Check every claim both ways: what is claimed is rendered, and what is not claimed raises a `RenderError`.

    Raises:
        CheckFailedError: a claim is wrong.
    """
    if unknown := claims.roles ^ frozenset(renderer.roles):
        raise CheckFailedError(f"the claimed roles differ from those of the renderer in {sorted(unknown)}")
    for claim, messages in {**_probes(), "images": with_image()}.items():
        if not claims.roles.issuperset(message["role"] for message in messages):
            continue
        error = refuses(renderer, claim, messages)
        if getattr(claims, claim) and error:
            raise CheckFailedError(f"the format claims {claim}, but this conversation raises {error!r}: {messages}")
        if not getattr(claims, claim) and error is None:
            raise CheckFailedError(
                f"the format does not claim {claim}, but this conversation is rendered: {messages}; claim it, or raise "
                "a RenderError"
            )
    if claims.calls and claims.argument_order is not keeps_argument_order(renderer):
        raise CheckFailedError(
            f"the format claims argument_order={claims.argument_order}, but a call shows the opposite"
        )
    for claim, claimed, text in (("spaces", claims.spaces, " a "), ("newlines", claims.newlines, "\na\n")):
        if claimed is not keeps_text(renderer, text):
            raise CheckFailedError(
                f"the format claims {claim}={claimed}, but replies of the text {text!r} show the opposite, with "
                "reasoning or without"
            )


def refuses(renderer: Renderer, claim: str, messages: Messages) -> RenderError | ImageError | None:
    """Return the error that the renderer raises for the conversation of a claim; None if it renders it."""
    tools = DECLARED_TOOLS if claim == "tools" else None
    try:
        renderer.build_supervised_example(messages, tools=tools, allow_zero_weight=True)
    except (RenderError, ImageError) as error:
        return error
    return None


def keeps_text(renderer: Renderer, text: str) -> bool:
    """Return whether a reply of this text parses to the same text, also if it has reasoning."""
    replies = (_reply(text), _reply(text, reasoning="r"))
    rendered = [reply for reply in replies if not refuses(renderer, "reasoning", [_user(), reply])]
    return all(_text_of(_parsed_back(renderer, reply)) == text for reply in rendered)


def _text_of(message: Mapping[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def keeps_argument_order(renderer: Renderer) -> bool:
    """Return whether a call keeps the order of its arguments."""
    reply = _reply("", calls=1)
    reply["tool_calls"][0]["function"]["arguments"] = {"n": 1, "city": "x"}
    calls = _parsed_back(renderer, reply).get("tool_calls", [])
    return [list(json.loads(call.function.arguments)) for call in calls] == [["n", "city"]]


def _parsed_back(renderer: Renderer, reply: dict[str, Any]) -> Mapping[str, Any]:
    """Return the reply to a question as it is parsed from the tokens that would be sampled."""
    example = renderer.build_supervised_example([_user(), reply])
    ids = [token for token, weight in zip(example.tokens, example.weights, strict=True) if weight]
    return renderer.parse_response(ids, messages=[_user()]).message


def with_image() -> Messages:
    """Return a conversation with one image."""
    return [{"role": "user", "content": [{"type": "image", "image": PNG}]}, _reply()]


def fitted(messages: Sequence[Mapping[str, Any]], claims: FormatClaims) -> Messages:
    """Return the messages without what the format does not claim to express."""
    kept: Messages = []
    for i, given in enumerate(messages):
        message = dict(given)
        role, calls = message["role"], message.get("tool_calls")
        if role not in claims.roles or ((calls or role == "tool") and not claims.calls):
            continue
        if role == "system" and not (claims.later_system if i else claims.system):
            continue
        previous = kept[-1]["role"] if kept else None
        if role == "tool" and previous == "tool" and not claims.parallel_calls:
            continue
        can_reason = claims.reasoning_with_calls if calls else claims.reasoning
        if not can_reason or (previous == "tool" and not claims.reasoning_after_results):
            message.pop("reasoning_content", None)
        if calls:
            message["tool_calls"] = calls if claims.parallel_calls else calls[:1]
            reasons = bool(message.get("reasoning_content"))
            if not (claims.text_and_reasoning_with_calls if reasons else claims.text_with_calls):
                message["content"] = ""
        kept.append(message)
    return kept

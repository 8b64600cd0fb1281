"""Invariants of parsing: sampled tokens become the message that they spell, whole and in blocks."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tinkerloop.errors import CheckFailedError
from tinkerloop.renderers import (
    MessageDelta,
    Parsed,
    Part,
    StreamingTextDelta,
    StreamingThinkingDelta,
    StreamingToolCallDelta,
)
from tinkerloop.testing._invariant import Subject, nfc, require, require_equal, sampled
from tinkerloop.testing.message_strategies import TEXTS, VALUES

_TYPED: dict[str, st.SearchStrategy[Any]] = {
    "string": st.sampled_from(["", "3", "naïve", "true", "null", "x\ny", " pad ", "\n"]) | TEXTS.map(nfc),
    "integer": st.integers(-9, 99),
    "boolean": st.booleans(),
    "array": st.lists(VALUES, max_size=2),
    "object": st.dictionaries(st.sampled_from("abc"), VALUES, max_size=2),
}


def a_reply_parses_back(subject: Subject) -> None:
    """A trained reply parses to a message that gives the same tokens when it is rendered again."""
    messages, ours = subject.conversation(), subject.renderer
    example = subject.example(messages, tools=subject.tools)
    ids = sampled(example)
    parsed = ours.parse_response(ids, tools=subject.tools, messages=messages[:-1])
    _require_complete(subject, parsed, ids)
    require_equal(sum(span.stop - span.start for span in parsed.spans), len(ids), "the number of ids in the spans")
    again = subject.example([*messages[:-1], parsed.message], tools=subject.tools)
    subject.equal_tokens(again.tokens, example.tokens, f"the parsed message {parsed.message} gives other tokens")


def a_reply_keeps_its_text(subject: Subject) -> None:
    """The text of a trained reply is its text after parsing; only spaces and newlines at its ends may be unclaimed."""
    messages, ours = subject.conversation(later_system=False), subject.renderer
    parsed = ours.parse_response(sampled(subject.example(messages)), messages=messages[:-1]).message
    text = ours.to_openai_message(parsed)["content"] or ""
    require_equal(_claimed(subject, text), _claimed(subject, messages[-1]["content"]), "the text after parsing")


def messages_survive_openais_shape(subject: Subject) -> None:
    """Messages in the shape of OpenAI's API and back are the same messages, and give the same tokens."""
    messages, ours = subject.conversation(), subject.renderer
    sent = [ours.to_openai_message(message) for message in messages]
    require_equal(json.loads(json.dumps(sent)), sent, "the messages after JSON")
    back = [ours.from_openai_message(message) for message in sent]
    require_equal([ours.to_openai_message(message) for message in back], sent, "the messages sent again")
    example = subject.example(messages)
    for other in (sent, back):
        subject.equal_tokens(subject.example(other).tokens, example.tokens, "OpenAI's shape gives other tokens")
    parsed = ours.parse_response(sampled(example), messages=messages[:-1]).message
    require_equal(
        ours.from_openai_message(ours.to_openai_message(parsed)), parsed, "the parsed message, there and back"
    )


def tool_arguments_come_back(subject: Subject) -> None:
    """Tool calls parse to the same functions, with the same arguments in the claimed order."""
    messages = subject.conversation(later_system=False)
    for i, message in enumerate(messages):
        wanted = message.get("tool_calls")
        if not wanted:
            continue
        ids = sampled(subject.example(messages[: i + 1], tools=subject.tools))
        parsed = subject.renderer.parse_response(ids, tools=subject.tools, messages=messages[:i]).message
        calls = parsed.get("tool_calls", [])
        require_equal([call.function.name for call in calls], [w["function"]["name"] for w in wanted], "the functions")
        for call, given in zip(calls, (w["function"]["arguments"] for w in wanted), strict=True):
            arguments = json.loads(call.function.arguments)
            names = [nfc(key) for key in given]
            expected = names if subject.claims.argument_order else sorted(names)
            require_equal(list(arguments), expected, "the names of the arguments")
            if subject.tools and isinstance(given.get("city"), str):
                require_equal(arguments["city"], given["city"], "the argument 'city', declared as a string")


def declared_arguments_come_back_exactly(subject: Subject) -> None:
    """The declared type of an argument decides how its text is parsed, whatever the text looks like."""
    if not (subject.claims.calls and subject.claims.tools):
        return
    arguments = subject.draw(st.fixed_dictionaries({}, optional=_TYPED), "arguments")
    call = {"id": "functions.f:0", "type": "function", "function": {"name": "f", "arguments": arguments}}
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    schema = {"type": "object", "properties": {kind: {"type": kind} for kind in _TYPED}}
    tools = [{"name": "f", "description": "Do it.", "parameters": schema}]
    ids = sampled(subject.example(messages, tools=tools))
    message: Any = subject.renderer.parse_response(ids, tools=tools, messages=messages[:1]).message
    require("tool_calls" in message, f"the call is not read; the parsed message is {message}")
    require_equal(json.loads(message["tool_calls"][0].function.arguments), arguments, "the arguments")


def parsing_never_raises(subject: Subject) -> None:
    """Any ids can be parsed, and the spans of the result account for every id."""
    ours = subject.renderer
    control = st.sampled_from(sorted(ours._assembler.ids.values()) or [0])
    ids = subject.draw(st.lists(control | st.integers(-3, 500), max_size=30), "sampled ids")
    parsed = ours.parse_response(ids)
    texts = [_decoded(subject, ids[span.start : span.stop]) for span in parsed.spans]
    require_equal("".join(texts), _decoded(subject, ids), "the text of all spans")
    require_equal(parsed.ids, tuple(ids), "the ids of the parsed reply")


def an_array_is_read_as_a_list(subject: Subject) -> None:
    """An array of ids parses like the list of them, whole and as a stream."""
    ours = subject.renderer
    ids = subject.example(
        subject.show([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}])
    ).tokens
    array = np.array(ids)
    require_equal(ours.parse_response(array), ours.parse_response(ids), "the parsed array")  # pyright: ignore
    streamed = list(ours.parse_response_streaming(array))  # pyright: ignore
    require_equal(streamed, list(ours.parse_response_streaming(ids)), "the deltas of the array")


def deltas_join_to_the_message(subject: Subject) -> None:
    """The deltas of a stream join to the parsed message, in whatever blocks the ids arrive."""
    ours, messages = subject.renderer, subject.conversation(later_system=False)
    ids = sampled(subject.example(messages))
    control = sorted(ours._assembler.ids.values()) or [0]
    cuts = subject.draw(st.lists(st.integers(0, 40), max_size=5), "places of inserted ids")
    for at in sorted(cuts, reverse=True)[: subject.draw(st.integers(0, 3), "inserted ids")]:
        ids.insert(min(at, len(ids)), subject.draw(st.sampled_from([*control, 226, 130, 10, 10]), "inserted id"))
    parser, deltas, at = ours.parser(messages=messages[:-1]), [], 0
    while at < len(ids):
        step = subject.data.draw(st.integers(1, 4))
        deltas += parser.feed(ids[at : at + step])
        at += step
    last, streamed = parser.finish()
    deltas += last
    batch = ours.parse_response(ids, messages=messages[:-1])
    require_equal(streamed, batch, "the reply parsed in blocks")
    require_equal(deltas[-1], batch.message, "the last delta")
    whole = ours.parser(messages=messages[:-1])
    require_equal(_joined(deltas), _joined([*whole.feed(ids), *whole.finish()[0]]), "the joined deltas")
    content: Any = batch.message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    text = "".join(d.text for d in deltas if isinstance(d, StreamingTextDelta))
    require_equal(text, "".join(p["text"] for p in parts if p["type"] == "text"), "the joined text")
    reasoning = "".join(d.thinking for d in deltas if isinstance(d, StreamingThinkingDelta))
    require_equal(reasoning, "".join(p["thinking"] for p in parts if p["type"] == "thinking"), "the joined reasoning")
    calls = len(batch.message.get("tool_calls", [])) + len(batch.message.get("unparsed_tool_calls", []))
    seen = {d.index for d in deltas if isinstance(d, StreamingToolCallDelta)}
    require(len(seen) <= calls, f"the deltas have {len(seen)} calls, the message has {calls}")


def no_cut_shows_in_the_deltas(subject: Subject) -> None:
    """A reply may be cut anywhere between two blocks: inside a character, a text like a tag, or a call."""
    said = "é👩🏽\u200d🚀 <think><tool_call></tool_call><|im_end|> x"
    call = {"type": "function", "function": {"name": "f", "arguments": {"city": said}}}
    plain = {"role": "assistant", "content": said, "reasoning_content": f"r {said}"}
    calling = plain | {"content": "c", "tool_calls": [call | {"id": f"functions.f:{i}"} for i in range(2)]}
    for reply in (plain, calling):
        messages = subject.show([{"role": "user", "content": "q"}, reply])
        if len(messages) == 1:  # no calls in this format
            continue
        ids = sampled(subject.example(messages))
        whole, parsed = _streamed(subject, [ids])
        require(said in "".join(whole.values()), f"the text {said!r} is not in the deltas {whole}")
        require_equal(parsed, subject.renderer.parse_response(ids), "the reply parsed as one block")
        cuts = [[ids[:i], ids[i:]] for i in range(1, len(ids))]
        sizes = [[ids[i : i + n] for i in range(0, len(ids), n)] for n in (1, 2, 3, 10)]
        for blocks in (*cuts, *sizes):
            require_equal(_streamed(subject, blocks), (whole, parsed), f"the deltas of the blocks {blocks}")


def a_cut_inside_reasoning_is_reasoning(subject: Subject) -> None:
    """A reply that is cut inside its reasoning has reasoning only: no text and no call."""
    reply = {"role": "assistant", "content": "a", "reasoning_content": "some thought"}
    messages = subject.show([{"role": "user", "content": "q"}, reply])
    example = subject.example(messages)
    ids = sampled(example)
    for cut in range(int(np.sum((example.weights > 0) & (example.parts == Part.REASONING)))):
        message, termination = subject.renderer.parse_response(ids[:cut])
        read_as = f"{cut} ids of reasoning are parsed as {termination.value}, expected truncated"
        require(termination == "truncated" and not termination, read_as)
        content: Any = message["content"]
        only = not content.strip() if isinstance(content, str) else all(p["type"] == "thinking" for p in content)
        require(only and "tool_calls" not in message, f"{cut} ids of reasoning give the message {message}")


def a_prefill_is_in_the_prompt_and_the_message(subject: Subject) -> None:
    """A prefill begins the reply in the prompt, as it is written in an example, and in the parsed message."""
    messages = subject.conversation(later_system=False)[:-1]
    prefill = subject.draw(TEXTS.map(str.strip).filter(bool), "prefill")
    if not messages or messages[-1]["role"] != "user":
        messages = [{"role": "user", "content": "q"}]
    ours, prompt = subject.renderer, subject.prompt(messages)
    primed = subject.prompt(messages, prefill=prefill)
    subject.begins_with(primed, prompt, "the prompt changes with a prefill")
    parser = ours.parser(prefill=prefill)
    parser.feed([])
    content: Any = parser.finish()[1].message["content"]
    text = content if isinstance(content, str) else "".join(p.get("text", p.get("thinking", "")) for p in content)
    require_equal(nfc(text), nfc(prefill), "the text of the parsed message")
    if not isinstance(content, str):  # the prompt opens reasoning, which the prefill begins
        text = ours.decode(primed).removeprefix(ours.decode(prompt))
        require_equal(nfc(text), nfc(prefill), "the text after the prompt")
        return
    written = ours.decode(subject.example([*messages, {"role": "assistant", "content": f"{prefill} a"}]).tokens)
    begun = ours.decode(primed)
    require(nfc(written).startswith(nfc(begun)), f"the example {written!r} does not begin with the prompt {begun!r}")


def a_quoted_tag_is_text(subject: Subject) -> None:
    """Text of a reply that spells a control token is the same text after parsing."""
    said = f"a {subject.draw(subject.hostile_texts(), 'text').strip()} b"
    place = subject.draw(st.sampled_from(["content", "reasoning_content"]), "field")
    find_call = subject.renderer.grammar.find_call
    if find_call is not None and find_call(said) < len(said):
        return  # the format reads calls in ordinary text, and this may be one
    reply = {"role": "assistant", "content": "c", "reasoning_content": "r"} | {place: said}
    messages = subject.show([{"role": "user", "content": "q"}, reply])
    if "reasoning_content" not in messages[1] and "</think>" in said:
        return  # formats read the text before this tag as inline reasoning
    ids = sampled(subject.example(messages))
    parsed = subject.renderer.parse_response(ids)
    _require_complete(subject, parsed, ids)
    read = subject.renderer.to_openai_message(parsed.message)
    require_equal(_claimed(subject, read["content"]), _claimed(subject, messages[1]["content"]), "the text")
    require_equal(read.get("reasoning_content"), messages[1].get("reasoning_content"), "the reasoning")
    require("tool_calls" not in read, f"the text became the calls {read.get('tool_calls')}")


def _require_complete(subject: Subject, parsed: Parsed, ids: list[int]) -> None:
    sampled_text, termination = subject.renderer.decode(ids), parsed.termination
    require(
        termination,
        f"the trained reply {sampled_text!r} is parsed as {termination.value}, although it ends with a stop token; the "
        f"parsed message is {parsed.message}",
    )


def _claimed(subject: Subject, text: str) -> str:
    """Return the text in NFC, without spaces and newlines at its ends that the format does not claim to keep."""
    claims = subject.claims
    return nfc(text).strip("\n" if claims.spaces and not claims.newlines else "" if claims.spaces else None)


def _decoded(subject: Subject, ids: list[int]) -> str:
    return subject.renderer._encoder.decode_bytes(ids).decode("utf-8", "replace")


def _streamed(subject: Subject, blocks: list[list[int]]) -> tuple[dict[tuple[type, int], str], Parsed]:
    """Parse a reply block by block. Return the joined texts of its deltas, and the parsed reply."""
    parser = subject.renderer.parser()
    deltas = [delta for block in blocks for delta in parser.feed(block)]
    last, parsed = parser.finish()
    return _joined(deltas + last), parsed


def _joined(deltas: list[MessageDelta]) -> dict[tuple[type, int], str]:
    """Return the joined text of the deltas, by kind and index of the part or call."""
    texts: dict[tuple[type, int], str] = {}
    for delta in deltas:
        match delta:
            case StreamingTextDelta(text, i) | StreamingThinkingDelta(text, i) | StreamingToolCallDelta(text, i):
                if not text:
                    raise CheckFailedError(f"the delta {delta!r} has no text")
                texts[type(delta), i] = texts.get((type(delta), i), "") + text
    return texts

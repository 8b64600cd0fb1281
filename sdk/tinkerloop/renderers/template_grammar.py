"""Learn the grammar of a chat template's replies from what the template writes for short example conversations.

Everything is read off the written text, in which the template's own text can be told from the strings of messages:

* the stop token is the first control token (such as `<|im_end|>`) after a reply; if several follow each other directly,
  the tokenizer's eos token is preferred. Some templates end a reply with the token of the next role only;
* the tags of reasoning are the control tokens on both sides of it;
* the syntax of tool calls is the first of `parsing.call_syntaxes` that reads back the call which the template wrote.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tinkerloop.errors import RenderError
from tinkerloop.messages import ToolCall, ToolSpec, UnparsedToolCall
from tinkerloop.renderers.families.harmony import HARMONY_GRAMMAR
from tinkerloop.renderers.parsing.call_syntaxes import Reader, reader_for
from tinkerloop.renderers.parsing.grammar import Block, Grammar
from tinkerloop.renderers.pieces import Part, Piece
from tinkerloop.renderers.template_inputs import CALL_IDS

Write = Callable[..., list[tuple[int, Piece]]]
"""Function from messages, and the keywords `tools` and `prompting`, to the pieces that the template writes."""

_USER = {"role": "user", "content": "question"}
_REPLY = {"role": "assistant", "content": "answer"}
_REASONED = {"role": "assistant", "content": "answer", "reasoning_content": "because"}
_TOOL: ToolSpec = {
    "name": "look_up",
    "description": "Looks a word up.",
    "parameters": {
        "type": "object",
        "properties": {"word": {"type": "string", "description": "The word"}},
        "required": ["word"],
    },
}
_RESULT = {"role": "tool", "content": "plant", "name": "look_up"}
_ARGUMENTS = ('{"exact": true, "limit": null, "word": "tree"}', '{"word": "tree"}')
"""The arguments of example calls. The first ones show how the template spells undeclared truth values and null. If no
reader reads them back, the second ones are tried."""


def _calling(
    *ids: str, content: str = "", reasoning: str | None = None, arguments: str = _ARGUMENTS[-1]
) -> dict[str, Any]:
    calls = [ToolCall(ToolCall.FunctionBody("look_up", arguments), id=call_id) for call_id in ids]
    thought = {} if reasoning is None else {"reasoning_content": reasoning}
    return {"role": "assistant", "content": content, "tool_calls": calls, **thought}


@dataclass(frozen=True)
class LearnedGrammar:
    """The grammar of a template's replies."""

    grammar: Grammar
    unwritten_stops: Mapping[bool, str]
    """The stop tokens that the template does not write after a last reply: after a reply with tool calls (True) and
    after any other reply (False). They are the tokens with which the next message begins."""
    is_harmony: bool = False
    """Whether a reply consists of several messages, as in gpt-oss."""


def learn_grammar(write: Write, control: Sequence[str], source: str, eos: str | None) -> LearnedGrammar:
    """Return the grammar of the replies that a template writes.

    Args:
        write: renders a conversation to pieces. It may raise `RenderError`.
        control: the control tokens of the tokenizer.
        source: the source of the template.
        eos: the tokenizer's token for the end of a text.

    Raises:
        RenderError: the template does not write the text of messages, or no token ends a reply.
    """
    used = [token for token in control if token in source]
    if HARMONY_GRAMMAR.control <= set(control) and {"<|channel|>", "<|message|>", "<|start|>"} <= set(used):
        return LearnedGrammar(HARMONY_GRAMMAR, {}, is_harmony=True)
    text_stop, is_written, around = _text_stop(write, control, eos)
    reasoning = _reasoning_block(write, control, used)
    tags = (reasoning.open, reasoning.close) if reasoning else ()
    around = (*[token for token in _openers(write, control) if token not in tags], *around)
    calls = None
    for arguments in _ARGUMENTS:
        calls = _call_format(write, control, text_stop, reasoning, arguments)
        if calls is not None and calls.reader is not None:
            break
    unwritten = {} if is_written else {False: text_stop}
    if calls is None:
        return LearnedGrammar(replace(_without_calls(text_stop, reasoning, used), wrappers=around), unwritten)
    stops = (text_stop, *([calls.stop] if calls.stop not in (None, text_stop) else []))
    if calls.stop is not None and not calls.stop_is_written:
        unwritten[True] = calls.stop
    blocks = (*([reasoning] if reasoning else []), *([calls.block] if calls.block else []))
    grammar = Grammar(
        stops,
        blocks,
        wrappers=(*around, *calls.wrappers),
        announcing=calls.wrappers,
        read_call=calls.read_fields,
        read_text=None if calls.block else calls.read_text,
        find_call=None if calls.block else calls.find_call,
    )
    return LearnedGrammar(grammar, unwritten)


def _without_calls(text_stop: str, reasoning: Block | None, used: Sequence[str]) -> Grammar:
    """Return the grammar of a template that cannot write calls. Tokens of calls still mark an unparsed call."""
    blocks = [reasoning] if reasoning else []
    if {"<tool_call>", "</tool_call>"} <= set(used):
        blocks.append(Block(Part.TOOL_CALL, "<tool_call>", "</tool_call>", lead="\n", between="\n"))
    return Grammar((text_stop,), tuple(blocks), read_call=_read_unknown)


# ---- positions in the written pieces


def _own_text(pieces: Sequence[tuple[int, Piece]], index: int, step: int = 1) -> str:
    """Return the template's own text directly after piece `index`, or directly before it with `step=-1`."""
    texts: list[str] = []
    index += step
    while 0 <= index < len(pieces) and pieces[index][1].trusted:
        texts.insert(len(texts) if step > 0 else 0, pieces[index][1].text)
        index += step
    return "".join(texts)


def _places(pieces: Sequence[tuple[int, Piece]], message: int, part: Part) -> list[int]:
    """Return the indices of the pieces of this part of a message."""
    return [i for i, (owner, piece) in enumerate(pieces) if owner == message and piece.part is part]


def _whole(pieces: Iterable[tuple[int, Piece]]) -> str:
    return "".join(piece.text for _, piece in pieces)


def control_tokens_in(text: str, control: Iterable[str]) -> list[tuple[int, str]]:
    """Return the control tokens in a text, each as (position, token). Of tokens at one position the longest counts."""
    by_length = sorted((token for token in control if token in text), key=len, reverse=True)
    places: list[tuple[int, str]] = []
    position = 0
    while position < len(text):
        token = next((token for token in by_length if text.startswith(token, position)), None)
        if token:
            places.append((position, token))
        position += len(token or " ")
    return places


# ---- stop tokens


def _text_stop(write: Write, control: Sequence[str], eos: str | None) -> tuple[str, bool, tuple[str, ...]]:
    """Return the token that ends a reply without calls, and whether the template writes it after a last reply.

    The third value are the tokens between the text and the stop token, such as Cohere's `<|END_RESPONSE|>`.
    """
    try:
        pieces = write([_USER, _REPLY])
    except RenderError as error:
        raise RenderError(
            "the template does not write the text of messages whose content is a string, here of a question and its "
            f"answer; use the renderer for this model family. {error}"
        ) from error
    tail = _own_text(pieces, _places(pieces, 1, Part.TEXT)[-1])
    if end := _first_stop(tail, control, eos):
        return end, True, tuple([token for _, token in control_tokens_in(tail[: tail.index(end)], control)])
    with contextlib.suppress(RenderError):
        pieces = write([_USER, _REPLY, _USER], prompting=True)
        end = _first_stop(_own_text(pieces, _places(pieces, 1, Part.TEXT)[-1]), control, None)
    if end is None and eos not in control:
        raise RenderError(
            "the template ends a reply without a control token and the tokenizer has no eos_token, so sampling could "
            "not stop; use a template that ends a reply with one of the tokenizer's added tokens"
        )
    return end or str(eos), end is None, ()  # with eos alone, nothing ends a reply, and training raises an error


def _openers(write: Write, control: Sequence[str]) -> list[str]:
    """Return the tokens between the prompt and the text of a reply, such as Cohere's `<|START_RESPONSE|>`."""
    with contextlib.suppress(RenderError):
        prompt, pieces = _whole(write([_USER], prompting=True)), write([_USER, _REPLY])
        before = _whole(pieces[: _places(pieces, 1, Part.TEXT)[0]])
        if before.startswith(prompt):
            return [token for _, token in control_tokens_in(before[len(prompt) :], control)]
    return []


def _first_stop(tail: str, control: Sequence[str], eos: str | None) -> str | None:
    """Return the first control token of a text, or `eos` if it is among the tokens that follow it directly."""
    places = control_tokens_in(tail, control)
    group: list[str] = []
    end = places[0][0] if places else 0
    for position, token in places:
        if position != end:
            break
        group.append(token)
        end = position + len(token)
    return eos if eos in group else (group[0] if group else None)


# ---- reasoning


def _reasoning_block(write: Write, control: Sequence[str], used: Sequence[str]) -> Block | None:
    """Return the block of reasoning: the control tokens around it, and the fixed text next to them.

    If the template removes newlines at the ends of reasoning, they are removed in parsing too, with those that the
    template writes there. Otherwise only the fixed text is removed. Some templates write reasoning only beside a call.
    """
    beside_calls = [_calling(i, content=t, reasoning="because") for t in ("answer", "") for i in CALL_IDS]
    for reasoned in (_REASONED, *beside_calls):
        pieces = []
        with contextlib.suppress(RenderError):
            pieces = write([_USER, reasoned])
        places = _places(pieces, 1, Part.REASONING)
        before, after = (_own_text(pieces, places[0], -1), _own_text(pieces, places[-1])) if places else ("", "")
        opening, closing = control_tokens_in(before, control), control_tokens_in(after, control)
        if opening and closing:
            break
    else:
        return _unwritten_reasoning(write) if {"<think>", "</think>"} <= set(used) else None
    (start, open_token), (end, close_token) = opening[-1], closing[0]
    head, foot = before[start + len(open_token) :], after[:end]
    gap = after[end + len(close_token) :] if len(closing) == 1 else ""
    trim = "" if _keeps_newlines(write, reasoned) else "\n"
    head, foot, gap = (fixed if fixed.strip(trim) else "" for fixed in (head, foot, gap))
    led = _whole(pieces[: places[0]])[: start - len(before) or None]  # up to the token that opens the block
    prompt = _whole(write([_USER], prompting=True))
    lead = led[len(prompt) :] if led.startswith(prompt) and led[len(prompt) :].isspace() else ""
    return Block(Part.REASONING, open_token, close_token, head=head, foot=foot, lead=lead, gap=gap, trim=trim)


def _unwritten_reasoning(write: Write) -> Block:
    """Return the block of reasoning of a template that writes no reasoning, but has its tags.

    If the template writes an empty block before the text of a reply, this text is not trimmed.
    """
    pieces = write([_USER, _REPLY])
    before, tag, gap = _own_text(pieces, _places(pieces, 1, Part.TEXT)[0], -1).rpartition("</think>")
    if not tag or "<think>" not in before:
        return Block(Part.REASONING, "<think>", "</think>", trim="\n")
    return Block(Part.REASONING, "<think>", "</think>", head=before.rpartition("<think>")[2], gap=gap)


def _keeps_newlines(write: Write, reasoned: Mapping[str, Any]) -> bool:
    """Return whether the template writes the newlines at both ends of reasoning."""
    reasoning = "\nbecause\n"
    with contextlib.suppress(RenderError):
        pieces = write([_USER, {**reasoned, "reasoning_content": reasoning}])
        return _whole(pieces[i] for i in _places(pieces, 1, Part.REASONING)) == reasoning
    return False


# ---- tool calls


@dataclass(frozen=True)
class _CallFormat:
    """The way in which a template writes tool calls."""

    block: Block | None
    """The block of calls; None if they are ordinary text."""
    reader: Reader | None
    """The reader of the syntax; None if no reader reads it."""
    head: str
    """The text with which a call begins: in a block, a control token after the one that opens it, if any."""
    stop: str | None
    """The token that ends a reply with calls; None if none does."""
    stop_is_written: bool
    """Whether the template writes `stop` after a last reply."""
    wrappers: tuple[str, ...] = ()
    """The token before the text of a reply with calls, if any. The token after this text opens the block."""

    def read_fields(self, fields: Sequence[str], tools: Sequence[ToolSpec]) -> Any:
        return self.reader(fields[0].removeprefix(self.head), tools) if self.reader else _read_unknown(fields, tools)

    def find_call(self, text: str) -> int:
        """Return 0 if a text may begin with a call, otherwise its length."""
        return 0 if text.lstrip()[:1] in ("", self.head[:1]) else len(text)

    def read_text(
        self, text: str, tools: Sequence[ToolSpec], /, *, follows_text: bool
    ) -> list[tuple[str, ToolCall | UnparsedToolCall | None]]:
        """Read a reply that is nothing but calls. Any other reply, such as one in JSON, is ordinary text."""
        if follows_text or not text.lstrip().startswith(self.head):
            return [(text, None)]
        if self.reader is None:
            return [(text, _read_unknown([text], tools))]
        calls = self.reader(text, tools)
        if not all(isinstance(call, ToolCall) for call in calls):
            return [(text, None)]
        return [(text if i == 0 else "", call) for i, call in enumerate(calls)]


def _read_unknown(fields: Sequence[str], tools: Sequence[ToolSpec]) -> UnparsedToolCall:
    return UnparsedToolCall(
        "".join(fields), "the syntax of this template's tool calls is not known; use the renderer for this model family"
    )


@dataclass(frozen=True)
class _CallExample:
    """A conversation that ends with a call, and how the template writes it."""

    calling: dict[str, Any]
    """The reply with the call."""
    call_id: str
    tools: list[ToolSpec] | None
    reasoning: str | None
    pieces: list[tuple[int, Piece]]
    prompt: str
    """The text of the prompt for the reply with the call."""


def _call_example(write: Write, arguments: str) -> _CallExample | None:
    """Return the first example call that the template writes after its prompt; None if it writes none.

    Some templates do not declare tools, and the prompts of some open a reasoning block, so that every reply needs
    reasoning.
    """
    for tools, call_id, reasoning in itertools.product(([_TOOL], None), CALL_IDS, (None, "because")):
        with contextlib.suppress(RenderError):
            prompt = _whole(write([_USER], tools=tools, prompting=True))
            calling = _calling(call_id, reasoning=reasoning, arguments=arguments)
            pieces = write([_USER, calling], tools=tools)
            if _whole(pieces).startswith(prompt):
                return _CallExample(calling, call_id, tools, reasoning, pieces, prompt)
    return None


def _call_format(
    write: Write, control: Sequence[str], text_stop: str, reasoning: Block | None, arguments: str
) -> _CallFormat | None:
    """Return how the template writes a call with these arguments; None if it does not write it."""
    example = _call_example(write, arguments)
    if example is None:
        return None
    (call,), pieces, prompt = example.calling["tool_calls"], example.pieces, example.prompt
    whole = _whole(pieces)
    body, tail = whole[len(prompt) :], _own_text(pieces, _places(pieces, 1, Part.TOOL_CALL)[-1])
    stop, is_written = _stop_of_calls(write, control, tail, text_stop, example)
    if stop is not None and is_written:
        tail, body = tail[: tail.rindex(stop)], body[: body.rindex(stop)]
    if reasoning is not None and reasoning.close in body:
        body = body[body.rindex(reasoning.close) + len(reasoning.close) :]
    opening, closing = control_tokens_in(body, control), control_tokens_in(tail, control)
    if not opening:
        body = body.strip()
        reader = reader_for(body, call, [_TOOL])
        return _CallFormat(None, reader, body[:1] if reader else _own_head(pieces, body), stop, is_written)
    start, open_token = opening[0]
    body = body[start + len(open_token) :]
    close_token = closing[-1][1] if closing else ""
    if close_token == open_token or body.count(close_token) != 1:
        close_token = ""
    body = body[: body.index(close_token)] if close_token else body
    head = next((token for position, token in control_tokens_in(body, control) if position == 0), "")
    reader, wrappers = reader_for(body.removeprefix(head), call, [_TOOL]), ()
    if head and _has_text_between(write, open_token, head, example):
        wrappers, open_token, head = (open_token,), head, ""
    lead, between = _text_around(write, open_token, close_token, example)
    block = Block(Part.TOOL_CALL, open_token, close_token, lead=lead, between=between)
    return _CallFormat(block, reader, head, stop, is_written, wrappers)


def _own_head(pieces: Sequence[tuple[int, Piece]], body: str) -> str:
    """Return the template's own text with which an unknown call in ordinary text begins."""
    before = _own_text(pieces, _places(pieces, 1, Part.TOOL_CALL)[0], -1)
    return next((body[:n] for n in range(len(body), 0, -1) if before.endswith(body[:n])), body)


def _stop_of_calls(
    write: Write, control: Sequence[str], tail: str, text_stop: str, example: _CallExample
) -> tuple[str | None, bool]:
    """Return the token that ends a reply with calls, and whether the template writes it after a last reply.

    If it is not the stop token of other replies, it is the token with which the tool result begins. If the template
    already writes this token at the end of the reply, it comes after the token that closes the call, and the result
    goes on with ordinary text.

    Args:
        tail: the template's own text at the end of the example.
    """
    closing = [token for _, token in control_tokens_in(tail, control)]
    if text_stop in closing:
        return text_stop, True
    try:
        result = _RESULT | {"tool_call_id": example.call_id}
        text, whole = (
            _whole(write([_USER, example.calling, result], tools=example.tools, prompting=True)),
            _whole(example.pieces),
        )
    except RenderError:
        return None, False
    if not text.startswith(whole):
        return None, False
    following = control_tokens_in(text[len(whole) :], control)
    if following and following[0][0] == 0:
        return following[0][1], False
    return (closing[-1], True) if len(closing) >= 2 and tail.endswith(closing[-1]) else (None, False)


def _has_text_between(write: Write, first: str, second: str, example: _CallExample) -> bool:
    """Return whether the text of a reply with calls is between these two control tokens, as in Llama 4."""
    with contextlib.suppress(RenderError):
        calling = _calling(example.call_id, content="answer", reasoning=example.reasoning)
        pieces = write([_USER, calling], tools=example.tools)
        place = _places(pieces, 1, Part.TEXT)[-1]
        return _own_text(pieces, place, -1).endswith(first) and _own_text(pieces, place).startswith(second)
    return False


def _text_around(write: Write, open_token: str, close_token: str, example: _CallExample) -> tuple[str, str]:
    """Return the fixed text between a reply's text and its first call, and between two calls."""
    lead, between, call_id = "", "", example.call_id
    with contextlib.suppress(RenderError):
        calling = _calling(call_id, content="answer", reasoning=example.reasoning)
        pieces = write([_USER, calling], tools=example.tools)
        before, found, _ = _own_text(pieces, _places(pieces, 1, Part.TEXT)[-1]).partition(open_token)
        lead = before if found else ""
    with contextlib.suppress(RenderError):
        second = call_id[:-1] + "2"
        pieces = write([_USER, _calling(call_id, second, reasoning=example.reasoning)], tools=example.tools)
        calls = _whole(pieces[_places(pieces, 1, Part.TOOL_CALL)[0] :])
        if close_token and open_token in calls:
            between = calls[: calls.rindex(open_token)].rpartition(close_token)[2]
    return lead, between

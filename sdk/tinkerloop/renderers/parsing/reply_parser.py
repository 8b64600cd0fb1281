"""`ReplyParser`: converts sampled ids to a message. The same state machine parses complete replies and streams.

The parser decides by ids: only the id of a control token (such as `<think>`) opens or closes a block or ends the reply.
A tag that the model spelled with ordinary tokens stays text. The parser never raises and never drops an id. A control
token in a wrong place is kept as text; outside a block, it also makes the reply `MALFORMED`.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from operator import index

from tinkerloop.messages import Content, Message, TextPart, ThinkingPart, ToolCall, ToolSpec, UnparsedToolCall
from tinkerloop.renderers.parsing.grammar import Block, CallsRead, Grammar
from tinkerloop.renderers.parsing.parsed import (
    MessageDelta,
    Parsed,
    ParsedSpan,
    ParseTermination,
    StreamingMessageHeader,
    StreamingTextDelta,
    StreamingThinkingDelta,
    StreamingToolCallDelta,
)
from tinkerloop.renderers.parsing.text_buffer import TextBuffer
from tinkerloop.renderers.parsing.token_texts import TokenTexts
from tinkerloop.renderers.pieces import Part

_TEXT, _REASONING, _TOOL_CALL, _STOP = Part.TEXT, Part.REASONING, Part.TOOL_CALL, Part.STOP  # slow to look up
_parsed_span = partial(tuple.__new__, ParsedSpan)  # takes half the time of a NamedTuple's own constructor
_Utf8 = codecs.getincrementaldecoder("utf-8")


_TextTarget = tuple[list[str], Callable[[str, int], MessageDelta], int]
"""The place to which released text is added: (the strings of a message part or of a field of a tool call, the class of
the delta, the index of the message part or the tool call)."""


class ReplyParser:
    """Parses one reply. Call `prime` with the ids of the reply that the prompt contains, then `feed`, then `finish`."""

    def __init__(
        self, grammar: Grammar, token_texts: TokenTexts, *, role: str = "assistant", tools: Sequence[ToolSpec] = ()
    ):
        self._grammar, self._token_texts, self._tools, self._role = grammar, token_texts, tools, role
        self._text_by_id = token_texts.__getitem__
        self._utf8 = _Utf8("replace")
        self._cut = False  # True while the decoder holds an incomplete UTF-8 sequence
        self._follows_token = False  # True while the tokenizer would write a space before the next text
        self._ids: list[int] = []
        self._position = 0  # index of the control token that is processed
        self._call_start = 0  # index of the first id of the open call
        self._starts: list[tuple[Part, int]] = []  # (part, index of the first id) of each span
        self._parts: list[tuple[Part, list[str]]] = []  # text and reasoning as strings, in order
        self._calls: list[ToolCall | UnparsedToolCall] = []
        self._fields: list[list[str]] = []  # strings of the fields of the open call
        self._block: Block | None = None
        self._termination: ParseTermination | None = None
        self._malformed = False
        self._is_announced = False  # True once a token was sampled after which a call must follow
        self._broke_off_in: Part | None = None
        self._deltas: list[MessageDelta] = [StreamingMessageHeader(role)]
        self._buffer = TextBuffer(
            head=grammar.text_head,
            hold=" \t\r\n" if grammar.find_call else grammar.lead,
            stop_texts=grammar.stop_texts,
            find_call=grammar.find_call,
        )
        self._target: _TextTarget | None = None  # where the buffer's text goes; None before any was released
        self._settled: _TextTarget | None = None  # the same while ordinary ids can only add text to it, else None

    def follow_token(self) -> None:
        """Expect the next ids directly after a control token, where some tokenizers write a space before a text."""
        self._follows_token = bool(self._token_texts.spaced)

    def prime(self, ids: Iterable[int]) -> None:
        """Process the ids of the reply that the prompt already contains.

        These ids belong to the message, but they were not sampled.
        """
        ids = list(ids)
        for token_id in ids:
            name = self._token_texts.control.get(token_id)
            if name is None:
                self._add_text_of([token_id])
            elif self._block is not None or name not in self._grammar.closing:
                self._control(name)  # a token that closes a block is ignored if the prompt did not open the block
            self._follows_token = token_id in self._token_texts.spaced
        if ids and self._block is None:
            self._buffer.expect_no_head()

    def feed(self, ids: Iterable[int]) -> list[MessageDelta]:
        """Process sampled ids and return the deltas that cannot change any more."""
        if type(ids) is not list:
            ids = list(map(index, ids))  # convert elements of an array to Python integers
        if self._settled is not None:  # fast path for nearly all ids, with the same result
            try:
                text = self._text_by_id(ids[0]) if len(ids) == 1 else "".join(map(self._text_by_id, ids))
            except KeyError:
                pass
            else:
                self._ids += ids
                text = self._buffer.push(text)
                if not text:
                    return []
                pieces, delta, number = self._settled
                pieces.append(text)
                return [delta(text, number)]
        offset, start, control = len(self._ids), 0, self._token_texts.control
        self._ids += ids
        for token_id in filter(control.__contains__, ids):
            i = ids.index(token_id, start)
            if i > start:
                self._ordinary(ids[start:i], offset + start)
            self._position = offset + i
            part = self._control(control[token_id])
            self._follows_token = token_id in self._token_texts.spaced
            self._span(part, offset + i)
            start = i + 1
        if start < len(ids):
            self._ordinary(ids[start:], offset + start)
        settled = self._starts and self._termination is None and not self._cut and not self._grammar.stop_texts
        self._settled = self._target if settled and not self._token_texts.spaced else None
        deltas, self._deltas = self._deltas, []
        return deltas

    def finish(self) -> tuple[list[MessageDelta], Parsed]:
        """End the reply. Return the remaining deltas, the last of which is the message, and the parsed reply."""
        self._flush()
        if self._termination is None:
            self._position = len(self._ids)
            self._close_all()
            self._termination = ParseTermination.TRUNCATED
        if self._malformed or (self._is_announced and not self._calls):
            self._termination = ParseTermination.MALFORMED
        message = self._message()
        deltas, self._deltas = [*self._deltas, message], []
        ends = [start for _, start in self._starts[1:]] + [len(self._ids)]
        spans = tuple(
            [_parsed_span((part, start, end)) for (part, start), end in zip(self._starts, ends, strict=False)]
        )
        return deltas, Parsed(message, self._termination, spans, tuple(self._ids), self._broke_off_in)

    def _ordinary(self, ids: list[int], offset: int) -> None:
        """Process ordinary ids, the first of which has the index `offset`.

        If the format has stop texts, ids are processed one by one, so that the result does not depend on how many ids
        each call of `feed` gets.
        """
        if not self._grammar.stop_texts:
            self._span(self._part, offset)
            self._add_text_of(ids)
            return
        for i, token_id in enumerate(ids, offset):
            self._span(self._part, i)
            self._add_text_of([token_id])

    def _span(self, part: Part, start: int) -> None:
        """Begin a span of `part` at the id with index `start`, unless the last span has the same part."""
        if not self._starts or self._starts[-1][0] is not part:
            self._starts.append((part, start))

    def _add_text_of(self, ids: list[int]) -> None:
        """Add the text of ordinary ids. An incomplete UTF-8 sequence at the end is held until the next ids."""
        follows_token, self._follows_token = self._follows_token, ids[-1] in self._token_texts.spaced
        if not self._cut and not self._token_texts.spaced:
            try:
                text = "".join(map(self._text_by_id, ids))
            except KeyError:
                pass
            else:
                self._push(text)
                return
        texts = self._token_texts
        text = self._utf8.decode(texts.bytes_after_token(ids) if follows_token else texts.decode_bytes(ids))
        self._cut = bool(self._utf8.getstate()[0])
        self._push(text)

    @property
    def _part(self) -> Part:
        """The part of the message that is currently parsed."""
        if self._termination is not None:
            return Part.SCAFFOLD
        return self._block.part if self._block else _TEXT

    def _control(self, name: str) -> Part:
        """Process a control token and return the part that the token belongs to."""
        self._flush()
        block, part = self._block, self._part
        if self._termination is not None:
            self._malformed = True
        elif name in self._grammar.ends:
            if block is not None and not block.close:
                self._close(block)
            self._malformed |= self._close_all()
            self._termination = ParseTermination.STOP_SEQUENCE if name in self._grammar.stops else ParseTermination.EOS
            return _STOP
        elif block is None and name in self._grammar.opening:
            self._open(self._grammar.opening[name])
            return self._part
        elif block is not None and name == block.close:
            self._close(block)
        elif block is not None and block.reopens and name == block.open:
            self._close(block)
            self._open(block)
        elif block is not None and name in block.separators:
            self._fields.append([])
            self._target = None
        elif block is not None or name not in self._grammar.wrappers:
            self._malformed |= block is None  # inside a block the token is kept as text; outside it is an error
            self._push(name)
        else:
            self._is_announced |= name in self._grammar.announcing
        return part

    def _flush(self) -> None:
        """Add a held incomplete UTF-8 sequence as U+FFFD, as other decoders do."""
        if self._cut:
            rest = self._utf8.decode(b"", final=True)
            self._utf8.reset()
            self._cut = False
            self._push(rest)

    def _open(self, block: Block) -> None:
        before = block.between if self._calls else block.lead
        is_after_text = self._buffer.pending.endswith(before)
        self._end_text(self._buffer.close(suffix=before if is_after_text else before.lstrip()))
        self._block = block
        if block.part is _TOOL_CALL:
            self._fields, self._call_start = [[]], self._position
            self._begin(TextBuffer())
            return
        self._malformed |= any(part is _TEXT for part, _ in self._parts)  # no format has reasoning after text
        self._begin(TextBuffer(drop=block.trim, head=block.head, hold=block.trim + block.foot))

    def _close(self, block: Block) -> None:
        if block.part is _TOOL_CALL:
            fields = ["".join(pieces) for pieces in self._fields]
            assert self._grammar.read_call is not None, "a grammar with tool calls reads them"
            fields[0] = fields[0].removeprefix(block.head)
            fields[-1] = fields[-1].removesuffix(block.foot)
            for call in _several(self._grammar.read_call(fields, self._tools)):
                if isinstance(call, UnparsedToolCall):
                    end = self._position + bool(block.close)  # a block without a closing token ends before the stop
                    call = UnparsedToolCall(self._sampled_call(end), call.error)
                self._calls.append(call)
        else:
            self._release(self._buffer.close(suffix=block.foot, trim=block.trim))
        self._block = None
        after_reasoning = block.part is _REASONING
        self._begin(
            TextBuffer(
                drop=block.trim if after_reasoning else "\n",
                head=block.gap if after_reasoning else "",
                hold=self._grammar.lead,
                stop_texts=self._grammar.stop_texts,
            )
        )

    def _sampled_call(self, stop: int) -> str:
        """Return the open call as it was sampled, up to the id with index `stop`, with the names of control tokens."""
        return self._token_texts.decode_bytes(self._ids[self._call_start : stop]).decode("utf-8", "replace")

    def _begin(self, buffer: TextBuffer) -> None:
        self._buffer, self._target = buffer, None

    def _close_all(self) -> bool:
        """End the open block, or the text if no block is open. Return whether a block was open."""
        block = self._block
        self._broke_off_in = block.part if block else None
        if block is None:
            self._end_text(self._buffer.close(suffix=self._grammar.text_foot))
        elif block.part is _TOOL_CALL:
            self._calls.append(UnparsedToolCall(self._sampled_call(self._position), "the call was not finished"))
        else:
            self._release(self._buffer.close(trim=block.trim))
        self._block = None
        return block is not None

    def _end_text(self, rest: str) -> None:
        """Add the held-back end of the text, which may contain calls."""
        if self._grammar.read_text is None:
            self._release(rest)
            return
        for raw, call in self._grammar.read_text(rest, self._tools, follows_text=bool(self._parts)):
            if call is None:
                self._release(raw)
                continue
            if raw:
                self._deltas.append(StreamingToolCallDelta(raw, len(self._calls)))
            self._calls.append(call)

    def _push(self, text: str) -> None:
        if self._termination is not None:
            self._malformed = True
            return
        self._release(self._buffer.push(text))
        for end in self._grammar.stop_texts if self._block is None else ():
            if self._buffer.pending.startswith(end):
                self._malformed |= self._buffer.pending != end
                self._buffer.pending = ""
                self._termination = ParseTermination.STOP_SEQUENCE
                return

    def _release(self, text: str) -> None:
        """Add text that the buffer released to the message and to the deltas."""
        if not text:
            return
        if self._target is None:
            self._target = self._new_target()
        pieces, delta, number = self._target
        pieces.append(text)
        self._deltas.append(delta(text, number))

    def _new_target(self) -> _TextTarget:
        """Return the target for the next text. Each reasoning block gets its own message part; text shares one part."""
        part = self._part
        if part is _TOOL_CALL:
            return self._fields[-1], StreamingToolCallDelta, len(self._calls)
        if part is _REASONING or not self._parts or self._parts[-1][0] is not part:
            self._parts.append((part, []))
        delta = StreamingTextDelta if part is _TEXT else StreamingThinkingDelta
        return self._parts[-1][1], delta, len(self._parts) - 1

    def _message(self) -> Message:
        parts = [(part, "".join(pieces)) for part, pieces in self._parts]
        if all(part is _TEXT for part, _ in parts):
            content: Content = "".join([text for _, text in parts])
        else:
            content = [
                TextPart(type="text", text=text) if part is _TEXT else ThinkingPart(type="thinking", thinking=text)
                for part, text in parts
            ]
        message: Message = {"role": self._role, "content": content}
        calls = [call for call in self._calls if isinstance(call, ToolCall)]
        unparsed = [call for call in self._calls if isinstance(call, UnparsedToolCall)]
        if calls:
            message["tool_calls"] = calls
        if unparsed:
            message["unparsed_tool_calls"] = unparsed
        return message


def _several(calls: CallsRead) -> list[ToolCall | UnparsedToolCall]:
    return [calls] if isinstance(calls, (ToolCall, UnparsedToolCall)) else list(calls)

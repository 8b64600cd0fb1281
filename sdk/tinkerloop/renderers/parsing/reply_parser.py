"""Sampled ids -> a message. One state machine reads whole replies and streams alike.

The machine looks at ids: only the id of a control token opens or closes a block or ends the turn, so a tag that the
model spelled out in ordinary text stays text. It never raises and never loses an id: whatever does not fit is kept as
text, and the way the turn ended says so.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from operator import index

from tinkerloop.messages import Content, Message, TextPart, ThinkingPart, ToolCall, ToolSpec, UnparsedToolCall
from tinkerloop.renderers.parsing.grammar import Block, Grammar
from tinkerloop.renderers.parsing.parsed import (
    MessageDelta,
    Parsed,
    ParseTermination,
    RawSpan,
    StreamingMessageHeader,
    StreamingTextDelta,
    StreamingThinkingDelta,
    StreamingToolCallDelta,
)
from tinkerloop.renderers.parsing.text_run import TextRun
from tinkerloop.renderers.parsing.vocabulary import Vocabulary
from tinkerloop.renderers.pieces import Part

_TEXT, _REASONING, _TOOL_CALL, _STOP = Part.TEXT, Part.REASONING, Part.TOOL_CALL, Part.STOP  # slow to look up
_raw_span = partial(tuple.__new__, RawSpan)  # in half the time of the constructor that a NamedTuple has
_Utf8 = codecs.getincrementaldecoder("utf-8")


Sink = tuple[list[str], Callable[[str, int], MessageDelta], int]
"""Where a run's text goes: into the pieces of a part of the message or of a field of a call, and out as such a delta
with the index of that part or call."""


class ReplyParser:
    """Reads one reply: `prime` it with what the prompt prefilled, `feed` ids as they come, then `finish`."""

    def __init__(
        self, grammar: Grammar, vocabulary: Vocabulary, *, role: str = "assistant", tools: Sequence[ToolSpec] = ()
    ):
        self._grammar, self._vocabulary, self._tools, self._role = grammar, vocabulary, tools, role
        self._spelled = vocabulary.__getitem__
        self._utf8 = _Utf8("replace")
        self._cut = False  # the decoder holds the beginning of a character
        self._ids: list[int] = []
        self._starts: list[tuple[Part, int]] = []  # of the spans
        self._parts: list[tuple[Part, list[str]]] = []  # text and reasoning as pieces, in order
        self._calls: list[ToolCall | UnparsedToolCall] = []
        self._fields: list[list[str]] = []  # of the open call
        self._block: Block | None = None
        self._end: ParseTermination | None = None
        self._flaw = False
        self._broke_off_in: Part | None = None
        self._deltas: list[MessageDelta] = [StreamingMessageHeader(role)]
        self._run = TextRun(
            head=grammar.text_head,
            hold=grammar.lead,
            stop_texts=grammar.stop_texts,
            may_be_call=grammar.read_text is not None,
        )
        self._sink: Sink | None = None  # of the run, once it has let text out
        self._settled: Sink | None = None  # the same, while ordinary ids can be nothing but more text for it

    def prime(self, ids: Iterable[int]) -> None:
        """Takes what the prompt already holds of the reply. It is part of the message, though it was not sampled."""
        ids = list(ids)
        for token_id in ids:
            name = self._vocabulary.control.get(token_id)
            if name is None:
                self._text_of([token_id])
            elif self._block is not None or name not in self._grammar.closing:
                self._control(name)  # a prompt may also close what it never opened, which says nothing
        if ids and self._block is None:
            self._run.expect_no_head()

    def feed(self, ids: Iterable[int]) -> list[MessageDelta]:
        """Takes sampled ids in; gives the deltas that are certain by now."""
        if type(ids) is not list:
            ids = list(map(index, ids))  # an array's elements are ids only as integers
        if self._settled is not None:  # so for nearly all ids; the longer way below would come to the same
            try:
                text = self._spelled(ids[0]) if len(ids) == 1 else "".join(map(self._spelled, ids))
            except KeyError:
                pass
            else:
                self._ids += ids
                text = self._run.push(text)
                if not text:
                    return []
                pieces, delta, number = self._settled
                pieces.append(text)
                return [delta(text, number)]
        offset, start, control = len(self._ids), 0, self._vocabulary.control
        self._ids += ids
        for token_id in filter(control.__contains__, ids):
            i = ids.index(token_id, start)
            if i > start:
                self._ordinary(ids[start:i], offset + start)
            part = self._control(control[token_id])
            self._span(part, offset + i)
            start = i + 1
        if start < len(ids):
            self._ordinary(ids[start:], offset + start)
        settled = self._starts and self._end is None and not self._cut and not self._grammar.stop_texts
        self._settled = self._sink if settled else None
        deltas, self._deltas = self._deltas, []
        return deltas

    def finish(self) -> tuple[list[MessageDelta], Parsed]:
        """The last deltas, the message itself the very last of them; and the reply as a whole."""
        self._flush()
        if self._end is None:
            self._close_all()
            self._end = ParseTermination.TRUNCATED
        if self._flaw:
            self._end = ParseTermination.MALFORMED
        message = self._message()
        deltas, self._deltas = [*self._deltas, message], []
        ends = [start for _, start in self._starts[1:]] + [len(self._ids)]
        spans = tuple([_raw_span((part, start, end)) for (part, start), end in zip(self._starts, ends, strict=False)])
        return deltas, Parsed(message, self._end, spans, tuple(self._ids), self._broke_off_in)

    def _ordinary(self, ids: list[int], offset: int) -> None:
        """Ordinary ids from `offset` on: one by one where text can end the reply, so that no chunking matters."""
        if not self._grammar.stop_texts:
            self._span(self._part, offset)
            self._text_of(ids)
            return
        for i, token_id in enumerate(ids, offset):
            self._span(self._part, i)
            self._text_of([token_id])

    def _span(self, part: Part, start: int) -> None:
        """What is read from `start` on is of this part."""
        if not self._starts or self._starts[-1][0] is not part:
            self._starts.append((part, start))

    def _text_of(self, ids: list[int]) -> None:
        """Takes in what ordinary ids spell, but for the beginning of a character that is cut off at the end."""
        if not self._cut:
            try:
                text = "".join(map(self._spelled, ids))
            except KeyError:
                pass
            else:
                self._push(text)
                return
        text = self._utf8.decode(self._vocabulary.decode_bytes(ids))
        self._cut = bool(self._utf8.getstate()[0])
        self._push(text)

    @property
    def _part(self) -> Part:
        """The part that is being read."""
        if self._end is not None:
            return Part.SCAFFOLD
        return self._block.part if self._block else _TEXT

    def _control(self, name: str) -> Part:
        self._flush()
        block, part = self._block, self._part
        if self._end is not None:
            self._flaw = True
        elif name in self._grammar.ends:
            self._flaw |= self._close_all()
            self._end = ParseTermination.STOP_SEQUENCE if name in self._grammar.stops else ParseTermination.EOS
            return _STOP
        elif block is None and name in self._grammar.opening:
            self._open(self._grammar.opening[name])
            return self._part
        elif block is not None and name == block.close:
            self._close(block)
        elif block is not None and name in block.separators:
            self._fields.append([])
            self._sink = None
        elif block is not None or name not in self._grammar.wrappers:
            self._flaw |= block is None  # a tag quoted inside a block is text there; outside it is a mistake
            self._push(name)
        return part

    def _flush(self) -> None:
        """A character that was cut in two becomes U+FFFD, as in any other decoder."""
        if self._cut:
            rest = self._utf8.decode(b"", final=True)
            self._utf8.reset()
            self._cut = False
            self._push(rest)

    def _open(self, block: Block) -> None:
        self._out(self._run.close(suffix=block.between if self._calls else block.lead))
        self._block = block
        if block.part is _TOOL_CALL:
            self._fields = [[]]
            self._begin(TextRun())
            return
        self._flaw |= any(part is _TEXT for part, _ in self._parts)  # reasoning after text: no format writes that
        self._begin(TextRun(drop=block.trim, head=block.head, hold=block.trim + block.foot))

    def _close(self, block: Block) -> None:
        if block.part is _TOOL_CALL:
            fields = ["".join(pieces) for pieces in self._fields]
            assert self._grammar.read_call is not None, "a grammar with tool calls reads them"
            fields[0] = fields[0].removeprefix(block.head)
            fields[-1] = fields[-1].removesuffix(block.foot)
            call = self._grammar.read_call(fields, self._tools)
            if isinstance(call, UnparsedToolCall):
                call = UnparsedToolCall(block.open + call.raw_text + block.close, call.error)
            self._calls.append(call)
        else:
            self._out(self._run.close(suffix=block.foot, trim=block.trim))
        self._block = None
        after_reasoning = block.part is _REASONING
        self._begin(
            TextRun(
                drop=block.trim if after_reasoning else "\n",
                head=block.gap if after_reasoning else "",
                hold=self._grammar.lead,
                stop_texts=self._grammar.stop_texts,
            )
        )

    def _begin(self, run: TextRun) -> None:
        self._run, self._sink = run, None

    def _close_all(self) -> bool:
        """Ends whatever is open; true if that was a block."""
        block = self._block
        self._broke_off_in = block.part if block else None
        if block is None:
            rest = self._run.close(suffix=self._grammar.text_foot)
            call = self._grammar.read_text(rest, self._tools) if self._grammar.read_text and not self._parts else None
            if call is None:
                self._out(rest)
            else:
                self._deltas.append(StreamingToolCallDelta(rest, 0))
                self._calls.append(call)
        elif block.part is _TOOL_CALL:
            raw = block.open + "".join("".join(pieces) for pieces in self._fields)
            self._calls.append(UnparsedToolCall(raw, "the call was not finished"))
        else:
            self._out(self._run.close(trim=block.trim))
        self._block = None
        return block is not None

    def _push(self, text: str) -> None:
        if self._end is not None:
            self._flaw = True
            return
        self._out(self._run.push(text))
        for end in self._grammar.stop_texts if self._block is None else ():
            if self._run.pending.startswith(end):
                self._flaw |= self._run.pending != end
                self._run.pending = ""
                self._end = ParseTermination.STOP_SEQUENCE
                return

    def _out(self, text: str) -> None:
        """Text that is certain: into the message and into a delta."""
        if not text:
            return
        if self._sink is None:
            self._sink = self._make_sink()
        pieces, delta, number = self._sink
        pieces.append(text)
        self._deltas.append(delta(text, number))

    def _make_sink(self) -> Sink:
        """Every reasoning block is a part; text goes on with the text before a call."""
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

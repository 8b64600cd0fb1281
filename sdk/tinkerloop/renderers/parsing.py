"""Sampled ids -> a message. One state machine reads whole replies and streams alike.

The machine looks at ids: only the id of a control token opens or closes a block or ends the turn, so a tag that the
model spelled out in ordinary text stays text. It never raises and never loses an id: whatever does not fit is kept as
text, and the way the turn ended says so.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Mapping, Sequence

from tinkerloop.encoders import Encoder
from tinkerloop.renderers.grammar import Block, Grammar
from tinkerloop.renderers.parsed import (
    MessageDelta,
    Parsed,
    RawSpan,
    StreamingMessageHeader,
    StreamingTextDelta,
    StreamingThinkingDelta,
    StreamingToolCallDelta,
)
from tinkerloop.renderers.segments import Part
from tinkerloop.renderers.text_run import TextRun
from tinkerloop.renderers.types import (
    ContentPart,
    Message,
    ParseTermination,
    TextPart,
    ThinkingPart,
    ToolCall,
    ToolSpec,
    UnparsedToolCall,
)


class ReplyParser:
    """Reads one reply: `prime` it with what the prompt prefilled, `feed` ids as they come, then `finish`."""

    def __init__(
        self,
        grammar: Grammar,
        encoder: Encoder,
        ids: Mapping[str, int],
        *,
        role: str = "assistant",
        tools: Sequence[ToolSpec] = (),
    ):
        self._grammar, self._encoder, self._tools, self._role = grammar, encoder, tools, role
        self._names = {ids[name]: name for name in grammar.control}
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._cut = False  # the decoder holds the beginning of a character
        self._ids: list[int] = []
        self._starts: list[tuple[Part, int]] = []  # of the spans
        self._parts: list[list[str]] = []  # text and reasoning as pieces, in order
        self._kinds: list[Part] = []
        self._calls: list[ToolCall | UnparsedToolCall] = []
        self._fields: list[list[str]] = []  # of the open call
        self._block: Block | None = None
        self._end: ParseTermination | None = None
        self._flaw = False
        self._broke_off_in: Part | None = None
        self._new_part = True
        self._text = TextRun(
            head=grammar.text_head,
            hold=self._grammar.lead,
            stop_texts=grammar.stop_texts,
            may_be_call=grammar.read_text is not None,
        )
        self._deltas: list[MessageDelta] = [StreamingMessageHeader(role)]
        self._delta: Callable[[str, int], MessageDelta] | None = None  # see `_settled`

    def prime(self, ids: Iterable[int]) -> None:
        """Takes what the prompt already holds of the reply. It is part of the message, though it was not sampled."""
        ids = list(ids)
        for token_id in ids:
            name = self._names.get(token_id)
            if name is None:
                self._text_of([token_id])
            elif (
                self._block is not None or name not in self._grammar.closing
            ):  # a prompt may close what it never opened
                self._control(name)
        if ids and self._block is None:
            self._text.expect_no_head()

    def feed(self, ids: Iterable[int]) -> list[MessageDelta]:
        """Takes sampled ids in; gives the deltas that are certain by now."""
        ids = list(ids)
        names = self._names
        plain = names.keys().isdisjoint(ids)
        if plain and self._delta is not None:
            try:
                text = self._text.push(self._encoder.decode_bytes(ids).decode())
            except UnicodeDecodeError:  # a character is cut off, which is for the longer way
                pass
            else:
                self._ids += ids
                if not text:
                    return []
                self._parts[-1].append(text)
                return [self._delta(text, len(self._parts) - 1)]
        offset, start = len(self._ids), 0
        self._ids += ids
        if not plain:
            for i in [i for i, token_id in enumerate(ids) if token_id in names]:
                if i > start:
                    self._ordinary(ids[start:i], offset + start)
                part = self._control(names[ids[i]])
                self._span(part, offset + i)
                start = i + 1
        if start < len(ids):
            self._ordinary(ids[start:] if start else ids, offset + start)
        self._delta = self._settled()
        deltas, self._deltas = self._deltas, []
        return deltas

    def _settled(self) -> Callable[[str, int], MessageDelta] | None:
        """What more text becomes, when it can become nothing but more of the last part; else None.

        So it is for nearly all blocks of ids, which `feed` then takes in without asking again.
        """
        part = self._part
        if self._cut or self._grammar.stop_texts or not (self._text.is_begun and self._kinds and self._starts):
            return None
        if not self._starts[-1][0] is self._kinds[-1] is part or (self._new_part and part is Part.REASONING):
            return None
        return StreamingTextDelta if part is Part.TEXT else StreamingThinkingDelta

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
        ends = [*(start for _, start in self._starts[1:]), len(self._ids)]
        spans = tuple(RawSpan(*start, end) for start, end in zip(self._starts, ends, strict=False))
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
        data = self._encoder.decode_bytes(ids)
        if not self._cut:
            try:
                text = data.decode()
            except UnicodeDecodeError:
                pass
            else:
                self._push(text)
                return
        text = self._utf8.decode(data)
        self._cut = bool(self._utf8.getstate()[0])
        self._push(text)

    @property
    def _part(self) -> Part:
        """The part that is being read."""
        if self._end is not None:
            return Part.SCAFFOLD
        return self._block.part if self._block else Part.TEXT

    def _control(self, name: str) -> Part:
        self._flush()
        block, part = self._block, self._part
        if self._end is not None:
            self._flaw = True
        elif name in self._grammar.ends:
            self._flaw |= self._close_all()
            self._end = ParseTermination.STOP_SEQUENCE if name in self._grammar.stops else ParseTermination.EOS
            return Part.STOP
        elif block is None and name in self._grammar.opening:
            self._open(self._grammar.opening[name])
            return self._part
        elif block is not None and name == block.close:
            self._close(block)
        elif block is not None and name in block.separators:
            self._fields.append([])
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
        self._out(self._text.close(suffix=block.between if self._calls else block.lead))
        self._block = block
        if block.part is Part.TOOL_CALL:
            self._fields = [[]]
            return
        self._flaw |= Part.TEXT in self._kinds  # reasoning after text: no format writes that
        self._new_part = True
        self._text = TextRun(drop=block.trim, head=block.head, hold=block.trim + block.foot)

    def _close(self, block: Block) -> None:
        if block.part is Part.TOOL_CALL:
            fields = ["".join(pieces) for pieces in self._fields]
            assert self._grammar.read_call is not None, "a grammar with tool calls reads them"
            fields[0] = fields[0].removeprefix(block.head)
            fields[-1] = fields[-1].removesuffix(block.foot)
            call = self._grammar.read_call(fields, self._tools)
            if isinstance(call, UnparsedToolCall):
                call = UnparsedToolCall(block.open + call.raw_text + block.close, call.error)
            self._calls.append(call)
        else:
            self._out(self._text.close(suffix=block.foot, trim=block.trim))
        self._block = None
        after_reasoning = block.part is Part.REASONING
        self._text = TextRun(
            drop=block.trim if after_reasoning else "\n",
            head=block.gap if after_reasoning else "",
            hold=self._grammar.lead,
            stop_texts=self._grammar.stop_texts,
        )

    def _close_all(self) -> bool:
        """Ends whatever is open; true if that was a block."""
        block, self._block = self._block, None
        self._broke_off_in = block.part if block else None
        if block is None:
            rest = self._text.close(suffix=self._grammar.text_foot)
            call = self._grammar.read_text(rest, self._tools) if self._grammar.read_text and not self._parts else None
            if call is None:
                self._out(rest)
            else:
                self._deltas.append(StreamingToolCallDelta(rest, 0))
                self._calls.append(call)
        elif block.part is Part.TOOL_CALL:
            raw = block.open + "".join("".join(pieces) for pieces in self._fields)
            self._calls.append(UnparsedToolCall(raw, "the call was not finished"))
        else:
            self._block = block  # so that the rest is let out as what it is
            self._out(self._text.close(trim=block.trim))
            self._block = None
        return block is not None

    def _push(self, text: str) -> None:
        if self._end is not None:
            self._flaw = True
        elif self._block is not None and self._block.part is Part.TOOL_CALL:
            self._fields[-1].append(text)
            self._deltas.append(StreamingToolCallDelta(text, len(self._calls)))
        else:
            self._out(self._text.push(text))
            for end in self._grammar.stop_texts if self._block is None else ():
                if self._text.pending.startswith(end):
                    self._flaw |= self._text.pending != end
                    self._text.pending = ""
                    self._end = ParseTermination.STOP_SEQUENCE
                    return

    def _out(self, text: str) -> None:
        """Text that is certain: into the message and into a delta."""
        if not text:
            return
        kind = Part.TEXT if self._block is None else Part.REASONING
        if not self._kinds or self._kinds[-1] is not kind or (self._new_part and kind is Part.REASONING):
            self._parts.append([])
            self._kinds.append(kind)
            self._new_part = False
        if kind is Part.TEXT:
            self._deltas.append(StreamingTextDelta(text, len(self._parts) - 1))
        else:
            self._deltas.append(StreamingThinkingDelta(text, len(self._parts) - 1))
        self._parts[-1].append(text)

    def _message(self) -> Message:
        content: list[ContentPart] = []
        for kind, pieces in zip(self._kinds, self._parts, strict=True):
            text = "".join(pieces)
            if kind is Part.TEXT:
                content.append(TextPart(type="text", text=text))
            else:
                content.append(ThinkingPart(type="thinking", thinking=text))
        plain = all(part["type"] == "text" for part in content)
        whole = "".join(part["text"] for part in content if part["type"] == "text")
        message = Message(role=self._role, content=whole if plain else content)
        calls = [call for call in self._calls if isinstance(call, ToolCall)]
        unparsed = [call for call in self._calls if isinstance(call, UnparsedToolCall)]
        if calls:
            message["tool_calls"] = calls
        if unparsed:
            message["unparsed_tool_calls"] = unparsed
        return message

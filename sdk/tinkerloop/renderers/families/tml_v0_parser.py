"""Parser for Inkling's chat format, in which a reply consists of several messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tinkerloop.messages import UnparsedToolCall
from tinkerloop.renderers.parsing.grammar import Block, Grammar
from tinkerloop.renderers.parsing.parsed import ParseTermination
from tinkerloop.renderers.parsing.reply_parser import ReplyParser
from tinkerloop.renderers.parsing.text_buffer import TextBuffer
from tinkerloop.renderers.pieces import Part
from tinkerloop.renderers.tool_calls import read_message_call

HEADER = "<|message_model|>"
STOP = "<|content_model_end_sampling|>"
_END = "<|end_message|>"
_REASONING = Block(Part.REASONING, "<|content_thinking|>", _END)
_CALL = Block(Part.TOOL_CALL, "<|content_invoke_tool_json|>", _END)
_CONTENTS = {
    "<|content_thinking|>": Part.REASONING,
    "<|content_text|>": Part.TEXT,
    "<|content_invoke_tool_json|>": Part.TOOL_CALL,
    "<|content_invoke_tool_text|>": Part.TOOL_CALL,
}
_ORDER: Sequence[Part] = (Part.REASONING, Part.TEXT, Part.TOOL_CALL)
TML_V0_GRAMMAR = Grammar(
    (STOP,),
    (_REASONING, _CALL),
    wrappers=(HEADER, "<|content_text|>", "<|content_invoke_tool_text|>"),
    eos=("<|endoftext|>",),
    read_call=read_message_call,
)


class TmlV0Parser(ReplyParser):
    """Parses replies that consist of messages `<|message_model|>NAME<|content_...|>CONTENT<|end_message|>`.

    A reply is `MALFORMED` if its messages are not reasoning, text and tool calls in this order, each at most once but
    the calls, or if a header is not of this form. Such a header is kept as text.
    """

    _header: str | None = ""  # the unfinished header; None while content is parsed
    _header_start = 0  # index of the first id of the header
    _last: Part | None = None  # the part of the last message
    _is_text_call = False

    def prime(self, ids: Any) -> None:
        ids = list(ids)
        if ids:  # a prefill belongs to a message with text
            self._header, self._last = None, Part.TEXT
        super().prime(ids)

    def _push(self, text: str) -> None:
        if self._header is None or self._termination is not None:
            super()._push(text)
        else:
            self._header += text

    def _control(self, name: str) -> Part:
        self._flush()
        if self._termination is not None:
            self._malformed = True
            return Part.SCAFFOLD
        part = self._part
        if name in self._grammar.ends:
            self._malformed |= self._close_all() or self._last is None
            is_stop = name in self._grammar.stops
            self._termination = ParseTermination.STOP_SEQUENCE if is_stop else ParseTermination.EOS
            return Part.STOP
        if self._header is not None:
            content = _CONTENTS.get(name)
            if content is None or not self._header.startswith(HEADER):
                self._header += name
                return part
            self._enter(name, content)
            return self._part
        if name == _END:
            self._leave()
            self._header, self._header_start = "", self._position + 1
            return part
        self._malformed |= self._block is None
        self._push(name)
        return part

    def _enter(self, name: str, part: Part) -> None:
        """Begin the content of a message after its header."""
        assert self._header is not None
        author, self._header = self._header.removeprefix(HEADER), None
        is_late = self._last is not None and _ORDER.index(part) < _ORDER.index(self._last)
        self._malformed |= is_late or (part is self._last is not Part.TOOL_CALL)
        self._last = part
        self._begin(TextBuffer())
        if part is Part.TOOL_CALL:
            self._block, self._call_start = _CALL, self._header_start
            self._fields, self._is_text_call = [[author], []], name != _CALL.open
            return
        self._block = _REASONING if part is Part.REASONING else None
        if author:
            self._malformed = True
            self._push(author)

    def _leave(self) -> None:
        """End the open message."""
        if self._block is None:
            self._release(self._buffer.close())
            self._begin(TextBuffer())
        elif self._is_text_call:
            raw = self._sampled_call(self._position)
            self._calls.append(UnparsedToolCall(raw, "a call as text has no name and no arguments"))
            self._block, self._is_text_call = None, False
            self._begin(TextBuffer())
        else:
            if self._block is _REASONING and self._target is None and not self._buffer.pending:
                self._parts.append((Part.REASONING, []))  # empty reasoning is a message too
            is_call = self._block is _CALL
            self._close(self._block)
            if is_call and isinstance(call := self._calls[-1], UnparsedToolCall):  # the end token is written anyway
                self._calls[-1] = UnparsedToolCall(self._sampled_call(self._position), call.error)

    def _close_all(self) -> bool:
        """End the open message or header. Return whether one was open."""
        header, self._header = self._header, None
        if header is None:
            super()._close_all()
            return True
        if header.startswith(HEADER) and header != HEADER:  # only a call has a name in its header
            self._block, self._call_start = _CALL, self._header_start
            return super()._close_all()
        self._push(header.removeprefix(HEADER))
        return bool(header)

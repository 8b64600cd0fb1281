"""Parser for Harmony, the chat format of gpt-oss, in which a reply consists of several messages."""

from __future__ import annotations

import re
from typing import Any

from tinkerloop.renderers.parsing.grammar import Block, Grammar
from tinkerloop.renderers.parsing.parsed import ParseTermination
from tinkerloop.renderers.parsing.reply_parser import ReplyParser
from tinkerloop.renderers.parsing.text_buffer import TextBuffer
from tinkerloop.renderers.pieces import Part
from tinkerloop.renderers.tool_calls import read_harmony_call

_REASONING = Block(Part.REASONING, "<|channel|>", "<|end|>")
_CALL = Block(Part.TOOL_CALL, "<|channel|>", "<|call|>")
HARMONY_GRAMMAR = Grammar(
    ("<|return|>", "<|call|>"),
    (_REASONING, _CALL),
    wrappers=("<|start|>", "<|message|>", "<|constrain|>"),
    read_call=read_harmony_call,
)


_RECIPIENT = r"(?: to=([^\s<]+))?"
_HEADER = re.compile(
    rf"<\|start\|>assistant{_RECIPIENT} ?<\|channel\|>(analysis|commentary|final){_RECIPIENT}"
    r"(?: ?<\|constrain\|>\w+| \w+)? ?"
)
_PLAIN_HEADERS = tuple(f"<|start|>assistant<|channel|>{name}" for name in ("analysis", "commentary", "final"))
_IN_PROMPT = "<|start|>assistant"
"""The beginning of the first header, with which the prompt ends."""


class HarmonyParser(ReplyParser):
    """Parses replies that consist of one or more messages `HEADER<|message|>CONTENT<|end|>`.

    A header begins with `<|start|>assistant` or at the end of the prompt. It determines the kind of its message:
    `to=functions.NAME` means a tool call, the channel `analysis` means reasoning, `commentary` and `final` mean text.

    Any other header makes the reply `MALFORMED`. It is kept as text, and so is its message. If it has a recipient, the
    message is an unparsed tool call.
    """

    _header: list[str] | None = None  # strings of the unfinished header; None while content is parsed
    _header_start = 0  # index of the first id of the header
    _in_prompt = ""  # the beginning of the header that is in the prompt
    _has_answer = False  # True after a message of the channel `final`

    def prime(self, ids: Any) -> None:
        self._header, self._in_prompt = [], _IN_PROMPT
        ids = list(ids)
        if ids:  # a prefill belongs to the text of the final answer
            self._header, self._has_answer = None, True
        super().prime(ids)

    def _push(self, text: str) -> None:
        if self._header is None or self._termination is not None:
            super()._push(text)
        else:
            self._header.append(text)

    def _control(self, name: str) -> Part:
        self._flush()
        if self._termination is not None:
            self._malformed = True
            return Part.SCAFFOLD
        part = self._part
        if name in self._grammar.ends:
            self._end(name)
            return Part.STOP
        if name == "<|end|>":
            self._malformed |= self._header is not None or part is Part.TOOL_CALL
            self._leave()
            self._begin_header(self._position + 1)
            return part
        if self._header is None:
            self._malformed = True
            self._push(name)
            return part
        if name == "<|message|>":
            self._enter("".join(self._header))
            return self._part
        if name == "<|start|>" and self._header:
            self._malformed = True
            self._leave()
            self._begin_header(self._position)
        self._header.append(name)
        return Part.TEXT

    def _begin_header(self, start: int) -> None:
        self._header, self._header_start, self._in_prompt = [], start, ""
        self._block, self._target = None, None

    def _enter(self, header: str) -> None:
        """Begin the content after `header`, which determines whether it is reasoning, a tool call or text."""
        known = _HEADER.fullmatch(self._in_prompt + header)
        recipients = [to for to in (known[1], known[3]) if to] if known else []
        self._malformed |= known is None or len(recipients) > 1 or self._has_answer
        self._header, self._block = None, None
        self._begin(TextBuffer())
        if recipients or " to=" in header:
            self._block, self._call_start = _CALL, self._header_start
            self._fields = [recipients if len(recipients) == 1 else [], []]
        elif known is None:
            self._push(f"{header}<|message|>")
        elif known[2] == "analysis":
            self._block = _REASONING
        else:
            self._has_answer = known[2] == "final"

    def _end(self, name: str) -> None:
        """End the reply with the stop token `name`."""
        part = self._part
        is_finished_call = part is Part.TOOL_CALL and name == "<|call|>"
        is_finished_text = self._header is None and part is Part.TEXT and name != "<|call|>"
        self._malformed |= not (is_finished_call or is_finished_text)
        self._broke_off_in = None if is_finished_call or part is Part.TEXT else part
        self._leave()
        self._termination = ParseTermination.STOP_SEQUENCE

    def _leave(self) -> None:
        """End the message or the unfinished header."""
        if self._header is not None:
            self._close_all()
        elif self._block is None:
            self._release(self._buffer.close())
        else:
            if self._block is _REASONING and self._target is None and not self._buffer.pending:
                self._parts.append((Part.REASONING, []))  # the official template writes empty reasoning too
            self._close(self._block)

    def _close_all(self) -> bool:
        if self._header is not None:
            self._leave_header("".join(self._header))
        return super()._close_all()

    def _leave_header(self, header: str) -> None:
        """End a header without `<|message|>`. With a recipient it is an unfinished call; any other text stays text."""
        self._header, self._block = None, None
        self._begin(TextBuffer())
        if " to=" in header:
            self._block, self._call_start, self._fields = _CALL, self._header_start, [[]]
        elif not any(known.startswith(self._in_prompt + header) for known in _PLAIN_HEADERS):
            super()._push(header)

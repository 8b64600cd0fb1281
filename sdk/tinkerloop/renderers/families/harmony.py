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


class HarmonyParser(ReplyParser):
    """Parses replies that consist of one or more messages `HEADER<|message|>CONTENT<|end|>`.

    A header begins with `<|start|>` or at the end of the prompt. It determines the kind of its message:
    `<|channel|>analysis` means reasoning, `to=functions.NAME` means a tool call, and any other header means text.
    """

    _header: list[str] | None = None  # strings of the unfinished header; None while content is parsed

    def _begin_header(self) -> None:
        self._header, self._target = [], None

    def prime(self, ids: Any) -> None:
        self._begin_header()
        ids = list(ids)
        if ids:  # a prefill belongs to the text of the final answer
            self._header = None
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
        if self._header is not None:
            if name == "<|message|>":
                self._enter("".join(self._header))
                return self._part
            if name in ("<|channel|>", "<|constrain|>"):
                self._header.append(" " + name)
                return Part.TEXT
        if name == "<|start|>" and self._header is None and self._block is None and self._between:
            self._begin_header()
            self._between = False
            return Part.TEXT
        if name == "<|end|>" and self._header is None and not self._between:
            part = self._part
            self._leave()
            self._between = True
            return part
        if name in self._grammar.ends:
            part = self._part
            inside_call = part is Part.TOOL_CALL
            if part is Part.REASONING or (inside_call and name != "<|call|>"):
                self._broke_off_in = part
            self._malformed |= self._header is not None or inside_call != (name == "<|call|>") or part is Part.REASONING
            self._leave()
            self._termination = ParseTermination.STOP_SEQUENCE
            return Part.STOP
        self._malformed = True
        self._push(name)
        return self._part

    _between = False  # True after `<|end|>` and before the next `<|start|>`

    def _enter(self, header: str) -> None:
        """Begin the content after `header`, which determines whether it is reasoning, a tool call or text."""
        self._header = None
        recipient = re.search(r"to=(\S+)", header)
        channel = re.search(r"<\|channel\|>(\w+)", header)
        self._block = None
        if recipient is not None:
            self._block = _CALL
            self._fields = [[recipient[1].split("<|")[0]], []]
        elif channel is not None and channel[1] == "analysis":
            self._block = _REASONING
        self._begin(TextBuffer())

    def _leave(self) -> None:
        if self._block is None:
            self._release(self._buffer.close())
            return
        if self._block is _REASONING and self._target is None and not self._buffer.pending:
            self._parts.append((Part.REASONING, []))  # the official template writes empty reasoning too
        self._close(self._block)

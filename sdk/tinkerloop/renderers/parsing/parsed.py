"""Results of parsing a reply: deltas while its ids are sampled, and a `Parsed` for the complete reply."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from tinkerloop.messages import Message
from tinkerloop.renderers.pieces import Part


class ParseTermination(StrEnum):
    """How a sampled reply ended. The value is truthy if a stop sequence or an end-of-text token ended the reply."""

    STOP_SEQUENCE = "stop_sequence"
    EOS = "eos"
    TRUNCATED = "truncated"
    """The reply has no end, usually because sampling reached its token limit."""
    MALFORMED = "malformed"
    """The reply ended inside a block, continued after its end, or contains a control token in a wrong place."""

    @property
    def is_clean(self) -> bool:
        return self in (ParseTermination.STOP_SEQUENCE, ParseTermination.EOS)

    @property
    def is_stop_sequence(self) -> bool:
        return self is ParseTermination.STOP_SEQUENCE

    def __bool__(self) -> bool:
        return self.is_clean


@dataclass(frozen=True)
class StreamingMessageHeader:
    """The first delta of a reply, with the role of the message."""

    role: str


# The next three classes are not frozen: creating a frozen dataclass takes three times as long (300 ns), and a stream
# creates one object for every token.


@dataclass(slots=True)
class StreamingTextDelta:
    text: str
    content_index: int = 0


@dataclass(slots=True)
class StreamingThinkingDelta:
    thinking: str
    content_index: int = 0


@dataclass(slots=True)
class StreamingToolCallDelta:
    """A piece of the raw text of tool call number `index`, without the tags around the call."""

    text: str
    index: int


MessageDelta = StreamingMessageHeader | StreamingTextDelta | StreamingThinkingDelta | StreamingToolCallDelta | Message


class ParsedSpan(NamedTuple):
    """The sampled ids `start` to `stop - 1`, parsed as one part. The spans of a reply cover all of its ids."""

    part: Part
    start: int
    stop: int


@dataclass(frozen=True)
class Parsed:
    """A parsed reply. It can be unpacked as `message, termination`."""

    message: Message
    termination: ParseTermination
    spans: tuple[ParsedSpan, ...]
    ids: tuple[int, ...]
    """The sampled ids, unchanged."""
    broke_off_in: Part | None = None
    """The part of the block that was open when the reply ended: reasoning or tool call. None if no block was open."""

    def __iter__(self) -> Iterator[Any]:
        return iter((self.message, self.termination))

    @property
    def text(self) -> str:
        """The text of the reply, without its reasoning and its tool calls."""
        content = self.message["content"]
        if isinstance(content, str):
            return content
        return "".join(part["text"] for part in content if part["type"] == "text")

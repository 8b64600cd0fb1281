"""Results of parsing a reply: deltas while its ids are sampled, and at the end the whole reply as `Parsed`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from tinkerloop.messages import Message
from tinkerloop.renderers.pieces import Part


class ParseTermination(StrEnum):
    """How a sampled turn ended. True in a condition if it ended cleanly: by a stop sequence or an end-of-text token."""

    STOP_SEQUENCE = "stop_sequence"
    EOS = "eos"
    TRUNCATED = "truncated"
    """The reply has no end: sampling reached its token limit."""
    MALFORMED = "malformed"
    """The reply ended inside a block, went on after its end, or has tags where the format has none."""

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
    """The first delta of a reply."""

    role: str


# The next three are not frozen, because a frozen dataclass takes three times as long to make (300 ns) and a stream has
# one for every token.


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
    """Raw text of tool call number `index`, without the tags of the format."""

    text: str
    index: int


MessageDelta = StreamingMessageHeader | StreamingTextDelta | StreamingThinkingDelta | StreamingToolCallDelta | Message


class ParsedSpan(NamedTuple):
    """The sampled ids [start, stop), read as one part. The spans of a reply cover all of its ids."""

    part: Part
    start: int
    stop: int


@dataclass(frozen=True)
class Parsed:
    """A parsed reply. Unpacks as `message, termination`."""

    message: Message
    termination: ParseTermination
    spans: tuple[ParsedSpan, ...]
    ids: tuple[int, ...]
    """The ids as sampled."""
    broke_off_in: Part | None = None
    """The block that was open when the reply ended: reasoning or a tool call. None if no block was open."""

    def __iter__(self) -> Iterator[Any]:
        return iter((self.message, self.termination))

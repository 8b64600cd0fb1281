"""What reading a reply gives: deltas as its ids come, and the reply as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from tinkerloop.messages import Message
from tinkerloop.renderers.pieces import Part


class ParseTermination(StrEnum):
    """How a sampled turn ended. True exactly when it ended cleanly."""

    STOP_SEQUENCE = "stop_sequence"
    EOS = "eos"
    TRUNCATED = "truncated"
    """There was no end: sampling ran into its token limit."""
    MALFORMED = "malformed"
    """It stopped inside a block, went on after its end, or holds tags where the format has none."""

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


# The next three are not frozen: a stream has one for every token, and a frozen dataclass takes three times as long
# to make (300 ns).


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
    """Raw text of tool call number `index`, its format's tags left out."""

    text: str
    index: int


MessageDelta = StreamingMessageHeader | StreamingTextDelta | StreamingThinkingDelta | StreamingToolCallDelta | Message


class RawSpan(NamedTuple):
    """Sampled ids [start, stop) and what they were read as. The spans of a reply cover all of its ids."""

    part: Part
    start: int
    stop: int


@dataclass(frozen=True)
class Parsed:
    """A parsed reply. Unpacks as `message, termination`."""

    message: Message
    termination: ParseTermination
    spans: tuple[RawSpan, ...]
    ids: tuple[int, ...]
    """As sampled."""
    broke_off_in: Part | None = None
    """The block that was open when the reply ended: its reasoning or a tool call."""

    def __iter__(self) -> Iterator[Any]:
        return iter((self.message, self.termination))

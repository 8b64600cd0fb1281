"""What conversations are made of: messages, their parts, tool calls; and the names of what is trained.

Messages are dictionaries in OpenAI's shape. Every name here is spelled as in the Tinker Cookbook.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict

Role = str


class TextPart(TypedDict):
    type: Literal["text"]
    text: str


class ThinkingPart(TypedDict):
    type: Literal["thinking"]
    thinking: str


class ImagePart(TypedDict):
    type: Literal["image"]
    image: Any
    """Whatever `tinkerloop.images.chunks` opens: bytes, a path, a PIL image, an array, a data URI."""


ContentPart = TextPart | ThinkingPart | ImagePart
Content = str | list[ContentPart]


@dataclass(frozen=True)
class ToolCall:
    """One call that an assistant makes."""

    class FunctionBody(NamedTuple):
        """A function's name and its arguments: a JSON object in text, exactly as written."""

        name: str
        arguments: str

    function: FunctionBody
    id: str | None = None
    type: Literal["function"] = "function"


@dataclass(frozen=True, slots=True)
class UnparsedToolCall:
    """A call that could not be read: its text as sampled, and why."""

    raw_text: str
    error: str


class ToolSpec(TypedDict):
    """The declaration of a tool; `parameters` is a JSON schema."""

    name: str
    description: str
    parameters: dict[str, Any]


class Message(TypedDict):
    role: Role
    content: Content
    tool_calls: NotRequired[list[ToolCall]]
    unparsed_tool_calls: NotRequired[list[UnparsedToolCall]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]
    trainable: NotRequired[bool]
    """Only with `TrainOnWhat.CUSTOMIZED`, and then on every message."""
    weight: NotRequired[float]
    """Multiplies the weight that `TrainOnWhat` gives the message's tokens."""
    tools: NotRequired[list[ToolSpec]]
    """On the first system message: the tools the conversation declares."""


class TrainOnWhat(StrEnum):
    """Which tokens of a conversation carry weight. Role headers and separators do only in `ALL_TOKENS`."""

    LAST_ASSISTANT_MESSAGE = "last_assistant_message"
    LAST_ASSISTANT_TURN = "last_assistant_turn"
    """The last assistant message and those before it, back to the user's message that they answer."""
    ALL_ASSISTANT_MESSAGES = "all_assistant_messages"
    ALL_MESSAGES = "all_messages"
    ALL_TOKENS = "all_tokens"
    ALL_USER_AND_SYSTEM_MESSAGES = "all_user_and_system_messages"
    CUSTOMIZED = "customized"
    """The messages whose `trainable` is true."""


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

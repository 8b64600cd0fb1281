"""The shape of messages: as users write them, and as renderers read them once they are checked.

Users write messages as dictionaries, in OpenAI's shape or the Tinker Cookbook's; public names are spelled as there.
`message_checks.read_conversation` turns them into a `CheckedConversation`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
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
    """Anything that `tinkerloop.images` opens: bytes, a path, a PIL image, an array, a data URI."""


ContentPart = TextPart | ThinkingPart | ImagePart
Content = str | list[ContentPart]


@dataclass(frozen=True)
class ToolCall:
    """A call that an assistant makes."""

    class FunctionBody(NamedTuple):
        """A function's name and its arguments: the text of a JSON object, exactly as it was written."""

        name: str
        arguments: str

    function: FunctionBody
    id: str | None = None
    type: Literal["function"] = "function"


@dataclass(frozen=True, slots=True)
class UnparsedToolCall:
    """A sampled call that could not be parsed: its text, and the reason."""

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
    """Used only with `TrainOnWhat.CUSTOMIZED`, which needs it on every message."""
    weight: NotRequired[float]
    """Factor for the weight that `TrainOnWhat` gives to the message's tokens."""
    tools: NotRequired[list[ToolSpec]]
    """Allowed on the first system message: the tools that the conversation declares."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image in a message, not opened yet."""

    source: Any


class ChatMessage(NamedTuple):
    """A checked message. `reasoning` is None where none was given, which is not the same as an empty one."""

    role: str
    content: tuple[str | Image, ...]
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    unparsed: tuple[UnparsedToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    trainable: bool | None = None
    weight: float = 1.0

    @property
    def text(self) -> str:
        """The text of the message, without its images."""
        content = self.content
        if len(content) == 1 and isinstance(content[0], str):
            return content[0]
        return "".join([part for part in content if isinstance(part, str)])

    @property
    def is_text(self) -> bool:
        """True if the message has no images."""
        return all(isinstance(part, str) for part in self.content)

    def with_text(self, text: str) -> ChatMessage:
        """Return the message with `text` as its content. A message with images is returned unchanged."""
        content = (text,) if text else ()
        return self if content == self.content or not self.is_text else self._replace(content=content)


@dataclass(frozen=True)
class CheckedConversation:
    """A checked conversation: its messages, the declared tools, and whether a reply is to be sampled after them."""

    messages: tuple[ChatMessage, ...]
    tools: tuple[ToolSpec, ...] = ()
    prompting: bool = False

    def __len__(self) -> int:
        return len(self.messages)

    def __getitem__(self, index: int) -> ChatMessage:
        return self.messages[index]

    def role(self, index: int) -> str | None:
        """The role of message `index`; None outside the conversation."""
        return self.messages[index].role if 0 <= index < len(self.messages) else None

    def is_final(self, index: int) -> bool:
        """True for the reply that is to be sampled, or for the last message of a finished conversation."""
        return index == len(self.messages) - (not self.prompting)

    @cached_property
    def last_user(self) -> int:
        """The index of the last user message; -1 if there is none."""
        return next((i for i in range(len(self.messages) - 1, -1, -1) if self.messages[i].role == "user"), -1)

    @cached_property
    def last_query(self) -> int:
        """The index of the last user message that is not a wrapped tool result, else -1 (Qwen templates)."""
        for i in range(len(self.messages) - 1, -1, -1):
            if self.messages[i].role == "user":
                content = self.messages[i].text
                if not (content.startswith("<tool_response>") and content.endswith("</tool_response>")):
                    return i
        return -1

"""Types of messages: the dictionaries that users pass, and the checked, immutable types that renderers use.

Users write messages as dictionaries in the shape of OpenAI's API or of the Tinker Cookbook. Public names are spelled
as in the Cookbook. `message_checks.read_conversation` converts the dictionaries to a `CheckedConversation`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict

Role = str


class TextPart(TypedDict):
    """Text in a message."""

    type: Literal["text"]
    text: str


class ThinkingPart(TypedDict):
    """Reasoning in an assistant message."""

    type: Literal["thinking"]
    thinking: str


class ImagePart(TypedDict):
    """An image in a message."""

    type: Literal["image"]
    image: Any
    """An image as bytes, a path, a PIL image, an array or a data URI."""


ContentPart = TextPart | ThinkingPart | ImagePart
Content = str | list[ContentPart]


@dataclass(frozen=True)
class ToolCall:
    """A tool call in an assistant message."""

    class FunctionBody(NamedTuple):
        """The name of a function and the arguments of the call, as the unchanged text of a JSON object."""

        name: str
        arguments: str

    function: FunctionBody
    id: str | None = None
    type: Literal["function"] = "function"


@dataclass(frozen=True, slots=True)
class UnparsedToolCall:
    """A sampled tool call that could not be parsed. `raw_text` is its text as sampled, `error` is the reason."""

    raw_text: str
    error: str


class ToolSpec(TypedDict):
    """The declaration of a tool. `parameters` is a JSON schema of an object."""

    name: str
    description: str
    parameters: dict[str, Any]


class Message(TypedDict):
    """A message as users write it."""

    role: Role
    content: Content
    tool_calls: NotRequired[list[ToolCall]]
    unparsed_tool_calls: NotRequired[list[UnparsedToolCall]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]
    trainable: NotRequired[bool]
    """Whether the message is trained. Required on every message in mode `TrainOnWhat.CUSTOMIZED`, else not allowed."""
    weight: NotRequired[float]
    """Factor that multiplies the weight of the message's tokens; 1 by default."""
    tools: NotRequired[list[ToolSpec]]
    """The tools that the conversation declares. Allowed only on a system message at the start of the conversation."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image in a message. `source` has not been opened yet."""

    source: Any


class ChatMessage(NamedTuple):
    """A checked message. `reasoning` is None if the message has no reasoning, and `""` if its reasoning is empty."""

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
        """The text of the message; images are left out."""
        content = self.content
        if len(content) == 1 and isinstance(content[0], str):
            return content[0]
        return "".join([part for part in content if isinstance(part, str)])

    @property
    def is_text(self) -> bool:
        """True if the message has no images."""
        return all(isinstance(part, str) for part in self.content)

    def with_text(self, text: str) -> ChatMessage:
        """Return a copy of the message with `text` as its content. A message with images is returned unchanged."""
        content = (text,) if text else ()
        return self if content == self.content or not self.is_text else self._replace(content=content)


@dataclass(frozen=True)
class CheckedConversation:
    """A checked conversation: its messages and the declared tools.

    `prompting` is True if a reply is to be sampled after the messages, and False for a finished conversation.
    """

    messages: tuple[ChatMessage, ...]
    tools: tuple[ToolSpec, ...] = ()
    prompting: bool = False

    def __len__(self) -> int:
        return len(self.messages)

    def __getitem__(self, index: int) -> ChatMessage:
        return self.messages[index]

    def role(self, index: int) -> str | None:
        """Return the role of turn `index`, or None if the conversation has no turn `index`.

        The turn after the last message is the assistant's if `prompting`.
        """
        if index == len(self.messages):
            return "assistant" if self.prompting else None
        return self.messages[index].role if 0 <= index < len(self.messages) else None

    def is_final(self, index: int) -> bool:
        """Return whether turn `index` is the last one.

        The last turn is the reply to be sampled (`index == len(self)`) if `prompting`, else the last message.
        """
        return index == len(self.messages) - (not self.prompting)

    @cached_property
    def last_user(self) -> int:
        """The index of the last user message, or -1 if there is none."""
        return next((i for i in range(len(self.messages) - 1, -1, -1) if self.messages[i].role == "user"), -1)

    @cached_property
    def last_query(self) -> int:
        """The index of the last user message that is not a tool result in `<tool_response>` tags; -1 if there is none.

        Qwen's chat templates keep reasoning only after this message.
        """
        for i in range(len(self.messages) - 1, -1, -1):
            if self.messages[i].role == "user":
                content = self.messages[i].text
                if not (content.startswith("<tool_response>") and content.endswith("</tool_response>")):
                    return i
        return -1

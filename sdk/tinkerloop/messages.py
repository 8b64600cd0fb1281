"""What a conversation is made of: messages, their parts, tool calls and declarations, and the one check of them.

Users write messages as dictionaries, in OpenAI's shape or the Tinker Cookbook's; every public name is spelled as there.
`read_conversation` checks them and gives the immutable shape that data, renderers and episodes work on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict

import numpy as np

from tinkerloop.errors import RenderError

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


_write = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
_LARGEST_WEIGHT = float(np.finfo(np.float32).max)
_CALLING = frozenset({"role", "content", "tool_calls"})
_KEYS = frozenset(Message.__annotations__) | {"reasoning_content", "reasoning", "thinking"}


@dataclass(frozen=True, slots=True)
class Image:
    """An image in a message, not opened yet."""

    source: Any


class ChatMessage(NamedTuple):
    """One message. `reasoning` is None where the author gave none, which is not the same as an empty one."""

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
        """All of the text, images left out."""
        content = self.content
        if len(content) == 1 and isinstance(content[0], str):
            return content[0]
        return "".join([part for part in content if isinstance(part, str)])

    @property
    def is_text(self) -> bool:
        """Whether there are no images."""
        return all(isinstance(part, str) for part in self.content)

    def with_text(self, text: str) -> ChatMessage:
        """This message with its text, where it has no images, replaced."""
        content = (text,) if text else ()
        return self if content == self.content or not self.is_text else self._replace(content=content)


@dataclass(frozen=True)
class CheckedConversation:
    """What is rendered: the messages, the declared tools, and whether a reply is asked for after them."""

    messages: tuple[ChatMessage, ...]
    tools: tuple[ToolSpec, ...] = ()
    prompting: bool = False

    def __len__(self) -> int:
        return len(self.messages)

    def __getitem__(self, index: int) -> ChatMessage:
        return self.messages[index]

    def role(self, index: int) -> str | None:
        """The role of message `index`, None outside the conversation."""
        return self.messages[index].role if 0 <= index < len(self.messages) else None

    def is_final(self, index: int) -> bool:
        """Whether `index` is the turn that is asked for, or the last message of a finished conversation."""
        return index == len(self.messages) - (not self.prompting)

    @cached_property
    def last_user(self) -> int:
        """The index of the last user message, -1 if there is none."""
        return next((i for i in range(len(self.messages) - 1, -1, -1) if self.messages[i].role == "user"), -1)

    @cached_property
    def last_query(self) -> int:
        """The last user message that is not a tool's result in disguise (as the Qwen templates see it), else -1."""
        for i in range(len(self.messages) - 1, -1, -1):
            if self.messages[i].role == "user":
                content = self.messages[i].text
                if not (content.startswith("<tool_response>") and content.endswith("</tool_response>")):
                    return i
        return -1


def read_conversation(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Any] | None = None,
    *,
    prompting: bool = False,
    lift: Callable[[ChatMessage], ChatMessage] = lambda message: message,
) -> CheckedConversation:
    """Checks messages in the Cookbook's or OpenAI's shape; the input is left as it is. `lift` sees each once read.

    Raises:
        RenderError: a message that is not one, with its index and what was expected.
    """
    if not _is_sequence(messages):
        raise RenderError(f"expected a list of messages, got {type(messages).__name__}")
    read = tuple([lift(read_message(message, i)) for i, message in enumerate(messages)])
    carried = [(i, m["tools"]) for i, m in enumerate(messages) if m.get("tools")]
    if carried and tools:
        raise RenderError("tools are declared twice: by `tools=` and by a message")
    if carried and (len(carried) > 1 or carried[0][0] != 0 or read[0].role != "system"):
        raise RenderError("only a system message at the start can carry `tools`")
    declared = tools or (carried[0][1] if carried else ())
    if not _is_sequence(declared):
        raise RenderError(f"expected a list of tools, got {type(declared).__name__}")
    return CheckedConversation(read, tuple([_read_tool(tool) for tool in declared]), prompting)


def _is_sequence(value: object) -> bool:
    """Whether it may be a list of messages or tools; a list or a tuple nearly always, and that is seen much faster."""
    return type(value) in (list, tuple) or (isinstance(value, Iterable) and not isinstance(value, (str, Mapping)))


def _fail(index: int, problem: str) -> RenderError:
    return RenderError(f"messages[{index}]: {problem}")


def read_message(message: Any, index: int = 0) -> ChatMessage:
    """One message, checked; errors call it `messages[index]`."""
    if type(message) is not dict and not isinstance(message, Mapping):  # the abstract check is slow
        raise _fail(index, f"expected a dictionary with 'role' and 'content', got {type(message).__name__}")
    role, content = message.get("role"), message.get("content")
    if len(message) == 2 and type(role) is str and type(content) is str:  # nearly all messages
        return ChatMessage(role, (_utf8(content, index),) if content else ())
    given = message.get("tool_calls")
    if type(given) is list and type(content) is str and role == "assistant" and _CALLING.issuperset(message):
        calls = tuple([_read_call(call, index) for call in given])  # nearly all others
        return ChatMessage(role, (_utf8(content, index),) if content else (), None, calls)
    if not isinstance(role, str):
        raise _fail(index, f"'role' must be a string, got {role!r}")
    if not _KEYS.issuperset(message):
        unknown = sorted(str(key) for key in message if key not in _KEYS and message[key] not in (None, [], {}, ""))
        if unknown:
            raise _fail(index, f"unknown keys {', '.join(unknown)}; known are {', '.join(sorted(_KEYS))}")
    if "content" not in message and not message.get("tool_calls"):
        raise _fail(index, "'content' is missing")

    content, thoughts = _read_content(content, index)
    thought = [message[k] for k in ("reasoning_content", "reasoning", "thinking") if isinstance(message.get(k), str)]
    if len(thought) + bool(thoughts) > 1:
        raise _fail(index, "reasoning is given more than once")
    reasoning = "".join(thoughts) if thoughts else (_utf8(thought[0], index) if thought else None)
    calls = tuple([_read_call(call, index) for call in _listed(message, "tool_calls", index)])
    unparsed = tuple([_read_unparsed(call, index) for call in _listed(message, "unparsed_tool_calls", index)])
    if role != "assistant" and (calls or unparsed or reasoning is not None):
        raise _fail(index, f"only an assistant reasons and calls tools, the role is {role!r}")
    trainable, weight = message.get("trainable"), message.get("weight", 1.0)
    if not (trainable is None or isinstance(trainable, bool)):
        raise _fail(index, f"'trainable' must be true or false, got {trainable!r}")
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not abs(weight) <= _LARGEST_WEIGHT:
        raise _fail(index, f"'weight' must be a finite number, got {weight!r}")
    return ChatMessage(
        role, content, reasoning, calls, unparsed, _string(message, "tool_call_id", index),
        _string(message, "name", index), trainable, float(weight),
    )  # fmt: skip


def _listed(message: Mapping[str, Any], key: str, index: int) -> Iterable[Any]:
    value = message.get(key) or ()
    if not _is_sequence(value):
        raise _fail(index, f"'{key}' must be a list, got {type(value).__name__}")
    return value


def _string(message: Mapping[str, Any], key: str, index: int) -> str | None:
    value = message.get(key)
    if value is not None and not isinstance(value, str):
        raise _fail(index, f"'{key}' must be a string, got {value!r}")
    return value if value is None else _utf8(value, index)


def _read_content(content: Any, index: int) -> tuple[tuple[str | Image, ...], list[str]]:
    """Content -> (text and images in order, adjacent text joined; reasoning)."""
    if content is None:
        return (), []
    if isinstance(content, str):
        return (_utf8(content, index),) if content else (), []
    if isinstance(content, Mapping) or not isinstance(content, Sequence):
        raise _fail(index, f"'content' must be a string or a list of parts, got {type(content).__name__}")
    parts: list[str | Image] = []
    thoughts: list[str] = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            text = _utf8(part["text"], index)
            if parts and isinstance(parts[-1], str):
                parts[-1] += text
            elif text:
                parts.append(text)
        elif kind == "thinking" and isinstance(part.get("thinking"), str):
            if parts:
                raise _fail(index, "a thinking part follows text; reasoning comes first in every format")
            thoughts.append(_utf8(part["thinking"], index))
        elif kind == "image" and part.get("image") is not None:
            parts.append(Image(part["image"]))
        elif kind == "image_url" and part.get("image_url") is not None:
            url = part["image_url"]
            parts.append(Image(url["url"] if isinstance(url, Mapping) and "url" in url else url))
        else:
            raise _fail(index, f"unknown content part {str(part)[:80]}; known are text, thinking, image and image_url")
    return tuple(parts), thoughts


def _utf8(text: str, index: int) -> str:
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _fail(index, f"the text is not valid Unicode: {error.reason} at {error.start}") from None
    return text


def _read_call(call: Any, index: int) -> ToolCall:
    if isinstance(call, ToolCall):
        name, arguments = call.function
        if not (isinstance(name, str) and name and isinstance(arguments, str)):
            raise _fail(index, f"a ToolCall needs a name, and its arguments as JSON text, got {str(call)[:80]}")
        _utf8(name, index)
        _utf8(arguments, index)
        if call.id is not None:
            _string({"id": call.id}, "id", index)
        return call
    body = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(body, Mapping) or not isinstance(body.get("name"), str) or not body["name"]:
        raise _fail(index, f"a tool call needs a function with a name, got {str(call)[:80]}")
    arguments = body.get("arguments", {})
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, (str, Mapping)):
        raise _fail(index, f"the arguments of {body['name']!r} must be a JSON object, got {type(arguments).__name__}")
    try:
        written = arguments if isinstance(arguments, str) else _write(arguments)
    except (TypeError, ValueError, RecursionError) as error:
        raise _fail(index, f"the arguments of {body['name']!r} are not JSON: {error}") from None
    called = ToolCall.FunctionBody(_utf8(body["name"], index), _utf8(written, index))
    return ToolCall(called, _string(call, "id", index))


def _read_unparsed(call: Any, index: int) -> UnparsedToolCall:
    if isinstance(call, Mapping) and isinstance(call.get("raw_text"), str):
        return UnparsedToolCall(_utf8(call["raw_text"], index), str(call.get("error", "")))
    if not isinstance(call, UnparsedToolCall) or not isinstance(call.raw_text, str):
        raise _fail(index, f"an unparsed tool call needs 'raw_text' and 'error', got {str(call)[:80]}")
    _utf8(call.raw_text, index)
    return call


def _read_tool(tool: Any) -> ToolSpec:
    """A declaration, bare or inside OpenAI's `{"type": "function", "function": ...}`."""
    body = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(body, Mapping) or not isinstance(body.get("name"), str):
        raise RenderError(f"a tool needs a name, a description and parameters, got {str(tool)[:80]}")
    schema = body.get("parameters") or {}
    if not isinstance(schema, Mapping) or not isinstance(schema.get("properties") or {}, Mapping):
        raise RenderError(f"the parameters of tool {body['name']!r} must be a JSON schema of an object, got {schema!r}")
    try:
        json.dumps(dict(body), ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise RenderError(f"the declaration of tool {body['name']!r} is not JSON in Unicode: {error}") from None
    return body  # type: ignore[return-value]

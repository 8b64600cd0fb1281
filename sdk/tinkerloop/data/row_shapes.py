"""Read what rows of public data sets write in other places than the messages, so that no row loses what it contains.

`read_row` converts these spellings to the one shape of a conversation. A key that could change the meaning of a row,
and that nothing reads, is rejected.

>>> row = {"messages": [{"role": "user", "content": "<image>What is it?"}], "images": ["a.png"], "id": 7}
>>> read_row(row)["messages"]
[{'role': 'user', 'content': [{'type': 'image', 'image': 'a.png'}, {'type': 'text', 'text': 'What is it?'}]}]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from tinkerloop.errors import DataError
from tinkerloop.message_checks import KEYS_OF_A_PART, MESSAGE_KEYS
from tinkerloop.message_values import is_empty
from tinkerloop.strict_json import STRICT_JSON
from tinkerloop.tool_checks import KEYS_OF_A_CALL, KEYS_OF_A_FUNCTION

# fmt: off
BOOKKEEPING_KEYS = frozenset({
    "created_at", "date", "hash", "id", "index", "lang", "language", "message_id", "model", "num_tokens", "parent_id",
    "source", "timestamp", "token_count", "turn_id", "uuid",
})
"""Keys of a message that say where it comes from, not what it says. They are left out and counted."""

UNREAD_COLUMNS = frozenset({
    "audio", "audios", "available_tools", "chat_template_kwargs", "documents", "kto_tag", "loss_weight", "reasoning",
    "reasoning_content", "sample_weight", "thinking", "tool_definitions", "video", "videos", "weight", "weights",
})
"""Keys of a row that contain part of a conversation, or change how it is trained, and that nothing reads."""
# fmt: on

_LOSS_FLAGS = ("loss", "train", "training")
_SYSTEM_COLUMNS = ("system", "system_prompt")
_READ_COLUMNS = frozenset({"image", "images", "functions", *_SYSTEM_COLUMNS})
_IMAGE = "<image>"


def read_row(row: Mapping[str, Any], ignore_keys: Collection[str] = (), ignored: Counter[str] | None = None) -> Any:
    """Convert the known public spellings of a row with `messages` to the shape that `check_conversation` checks.

    * Messages and tools as JSON text; `functions`, the older name of tools.
    * `image` or `images`: the images of the placeholders `<image>` in the texts, or of image parts without an image.
    * `system` or `system_prompt`: the first message.
    * `loss`, `train` or `training` of a message: false means weight 0.
    * `function_call` of a message, and the role `function`: the older form of a tool call and of its result.

    Args:
        row: the row. It is not modified.
        ignore_keys: keys of the row or of its messages that are not read. Those of messages are left out and counted;
            those of the row are kept.
        ignored: a counter that is updated with the message keys that were left out.

    Raises:
        DataError: the row or a message has a key that could change the meaning and that nothing reads, or contradicts
            itself.
    """
    read = {**row, "messages": _listed(row["messages"], "messages")}
    if read.get("tools") is not None:
        read["tools"] = _tools(read["tools"])
    columns = {key for key in read.keys() & (_READ_COLUMNS | UNREAD_COLUMNS) if key not in ignore_keys}
    columns = {key for key in columns if read[key] is not None}
    unread = sorted(key for key in columns & UNREAD_COLUMNS if not is_empty(read[key]))
    if isinstance(read.get("label"), bool) and "label" not in ignore_keys:  # in TRL, false marks an undesired reply
        unread.append("label")
    if unread:
        raise DataError(
            f"the row has {', '.join(map(repr, unread))}, which nothing reads, so the row would lose it",
            remedy=_remedy("write its content into the messages with an adapter", unread),
        )
    if isinstance(read["messages"], list):
        read["messages"] = [_message(m, i, ignore_keys, ignored) for i, m in enumerate(read["messages"])]
        if columns:
            _read_columns(read, columns)
    return read


def _remedy(first: str, keys: list[str]) -> str:
    shown = f"({', '.join(map(repr, keys))}{',' if len(keys) == 1 else ''})"
    return f"{first}, or pass ignore_keys={shown} if it may be lost"


def _listed(value: Any, name: str) -> Any:
    """Return the list that a JSON text contains. Any other value is returned unchanged; it is checked later."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        return STRICT_JSON.decode(value)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name} is JSON text that cannot be read: {error}") from error


def _tools(value: Any) -> Any:
    tools = _listed(value, "tools")
    if not isinstance(tools, list):
        return tools
    texts = (f"[{tool}]" if isinstance(tool, str) and tool.lstrip().startswith("{") else None for tool in tools)
    return [tool if text is None else _listed(text, "tools")[0] for tool, text in zip(tools, texts, strict=True)]


# Keys of one message ------------------------------------------------------------------------------------------------


def _message(message: Any, index: int, ignore_keys: Collection[str], ignored: Counter[str] | None) -> Any:
    if not isinstance(message, Mapping):
        return message
    if message.get("role") == "function":
        message = {**message, "role": "tool"}
    if message.get("role") is None:
        return message  # with all keys: the error message about the missing role lists them
    others: dict[str, Any] = {}
    read = _known(message, _KNOWN_KEYS, others, ignore_keys, ignored)
    if "function_call" in others:
        if read.get("tool_calls"):
            raise DataError(f"messages[{index}] has both tool_calls and function_call", remedy="keep one of them")
        read["tool_calls"] = [{"function": others.pop("function_call")}]
    flags = {key: others.pop(key) for key in _LOSS_FLAGS if key in others}
    if flags:
        _read_flags(read, flags, index)
    if others:
        keys = sorted(map(str, others))
        raise DataError(
            f"messages[{index}]: nothing reads {', '.join(map(repr, keys))}, so the message could lose its meaning",
            remedy=_remedy("convert it with an adapter", keys),
        )
    return read


_CALL = {**dict.fromkeys(KEYS_OF_A_CALL), "function": dict.fromkeys(KEYS_OF_A_FUNCTION)}
_KNOWN_KEYS = {**dict.fromkeys(MESSAGE_KEYS), "content": [dict.fromkeys(KEYS_OF_A_PART)], "tool_calls": [_CALL]}
"""The keys that a message may have, each with the keys in its value: a list if the value is one; None for any value."""


def _known(given: Any, known: Any, others: dict[str, Any], keys: Collection[str], ignored: Counter[str] | None) -> Any:
    """Return a message without the keys that are not known, also in its parts and calls. Add them to `others`.

    Bookkeeping keys and `keys` are not added to `others`, but counted in `ignored`. A value of another type than
    expected is returned unchanged; it is checked later.
    """
    if isinstance(known, list) and isinstance(given, list | tuple):
        return [_known(item, known[0], others, keys, ignored) for item in given]
    if not isinstance(known, dict) or not isinstance(given, Mapping):
        return given
    read: dict[str, Any] = {}
    for key, value in given.items():
        if key in known:
            read[key] = _known(value, known[key], others, keys, ignored)
        elif is_empty(value):
            continue
        elif key not in keys and key not in BOOKKEEPING_KEYS:
            others[key] = value
        elif ignored is not None:
            ignored[key] += 1
    return read


def _read_flags(message: dict[str, Any], flags: dict[str, Any], index: int) -> None:
    """Set weight 0 for a message whose flag is false."""
    shown = ", ".join(f"{key}={value!r}" for key, value in flags.items())
    if any(value not in (True, False) for value in flags.values()) or len(set(flags.values())) > 1:
        raise DataError(
            f"messages[{index}]: {shown}, but a flag must be true or false, and several must agree",
            remedy='for a factor on the loss of a message, write "weight"',
        )
    trained = bool(next(iter(flags.values())))
    if trained and message.get("role") != "assistant":
        raise DataError(
            f"messages[{index}]: {shown} asks to train a message of role {message.get('role')!r}",
            remedy='write "trainable" for every message and train with train_on_what="customized"',
        )
    if message.get("weight") is not None and bool(message["weight"]) != trained:
        raise DataError(
            f"messages[{index}]: {shown} contradicts weight={message['weight']!r}", remedy="keep one of them"
        )
    if not trained:
        message["weight"] = 0


# Columns beside the messages ----------------------------------------------------------------------------------------


def _read_columns(row: dict[str, Any], columns: set[str]) -> None:
    """Move columns of the row into its messages and tools."""
    for key in _SYSTEM_COLUMNS:
        if key in columns and (system := row.pop(key)):
            row["messages"] = with_system(row["messages"], key, system, _remedy("keep one of them", [key]))
    if "functions" in columns and (functions := row.pop("functions")):
        if row.get("tools"):
            raise DataError("the row has both 'tools' and 'functions'", remedy="keep one of them")
        row["tools"] = _tools(functions)
    given = {key: row.pop(key) for key in ("image", "images") if key in columns}
    if len(given) > 1:
        raise DataError("the row has both 'image' and 'images'", remedy="keep one of them")
    for key, value in given.items():
        images = list(value) if isinstance(value, list | tuple) else [value]
        row["messages"] = _with_images(row["messages"], images, key)


def with_system(messages: list[Any], key: str, system: Any, remedy: str) -> list[Any]:
    """Return the messages of a row with `system`, the value under `key`, as the first, unless it is there already.

    Raises:
        DataError: the messages begin with another system message.
    """
    first = messages[0] if messages else None
    if not isinstance(first, Mapping) or first.get("role") not in ("system", "developer"):
        return [{"role": "system", "content": system}, *messages]
    if first.get("content") != system:
        raise DataError(
            f"the row has {key!r}, and its messages begin with another {first['role']} message", remedy=remedy
        )
    return messages


def _with_images(messages: list[Any], images: list[Any], key: str) -> list[Any]:
    """Return the messages with the images in the place of the placeholders, in order."""
    rest, count = iter(images), 0

    def replaced(content: Any) -> Iterator[Any]:
        nonlocal count
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            kind = part.get("type") if isinstance(part, Mapping) else None
            if kind == "text" and isinstance(part.get("text"), str) and _IMAGE in part["text"]:
                for number, text in enumerate(part["text"].split(_IMAGE)):
                    if number:
                        count += 1
                        yield {"type": "image", "image": next(rest, None)}
                    if text:
                        yield {"type": "text", "text": text}
            elif kind == "image" and part.get("image") is None:
                count += 1
                yield {"type": "image", "image": next(rest, None)}
            else:
                yield part

    read = []
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        if (isinstance(content, str) and _IMAGE in content) or isinstance(content, list):
            message = {**message, "content": list(replaced(content))}
        read.append(message)
    if count != len(images):
        raise DataError(
            f"the row has {len(images)} under {key!r}, but its messages have {count} places for an image",
            remedy=_remedy(f"write one {_IMAGE} for each image in the texts", [key]),
        )
    return read

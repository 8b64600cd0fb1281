"""Adapters: functions that convert a row of another shape to `{"messages": [...]}`.

An adapter keeps the keys of the row that it does not convert.

>>> alpaca({"instruction": "Add.", "input": "1, 2", "output": "3", "id": 7})["messages"]
[{'role': 'user', 'content': 'Add.\\n\\n1, 2'}, {'role': 'assistant', 'content': '3'}]
>>> sharegpt({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]})
{'messages': [{'role': 'user', 'content': 'hi'}, {'role': 'assistant', 'content': 'hello'}]}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tinkerloop.data.row_shapes import with_system
from tinkerloop.errors import DataError
from tinkerloop.message_values import is_empty
from tinkerloop.strict_json import STRICT_JSON

Adapter = Callable[[dict[str, Any]], dict[str, Any]]
"""A function from a row to the same row with a key "messages"; it raises DataError if it cannot convert the row."""


_SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "observation": "tool",
}


def prompt_completion(row: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a row with `prompt` and `completion` (or `response`) to a row with `messages`.

    Each of the two values is a string, or a list of messages as in TRL. An optional `system` becomes the first message.

    Raises:
        DataError: the prompt or the completion is missing, or is neither a string nor a list of messages.
    """
    prompt, completion = _one(row, "prompt"), _one(row, "completion", "response")
    prompt_messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else _messages(prompt, "prompt")
    completion_messages = (
        [{"role": "assistant", "content": completion}]
        if isinstance(completion, str)
        else _messages(completion, "completion")
    )
    return _row(row, [*prompt_messages, *completion_messages], "prompt", "completion", "response", "system")


def sharegpt(row: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a ShareGPT row to a row with `messages`.

    The row has a key `conversations` (or `conversation`): a list of turns
    `{"from": "human" | "gpt" | "system" | "tool", "value": ...}`. As in LLaMA-Factory, a turn from "function_call" is
    a reply that consists of tool calls, whose value is the JSON text `{"name": ..., "arguments": {...}}` or a list of
    these; a turn from "observation" is the result of a tool.

    Raises:
        DataError: the list of turns is missing, a turn has no "from" or no "value" or contradicts itself, or the value
            of a "function_call" is not JSON.
    """
    turns = _one(row, "conversations", "conversation")
    if isinstance(turns, str) and turns.lstrip().startswith("["):
        turns = _read_json(turns, "conversations")
    messages = []
    for turn in _messages(turns, "conversations"):
        if "from" not in turn or "value" not in turn:
            raise DataError(f'a ShareGPT turn must have the keys "from" and "value", got only {sorted(turn)}')
        name = turn["from"]
        if name == "function_call":
            message = {"role": "assistant", "content": "", "tool_calls": _calls(turn["value"])}
        else:
            role = _SHAREGPT_ROLES.get(name, name) if isinstance(name, str) else name
            message = {"role": role, "content": turn["value"]}
        extra = {key: value for key, value in turn.items() if key not in ("from", "value") and not is_empty(value)}
        if twice := sorted(key for key in extra.keys() & message.keys() if extra[key] != message[key]):
            raise DataError(
                f'a ShareGPT turn has {", ".join(map(repr, twice))} beside "from" and "value", and they contradict',
                remedy="keep one of them",
            )
        messages.append({**extra, **message})
    return _row(row, messages, "conversations", "conversation", "system")


def alpaca(row: Mapping[str, Any]) -> dict[str, Any]:
    """Convert an Alpaca row, with `instruction` and `output`, to a row with `messages`.

    An optional `input` is appended to the instruction after a blank line. An optional `system` becomes the first
    message. An optional `history`, a list of pairs of an instruction and an output, becomes the messages before.

    Raises:
        DataError: `instruction` or `output` is missing, `input` is not a string, or `history` is not a list of pairs.
    """
    instruction, output = _one(row, "instruction"), _one(row, "output")
    context = row.get("input")
    if isinstance(context, str) and context:
        if not isinstance(instruction, str):
            raise DataError(f"instruction must be a string, got a {type(instruction).__name__}")
        instruction = f"{instruction}\n\n{context}"
    elif not is_empty(context):
        raise DataError(f"input must be a string, got a {type(context).__name__}")
    messages = []
    for turn in row.get("history") or []:
        if not isinstance(turn, list | tuple) or len(turn) != 2:
            raise DataError(f"history must be a list of pairs [instruction, output], got {str(turn)[:80]}")
        messages += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    messages += [{"role": "user", "content": instruction}, {"role": "assistant", "content": output}]
    return _row(row, messages, "instruction", "input", "output", "system", "history")


ADAPTERS: dict[str, Adapter] = {
    "messages": lambda row: row,
    "prompt_completion": prompt_completion,
    "sharegpt": sharegpt,
    "alpaca": alpaca,
}
"""Mapping from the names that `adapter=` accepts to the adapters."""


def get_adapter(adapter: str | Adapter) -> Adapter:
    """Return the adapter that `adapter` names. A function is returned unchanged.

    Raises:
        DataError: no adapter in `ADAPTERS` has this name.
    """
    if callable(adapter):
        return adapter
    if adapter not in ADAPTERS:
        raise DataError(f"unknown adapter {adapter!r}", remedy=f"pass one of {', '.join(ADAPTERS)}, or a function")
    return ADAPTERS[adapter]


def suggest_adapter(row: Mapping[str, Any]) -> str | None:
    """Return the name of the adapter that fits the keys of a row, or None if no adapter fits."""
    if "conversations" in row or "conversation" in row:
        return "sharegpt"
    if "instruction" in row and "output" in row:
        return "alpaca"
    if "prompt" in row and ("completion" in row or "response" in row):
        return "prompt_completion"
    return None


def _one(row: Mapping[str, Any], *names: str) -> Any:
    given = [name for name in names if row.get(name) is not None]
    if len(given) > 1:
        raise DataError(f"the row has both {' and '.join(map(repr, given))}", remedy="keep one of them")
    if given:
        return row[given[0]]
    raise DataError(f"the row needs a key {' or '.join(map(repr, names))}, but has only {sorted(row)}")


def _messages(value: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise DataError(f"{name} must be a list of objects, got {type(value).__name__}")
    return value


def _calls(value: Any) -> list[Any]:
    calls = _read_json(value, "a function_call") if isinstance(value, str) else value
    return calls if isinstance(calls, list) else [calls]


def _read_json(text: str, name: str) -> Any:
    try:
        return STRICT_JSON.decode(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name} must be JSON, got {text[:80]!r}: {error}") from error


def _row(row: Mapping[str, Any], messages: list[dict[str, Any]], *used: str) -> dict[str, Any]:
    if row.get("messages"):
        raise DataError("the row has 'messages' beside the keys that the adapter converts", remedy="remove the adapter")
    if system := row.get("system"):
        messages = with_system(messages, "system", system, "keep one of them")
    return {**{key: value for key, value in row.items() if key not in used}, "messages": messages}

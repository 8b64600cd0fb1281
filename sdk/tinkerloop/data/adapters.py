"""Adapters: functions from a row of another shape to `{"messages": [...]}`; other keys of the row are kept.

>>> alpaca({"instruction": "Add.", "input": "1, 2", "output": "3", "id": 7})["messages"]
[{'role': 'user', 'content': 'Add.\\n\\n1, 2'}, {'role': 'assistant', 'content': '3'}]
>>> sharegpt({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]})
{'messages': [{'role': 'user', 'content': 'hi'}, {'role': 'assistant', 'content': 'hello'}]}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tinkerloop.errors import DataError

Adapter = Callable[[dict[str, Any]], dict[str, Any]]


def prompt_completion(row: Mapping[str, Any]) -> dict[str, Any]:
    """Convert `prompt` and `completion` (or `response`): strings, or lists of messages as in TRL; `system` is optional.

    Raises:
        DataError: a key is missing, or is neither a string nor a list of messages.
    """
    prompt, completion = _one(row, "prompt"), _one(row, "completion", "response")
    prompt_messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else _messages(prompt, "prompt")
    completion_messages = (
        [{"role": "assistant", "content": completion}]
        if isinstance(completion, str)
        else _messages(completion, "completion")
    )
    return _row(
        row, [*_system(row), *prompt_messages, *completion_messages], "prompt", "completion", "response", "system"
    )


def sharegpt(row: Mapping[str, Any]) -> dict[str, Any]:
    """Convert `conversations`: a list of `{"from": "human" | "gpt" | "system" | "tool", "value": ...}`.

    Raises:
        DataError: the key is missing, or a turn has no "from" or "value".
    """
    turns = _one(row, "conversations", "conversation")
    roles = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant"}
    messages = []
    for turn in _messages(turns, "conversations"):
        if "from" not in turn or "value" not in turn:
            raise DataError(f'a ShareGPT turn has "from" and "value", this one has only {sorted(turn)}')
        name = turn["from"]
        extra = {key: value for key, value in turn.items() if key not in ("from", "value")}
        role = roles.get(name, name) if isinstance(name, str) else name
        messages.append({"role": role, "content": turn["value"], **extra})
    return _row(row, [*_system(row), *messages], "conversations", "conversation", "system")


def alpaca(row: Mapping[str, Any]) -> dict[str, Any]:
    """Convert `instruction`, `input` (optional, placed below the instruction) and `output`; `system` is optional.

    Raises:
        DataError: `instruction` or `output` is missing.
    """
    instruction, output = _one(row, "instruction"), _one(row, "output")
    context = row.get("input") or ""
    user = f"{instruction}\n\n{context}" if context else instruction
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": output}]
    return _row(row, [*_system(row), *messages], "instruction", "input", "output", "system")


ADAPTERS: dict[str, Adapter] = {
    "messages": lambda row: row,
    "prompt_completion": prompt_completion,
    "sharegpt": sharegpt,
    "alpaca": alpaca,
}


def get_adapter(adapter: str | Adapter) -> Adapter:
    """Return the adapter of that name, or the function itself.

    Raises:
        DataError: no adapter has this name.
    """
    if callable(adapter):
        return adapter
    if adapter not in ADAPTERS:
        raise DataError(
            f"unknown adapter {adapter!r}", remedy=f"choose one of {', '.join(ADAPTERS)}, or pass a function"
        )
    return ADAPTERS[adapter]


def suggest_adapter(row: Mapping[str, Any]) -> str | None:
    """Return the name of the adapter that the keys of a row suggest, or None."""
    if "conversations" in row or "conversation" in row:
        return "sharegpt"
    if "instruction" in row and "output" in row:
        return "alpaca"
    if "prompt" in row and ("completion" in row or "response" in row):
        return "prompt_completion"
    return None


def _one(row: Mapping[str, Any], *names: str) -> Any:
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise DataError(f"the row has no {' or '.join(map(repr, names))}, only {sorted(row)}")


def _messages(value: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise DataError(f"{name} must be a list of objects, got {type(value).__name__}")
    return value


def _system(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "system", "content": row["system"]}] if row.get("system") else []


def _row(row: Mapping[str, Any], messages: list[dict[str, Any]], *used: str) -> dict[str, Any]:
    return {**{key: value for key, value in row.items() if key not in used}, "messages": messages}

"""Rows of other shapes -> `{"messages": [...]}`. An adapter is a function from one row to such a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tinkerloop.errors import DataError

Adapter = Callable[[dict[str, Any]], dict[str, Any]]


def prompt_completion(row: Mapping[str, Any]) -> dict[str, Any]:
    """`prompt` and `completion` (or `response`): strings, or lists of messages as TRL has them; `system` if given."""
    prompt, completion = _one(row, "prompt"), _one(row, "completion", "response")
    before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else _messages(prompt, "prompt")
    after = (
        [{"role": "assistant", "content": completion}]
        if isinstance(completion, str)
        else _messages(completion, "completion")
    )
    return _row(row, [*_system(row), *before, *after], "prompt", "completion", "response", "system")


def sharegpt(row: Mapping[str, Any]) -> dict[str, Any]:
    """`conversations`: a list of `{"from": "human" | "gpt" | "system" | "tool", "value": ...}`."""
    turns = _one(row, "conversations", "conversation")
    roles = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant"}
    messages = []
    for turn in _messages(turns, "conversations"):
        if "from" not in turn or "value" not in turn:
            raise DataError(f'a ShareGPT turn has "from" and "value", this one has {sorted(turn)}')
        name = turn["from"]
        extra = {key: value for key, value in turn.items() if key not in ("from", "value")}
        role = roles.get(name, name) if isinstance(name, str) else name
        messages.append({"role": role, "content": turn["value"], **extra})
    return _row(row, [*_system(row), *messages], "conversations", "conversation", "system")


def alpaca(row: Mapping[str, Any]) -> dict[str, Any]:
    """`instruction`, an optional `input` (put below the instruction) and `output`; `system` if given."""
    instruction, output = _one(row, "instruction"), _one(row, "output")
    given = row.get("input") or ""
    user = f"{instruction}\n\n{given}" if given else instruction
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": output}]
    return _row(row, [*_system(row), *messages], "instruction", "input", "output", "system")


ADAPTERS: dict[str, Adapter] = {
    "messages": lambda row: row,
    "prompt_completion": prompt_completion,
    "sharegpt": sharegpt,
    "alpaca": alpaca,
}


def get_adapter(adapter: str | Adapter) -> Adapter:
    """An adapter by name, or the function itself."""
    if callable(adapter):
        return adapter
    if adapter not in ADAPTERS:
        raise DataError(f"unknown adapter {adapter!r}", remedy=f"known: {', '.join(ADAPTERS)}, or pass a function")
    return ADAPTERS[adapter]


def suggest_adapter(row: Mapping[str, Any]) -> str | None:
    """The adapter that the keys of a row look like."""
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

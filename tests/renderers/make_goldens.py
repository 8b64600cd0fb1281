"""Writes the golden files: what the official templates make of fixed conversations.

python -m tests.renderers.make_goldens        (where the shared models are)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.renderers.chats import TOOLS, everyones_tokenizer, official, template_of
from tests.renderers.test_parity import CASES, Case, differs, fitted

GOLDENS = Path(__file__).parent / "goldens"


def _call(name: str, number: int, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"id": f"functions.{name}:{number}", "type": "function", "function": {"name": name, "arguments": arguments}}


_CALL = _call("search", 0, {"city": "Köln", "n": 3})
_TWO = _call("get_weather", 1, {"city": "3"})
CHATS: dict[str, list[dict[str, Any]]] = {
    "two turns": [
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": "Hi, how can I help?"},
        {"role": "user", "content": "  What is 2+2?\n"},
        {"role": "assistant", "content": "4", "reasoning_content": "2 and 2\n\nis 4."},
    ],
    "system": [
        {"role": "system", "content": "Be brief.\n"},
        {"role": "user", "content": "\n\nnaïve 你好 👩‍🚀"},
        {"role": "assistant", "content": "Yes.", "reasoning_content": "Short."},
    ],
    "tools": [
        {"role": "system", "content": "Use tools."},
        {"role": "user", "content": "Weather in Köln?"},
        {"role": "assistant", "content": "", "tool_calls": [_CALL], "reasoning_content": "Look it up."},
        {"role": "tool", "content": '{"t": 21, "sky": "blau"}', "tool_call_id": "functions.search:0"},
        {"role": "assistant", "content": "21 degrees.", "reasoning_content": "Answer now."},
    ],
    "parallel": [
        {"role": "user", "content": "Both?"},
        {"role": "assistant", "content": "Looking.", "tool_calls": [_CALL, _TWO]},
        {"role": "tool", "content": "one", "tool_call_id": "functions.search:0"},
        {"role": "tool", "content": "\ntwo ", "tool_call_id": "functions.get_weather:1"},
        {"role": "assistant", "content": "One and two.", "reasoning_content": "Both are here."},
    ],
    "inline reasoning": [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "<think>\nold thought\n</think>\n\nold answer"},
        {"role": "user", "content": "r"},
        {"role": "assistant", "content": "new answer", "reasoning_content": "new"},
    ],
}


def suited(case: Case, messages: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """The conversation without the reasoning that a case has none of; None where the template has no words for it."""
    if case.chats.get("parallel") is False and any(len(m.get("tool_calls", ())) > 1 for m in messages):
        return None
    inline = any("<think>" in m["content"] for m in messages)
    if (inline and not case.name.startswith(("qwen3", "deepseek"))) or (inline and "instruct" in case.name):
        return None
    if case.chats.get("reasoning") is False:
        return [{k: v for k, v in m.items() if k != "reasoning_content"} for m in messages]
    return messages


def golden(case: Case) -> list[dict[str, Any]]:
    """Every conversation with the template's text of it: as a prompt for the last reply, and with that reply."""
    template, rows = template_of(case.template), []
    for title, chat in CHATS.items():
        messages = suited(case, chat)
        if messages is None:
            continue
        ours, theirs = fitted(case, messages)
        tools = TOOLS if "tools" in title and case.tools else None
        asked = official(template, theirs[:-1], tools, add_generation_prompt=True, **case.variables)
        row = {"chat": title, "messages": ours, "tools": tools, "prompt": asked}
        if not differs(case, ours):
            finished = official(template, theirs, tools, add_generation_prompt=False, **case.variables)
            row["document"] = finished.removesuffix(case.ends_with)
        tokenizer = everyones_tokenizer()
        row["ids"] = tokenizer.encode(row["prompt"], add_special_tokens=False)
        rows.append(row)
    return rows


def main() -> None:
    GOLDENS.mkdir(exist_ok=True)
    for case in CASES:
        path = GOLDENS / f"{case.name}.json"
        lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in golden(case))
        path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()

"""Write all golden files: texts and token ids of fixed conversations, by the official templates and tokenizers.

    pip install tml-renderers==0.2.1
    TINKERLOOP_MODELS=FOLDER python -m tests.renderers.make_goldens

The package `tml_renderers` gives the texts of formats that have no official template, in `goldens/tml_renderers`.
Without the package, these files stay as they are, and the command says so.

If FOLDER contains the model's tokenizer, it gives the ids; otherwise `everyones_tokenizer` does. A whole vocabulary is
too large to commit. So `goldens/tokenizers` contains only the part of each vocabulary that the golden texts can use,
with the original ids.
"""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.renderers.chats import CONTROL, MODELS, TOOLS, everyones_tokenizer, nfc
from tests.renderers.test_goldens import WHEEL_GOLDENS
from tests.renderers.test_parity import CASES, TODAY, Case, differs, fitted, render_officially
from tinkerloop.tokenizers import get_tokenizer
from tinkerloop.tokenizers.notations import byte_of_character

GOLDENS = Path(__file__).parent / "goldens"
TOKENIZERS = GOLDENS / "tokenizers"


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
    "plain": [
        {"role": "user", "content": "Is it? Don't say 12345.\t"},
        {"role": "assistant", "content": "It is…\n\n  Isn't it? "},
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
    "blank reasoning": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [_CALL], "reasoning_content": " \r\n"},
        {"role": "tool", "content": "21", "tool_call_id": "functions.search:0"},
        {"role": "assistant", "content": "21 degrees.", "reasoning_content": "Here it is."},
    ],
    "inline reasoning": [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "<think>\nold thought\n</think>\n\nold answer"},
        {"role": "user", "content": "r"},
        {"role": "assistant", "content": "new answer", "reasoning_content": "new"},
    ],
}


def suited(case: Case, messages: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """Return the messages, without reasoning if the case has none; None if its template cannot express them."""
    if case.chats.get("parallel") is False and any(len(m.get("tool_calls", ())) > 1 for m in messages):
        return None
    if case.chats.get("tools") is False and any(m.get("tool_calls") for m in messages):
        return None
    if case.chats.get("text_with_calls") is False:
        messages = [m | {"content": ""} if m.get("tool_calls") else m for m in messages]
    inline = any("<think>" in m["content"] for m in messages)
    if (inline and not case.name.startswith(("qwen3", "deepseekv3"))) or (
        inline and re.search("instruct|coder", case.name)
    ):
        return None
    if case.chats.get("reasoning") is False:
        return [{k: v for k, v in m.items() if k != "reasoning_content"} for m in messages]
    return messages


def golden(case: Case) -> list[dict[str, Any]]:
    """Return the conversations, each with the texts that the template gives for the last reply and for its prompt."""
    rows = []
    tokenizer = get_tokenizer(MODELS / case.tokenizer) if case.tokenizer else everyones_tokenizer()
    for title, chat in CHATS.items():
        messages = suited(case, chat)
        if messages is None:
            continue
        ours, theirs = fitted(case, messages)
        tools = TOOLS if "tools" in title and case.tools else None
        prompt = _dated(render_officially(case, theirs[:-1], tools, prompting=True))
        prompt_ids = tokenizer.encode(prompt, add_special_tokens=False)
        row = {"chat": title, "messages": ours, "tools": tools, "prompt": prompt, "prompt_ids": prompt_ids}
        if not differs(case, ours):
            document = _dated(render_officially(case, theirs, tools, prompting=False))
            row["reply"] = document.removesuffix(case.ends_with).removeprefix(prompt)
            assert document.startswith(prompt)
            row["reply_ids"] = tokenizer.encode(row["reply"], add_special_tokens=False)
        rows.append(row)
    return rows


def _dated(text: str) -> str:
    """Return the text of a template with a fixed date in place of today's, so that only other changes are seen."""
    return text.replace(TODAY, "2026-11-26")


def wheel_golden(name: str) -> list[dict[str, Any]]:
    """Return the conversations, each with the text that the package `tml_renderers` gives for it."""
    from tests.renderers.test_tml_renderers import ours, prompt_of_the_wheel, with_sorted_arguments

    rows = []
    for title, chat in CHATS.items():
        messages = json.loads(json.dumps(chat))
        if title == "inline reasoning":
            continue
        if ours(name).disables_reasoning:
            messages = [{k: v for k, v in m.items() if k != "reasoning_content"} for m in messages]
        if name != "tml_v0":
            messages = with_sorted_arguments(messages)
        tools = TOOLS if "tools" in title else None
        text = ours(name).decode(prompt_of_the_wheel(name, messages, tools))
        rows.append({"chat": title, "messages": messages, "tools": tools, "text": text})
    return rows


def excerpt(folder: str, texts: list[str]) -> dict[str, Any]:
    """Return the `tokenizer.json` of a folder, reduced to the part of the vocabulary that these texts need.

    A text can need a token, or a merge, only if the text contains its spelling.
    """
    spec = json.loads(get_tokenizer(MODELS / folder).backend_tokenizer.to_str())
    model = spec["model"]
    spelling = {byte: character for character, byte in byte_of_character().items()}
    text = " ".join("".join(spelling[byte] for byte in nfc(text).encode()) for text in texts)
    kept = {token: i for token, i in model["vocab"].items() if len(token) == 1 or token in text}
    model["merges"] = [[a, b] for a, b in model["merges"] if a in kept and b in kept and a + b in kept]
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] in CONTROL]
    # Without this, added tokens that are missing in the vocabulary would get ids that start at its reduced size.
    model["vocab"] = kept | {token["content"]: token["id"] for token in spec["added_tokens"]}
    return spec | {"post_processor": None}


def main() -> None:
    TOKENIZERS.mkdir(parents=True, exist_ok=True)
    texts: dict[str, list[str]] = {}
    for case in CASES:
        rows = golden(case)
        _write_rows(GOLDENS / f"{case.name}.json", rows)
        if case.tokenizer:
            texts.setdefault(case.tokenizer, []).extend(row["prompt"] + row.get("reply", "") for row in rows)
    for folder, written in texts.items():
        _write(TOKENIZERS / f"{folder}.json", json.dumps(excerpt(folder, written), ensure_ascii=False) + "\n")
    for file in sorted(WHEEL_GOLDENS.glob("*.json")):
        if find_spec("tml_renderers") is None:
            print(f"{file}: unchanged, because the package tml-renderers 0.2.1 is not installed")
        else:
            _write_rows(file, wheel_golden(file.stem))


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    _write(path, f"[\n{lines}\n]\n")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()

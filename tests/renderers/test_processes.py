"""Every process gives the same bytes: results do not depend on set order, time zone or earlier calls."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.renderers.chats import NAMES, TOOLS, claims, everyones_tokenizer
from tinkerloop.renderers import get_renderer

_CALLS = [{"id": "functions.search:0", "function": {"name": "search", "arguments": {"größe": [1, None], "city": "3"}}}]
CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "\nnaïve 你好 <|im_end|>"},
    {"role": "assistant", "content": "", "tool_calls": _CALLS},
    {"role": "tool", "content": "21", "tool_call_id": "functions.search:0"},
    {"role": "assistant", "content": "21 degrees."},
]


def digests(name: str) -> dict[str, str]:
    """Return hashes of a renderer's identity, its pickle, an example, a prompt and a parsed reply."""
    ours = get_renderer(name, everyones_tokenizer())
    has_tools = claims(name).calls
    chat = CHAT if has_tools else [CHAT[0], CHAT[1] | {"content": "q"}, CHAT[-1]]
    tools = TOOLS if has_tools else None
    example = ours.build_supervised_example(chat, tools=tools)
    prompt = ours.build_generation_prompt(chat[:-1], tools=tools)
    parsed = ours.parse_response([t for t, w in zip(example.tokens, example.weights, strict=True) if w])
    found = {"renderer": ours, "example": example, "prompt": prompt, "parsed": parsed}
    hashed = {what: hashlib.sha256(pickle.dumps(value)).hexdigest() for what, value in found.items()}
    return hashed | {"fingerprint": ours.fingerprint()}


def test_what_is_rendered_and_pickled_is_equal_to_the_byte_in_every_process() -> None:
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root / "sdk"), str(root)])
    environment = os.environ | {"PYTHONHASHSEED": "1", "TZ": "Pacific/Auckland", "PYTHONPATH": path}
    command = [sys.executable, "-m", "tests.renderers.test_processes"]
    other = json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert list(other) == NAMES
    assert other == {name: digests(name) for name in NAMES}  # this process has another hash seed and time zone


if __name__ == "__main__":
    print(json.dumps({name: digests(name) for name in NAMES}))

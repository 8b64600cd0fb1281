"""Compare renderings of fixed conversations with the golden files, which need no official templates to be installed."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tests.renderers.chats import everyones_tokenizer, nfc
from tests.renderers.test_parity import CASES, TODAY, Case
from tinkerloop.renderers import get_renderer
from tinkerloop.renderers.families.gpt_oss import GptOssOptions
from tinkerloop.renderers.registry import presets

GOLDENS = Path(__file__).parent / "goldens"
FILES = {path.stem: path for path in sorted(GOLDENS.glob("*.json"))}
BY_NAME = {case.name: case for case in CASES}
SAME = {"kimi_k25": "kimi_k26", "kimi_k25_disable_thinking": "kimi_k26_disable_thinking"}
"""Renderer names whose format equals that of another name, which has the golden file."""
ROWS = [
    (name, BY_NAME[SAME.get(name, name)], row)
    for name in (*FILES, *SAME)
    for row in json.loads(FILES[SAME.get(name, name)].read_text(encoding="utf-8"))
]


@functools.cache
def tokenizer_of(folder: str | None) -> PreTrainedTokenizerFast:
    """Return the part of the model's tokenizer that golden texts need; `everyones_tokenizer` if `folder` is None."""
    if folder is None:
        return everyones_tokenizer()
    core = Tokenizer.from_file(str(GOLDENS / "tokenizers" / f"{folder}.json"))
    return PreTrainedTokenizerFast(tokenizer_object=core)


WHEEL_GOLDENS = GOLDENS / "tml_renderers"
"""Texts of the package `tml_renderers` for formats without an official template; `test_tml_renderers` checks them."""
WHEEL_ROWS = [
    (path.stem, row)
    for path in sorted(WHEEL_GOLDENS.glob("*.json"))
    for row in json.loads(path.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize(("name", "row"), WHEEL_ROWS, ids=[f"{name}-{row['chat']}" for name, row in WHEEL_ROWS])
def test_conversations_are_those_of_tml_renderers(name: str, row: dict[str, Any]) -> None:
    ours = get_renderer(name, everyones_tokenizer())
    example = ours.build_supervised_example(row["messages"], tools=row["tools"])
    assert ours.decode(example.tokens) == nfc(row["text"])


def test_every_template_has_a_golden_file() -> None:
    assert list(FILES) == sorted(BY_NAME)
    assert all(presets()[name] == presets()[other] for name, other in SAME.items())


@pytest.mark.parametrize(("name", "case", "row"), ROWS, ids=[f"{name}-{row['chat']}" for name, _, row in ROWS])
def test_prompts_and_replies_are_the_official_templates(name: str, case: Case, row: dict[str, Any]) -> None:
    options = case.options
    if isinstance(options, GptOssOptions):  # the file contains the date on which it was written
        written = row["prompt"].partition("Current date: ")[2][:10]
        assert options.date == TODAY
        options = GptOssOptions(options.effort, written)
    ours = get_renderer(name, tokenizer_of(case.tokenizer), options=options)
    prompt = ours.build_generation_prompt(row["messages"][:-1], tools=row["tools"]).to_ints()
    assert nfc(ours.decode(prompt)) == nfc(row["prompt"])
    assert prompt == row["prompt_ids"]
    example = ours.build_supervised_example(row["messages"], tools=row["tools"]).tokens
    assert example[: len(prompt)] == prompt
    if "reply" in row:
        assert nfc(ours.decode(example[len(prompt) :])) == nfc(row["reply"])
        assert example[len(prompt) :] == row["reply_ids"]

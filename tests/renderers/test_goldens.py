"""The official templates' own words for fixed conversations, checked everywhere (`make_goldens` wrote them)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.renderers.chats import decode, everyones_tokenizer
from tests.renderers.test_parity import CASES, TODAY
from tinkerloop.renderers import get_renderer
from tinkerloop.renderers.gpt_oss import GptOssOptions

GOLDENS = Path(__file__).parent / "goldens"
FILES = sorted(GOLDENS.glob("*.json"))
OPTIONS = {case.name: case.options for case in CASES}
ROWS = [(path.stem, row) for path in FILES for row in json.loads(path.read_text(encoding="utf-8"))]


def test_every_template_has_a_golden_file() -> None:
    assert [path.stem for path in FILES] == sorted(case.name for case in CASES)


@pytest.mark.parametrize(("name", "row"), ROWS, ids=[f"{name}-{row['chat']}" for name, row in ROWS])
def test_prompts_and_documents_are_the_official_templates(name: str, row: dict[str, Any]) -> None:
    options = OPTIONS[name]
    if isinstance(options, GptOssOptions):  # the template wrote the day on which the file was made
        written = row["prompt"].partition("Current date: ")[2][:10]
        assert options.date == TODAY
        options = GptOssOptions(options.effort, written)
    ours = get_renderer(name, everyones_tokenizer(), options=options)
    prompt = ours.build_generation_prompt(row["messages"][:-1], tools=row["tools"]).to_ints()
    assert decode(prompt) == row["prompt"]
    assert prompt == row["ids"]
    example = ours.build_supervised_example(row["messages"], tools=row["tools"])
    assert example.tokens[: len(prompt)] == prompt
    if "document" in row:
        assert decode(example.tokens) == row["document"]

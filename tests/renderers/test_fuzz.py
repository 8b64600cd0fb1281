"""Every check of the kit on 500 random conversations: for every chat format, and for every chat template in folders.

    python -m pytest -m soak -n auto tests/renderers/test_fuzz.py
    TINKERLOOP_TEMPLATES=FOLDER:FOLDER python -m pytest -m soak -n auto tests/renderers/test_fuzz.py -k every_template

A template with a `tokenizer.json` beside it is used with this tokenizer; other templates get one that is built from
their control tokens (such as <|im_end|>). TINKERLOOP_EXAMPLES is another number of conversations. All
formats take several hours of a CPU core with 500.
"""

from __future__ import annotations

import functools
import itertools
import os
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.renderers.chats import CHECKS, NAMES, REASONING, claims, renderer
from tests.renderers.template_table import SETTINGS, TODAY, tokenizer_for
from tinkerloop.errors import CheckFailedError, RenderError
from tinkerloop.renderers import get_renderer
from tinkerloop.renderers.template import Template, TemplateOptions
from tinkerloop.testing import RENDERER_CHECKS, FormatClaims, check_renderer, probe_claims
from tinkerloop.tokenizers import get_tokenizer

EXAMPLES = int(os.environ.get("TINKERLOOP_EXAMPLES", "500"))
FOLDERS = filter(None, os.environ.get("TINKERLOOP_TEMPLATES", "").split(os.pathsep))
FILES = [file for folder in FOLDERS for file in sorted(Path(folder).rglob("*.jinja"))]
PROMISED = [check for check in RENDERER_CHECKS if check != "extension_property_holds"]
"""The checks for `template`, which does not say whether a template rewrites history."""
REPLIES = ({"role": "assistant", "content": "a"}, {"role": "assistant", "content": "a", "reasoning_content": "r"})


def seed(*parts: str) -> int:
    """Return a number that is the same in every process, so that each check draws conversations of its own."""
    return zlib.crc32("/".join(parts).encode())


@pytest.mark.soak
@pytest.mark.parametrize("name", [name for name in NAMES if name != "template"])
@pytest.mark.parametrize("check", CHECKS)
def test_every_format_has_the_property_on_500_conversations(name: str, check: str) -> None:
    check_renderer(renderer(name), examples=EXAMPLES, only=check, claims=claims(name), seed=seed(name, check))


@functools.cache
def with_template(file: Path) -> tuple[Template, FormatClaims]:
    """Return a renderer for the template, with the first variables with which it trains a reply.

    Raises:
        RenderError: the template is rejected, or trains no reply.
    """
    real = (file.parent / "tokenizer.json").exists()
    source = file.read_text(encoding="utf-8")
    tokenizer = get_tokenizer(str(file.parent)) if real else tokenizer_for(source)
    for reply, setting in itertools.product(REPLIES, SETTINGS):
        options = TemplateOptions(source, (setting,) if setting else (), today=TODAY)
        ours: Any = get_renderer("template", tokenizer, options=options)
        try:
            ours.build_supervised_example([{"role": "user", "content": "q"}, reply])
            return ours, probe_claims(ours)
        except RenderError as error:
            rejected = error
    raise rejected


@pytest.mark.soak
@pytest.mark.parametrize("check", PROMISED)
@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_every_template_has_the_property_on_500_conversations(file: Path, check: str) -> None:
    try:
        ours, stated = with_template(file)
    except RenderError as error:
        pytest.skip(f"the template is rejected: {error}")
    if check == "tokens_equal_the_template" and ours._writer.form.reasoning != "fields":  # the check passes fields
        stated = replace(stated, **dict.fromkeys(REASONING, False))
    source, number = file.read_text(encoding="utf-8"), seed(file.name, check)
    variables = dict(ours.options.variables)
    how: dict[str, Any] = {"only": check, "claims": stated, "template_variables": variables, "seed": number}
    try:
        check_renderer(ours, source, EXAMPLES, may_refuse=True, **how)
    except CheckFailedError as error:
        if "rejects all drawn conversations" not in str(error):
            raise
        pytest.skip(f"{error}")

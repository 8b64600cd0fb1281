"""A chat template that loops, nests or grows without end raises an error that names the limit, in any thread."""

from __future__ import annotations

import re
import threading
from typing import Any

import pytest

from tests.renderers.chats import everyones_tokenizer
from tinkerloop.errors import RenderError
from tinkerloop.renderers import get_renderer
from tinkerloop.renderers.template import TemplateOptions

CHATML = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
ENDLESS = {
    "loops": ("{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}", "limit of .* steps"),
    "loops over text": (
        "{% for a in range(9999) %}{% for b in messages[0].content %}{% for c in range(999) %}{% endfor %}{% endfor %}"
        "{% endfor %}",
        "limit of .* steps",
    ),
    "text that doubles": (
        "{% set n = namespace(t='ab') %}{% for i in range(60) %}{% set n.t = n.t ~ n.t %}{% endfor %}",
        "longer than the limit",
    ),
    "text that doubles by a sum": (
        "{% set n = namespace(t='ab') %}{% for i in range(60) %}{% set n.t = n.t + n.t %}{% endfor %}",
        "longer than the limit",
    ),
    "lists that double": (
        "{% set n = namespace(t=[1, 2]) %}{% for i in range(60) %}{% set n.t = n.t + n.t %}{% endfor %}",
        "longer than the limit",
    ),
    "a long output": ("{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}", "longer than the limit|limit of"),
    "a text many times": ("{{ 'x' * 10 ** 10 }}", "limit of"),
    "a list many times": ("{{ [0] * 9999999999 }}", "longer than the limit"),
    "a large power": ("{{ 10 ** (10 ** 8) }}", "limit of"),
    "a large number": (
        "{% set n = namespace(t=9) %}{% for i in range(60) %}{% set n.t = n.t * n.t %}{% endfor %}",
        "limit of",
    ),
    "a wide field": ("{{ 'x' | center(9999999999) }}", "limit of"),
    "a wide method": ("{{ 'x'.ljust(9999999999) }}", "limit of"),
    "a wide format": ("{{ '%9999999999d' % 1 }}", "width"),
    "a wide format of numbers": ("{{ '{:>9999999999}'.format(1) }}", "width"),
    "a large range": ("{{ range(10 ** 9) | list }}", "[Rr]ange"),
    "a macro that calls itself": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "limit of nested calls"),
    "a loop that calls itself": (
        "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "limit of nested calls",
    ),
    "filters in loops": (
        "{% for i in range(99999) %}{{ range(99999) | map('string') | join | length }}{% endfor %}",
        "limit of|longer than the limit",
    ),
}  # fmt: skip


def in_a_thread(function: Any) -> BaseException | None:
    """Run a function in a new thread, and return the exception that it raised."""
    raised: list[BaseException] = []

    def call() -> None:
        try:
            function()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    return raised[0] if raised else None


@pytest.mark.parametrize(("source", "limit"), ENDLESS.values(), ids=ENDLESS)
def test_a_template_without_end_names_the_limit_in_any_thread(source: str, limit: str) -> None:
    def use() -> None:
        get_renderer("template", everyones_tokenizer(), options=TemplateOptions(source + CHATML))

    raised = in_a_thread(use)
    assert isinstance(raised, RenderError)
    assert re.search(limit, str(raised))


def test_the_limits_hold_in_the_main_thread_too() -> None:
    with pytest.raises(RenderError, match="longer than the limit"):
        get_renderer("template", everyones_tokenizer(), options=TemplateOptions("{{ [0] * 9999999999 }}" + CHATML))


@pytest.mark.parametrize("source", ["(" * 5000 + ")" * 5000, "[" * 5000 + "]" * 5000, "not " * 5000 + "x"])
def test_a_source_that_is_nested_too_deeply_is_refused(source: str) -> None:
    with pytest.raises(RenderError, match=r"nested too deeply|syntax error"):
        get_renderer("template", everyones_tokenizer(), options=TemplateOptions("{{ " + source + " }}"))


def test_a_deep_nest_of_loops_is_refused() -> None:
    source = "{% for i in [1] %}" * 60 + "{% endfor %}" * 60
    with pytest.raises(RenderError, match="nested too deeply"):
        get_renderer("template", everyones_tokenizer(), options=TemplateOptions(source + CHATML))


def test_a_long_conversation_stays_within_the_limits() -> None:
    """The template looks at all earlier text once for each message, which is more work than real templates do."""
    source = (
        "{% set n = namespace(t='') %}{% for m in messages %}{% for w in m.content.split(' ') %}{% set n.t = w %}"
        "{% endfor %}{% for k in m.items() %}{% set n.t = k[0] ~ n.t %}{% endfor %}{% endfor %}"
    )
    ours = get_renderer("template", everyones_tokenizer(), options=TemplateOptions(source + CHATML))
    messages = [{"role": "user", "content": "words and words " * 50}] * 100
    assert len(ours.build_generation_prompt(messages).to_ints()) > 5_000
    single = [{"role": "user", "content": "x " * 15_000}]
    assert len(ours.build_generation_prompt(single).to_ints()) > 15_000

"""Marked text behaves like an ordinary string, and each of its characters keeps its origin."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinkerloop.renderers.marked_text import OWN, Slot, from_slot, join_marked, marked_json, own, runs_of
from tinkerloop.renderers.pieces import Part

TEXTS = st.text('ab \n,é"\\', max_size=12)
METHODS = {
    "strip": lambda t: t.strip(),
    "strip_of": lambda t: t.strip("a\n"),
    "lstrip": lambda t: t.lstrip(),
    "rstrip": lambda t: t.rstrip("b"),
    "removeprefix": lambda t: t.removeprefix("a"),
    "removesuffix": lambda t: t.removesuffix("b"),
    "split": lambda t: t.split(),
    "split_at": lambda t: t.split(","),
    "split_once": lambda t: t.split(",", 1),
    "rsplit_once": lambda t: t.rsplit(",", 1),
    "rsplit": lambda t: t.rsplit(None, 1),
    "splitlines": lambda t: t.splitlines(),
    "splitlines_with_ends": lambda t: t.splitlines(True),
    "partition": lambda t: list(t.partition(",")),
    "rpartition": lambda t: list(t.rpartition(",")),
    "slice": lambda t: t[1:-1],
    "slice_backwards": lambda t: t[::-1],
    "characters": lambda t: list(t),
    "last": lambda t: t[-1:],
    "replace": lambda t: t.replace("a", "--"),
    "replace_once": lambda t: t.replace("a", "", 1),
    "replace_nothing": lambda t: t.replace("", "-"),
    "times": lambda t: t * 2,
    "join": lambda t: t.join(["x", "y"]),
    "upper": lambda t: t.upper(),
    "mod": lambda t: (t + "%s-%s") % ("x", 3),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@given(texts=st.lists(TEXTS, max_size=4))
def test_a_method_gives_what_it_gives_for_a_string_and_the_origins_spell_the_result(method, texts: list[str]) -> None:
    slots = [Slot(text, i, Part.TEXT) for i, text in enumerate(texts)]
    result = method(join_marked([own("<"), *map(from_slot, slots)]))
    assert result == method("<" + "".join(texts))
    for text in result if isinstance(result, list) else [result]:
        runs = runs_of(text)
        assert "".join(run.text for run in runs) == text
        for run in runs:
            if run.origin in slots:
                assert run.text == run.origin.value[run.start : run.stop]


def test_a_string_of_a_message_never_becomes_the_templates_own() -> None:
    slot = Slot("user", 0, Part.TEXT)
    for text in (
        from_slot(slot).upper(),
        f"{from_slot(slot)}",
        "".join([from_slot(slot)]),
        own("%s") % from_slot(slot),
    ):
        assert all(run.origin is not OWN for run in runs_of(text))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(TEXTS, inside, max_size=3),
    max_leaves=8,
)


@given(VALUES, st.booleans(), st.sampled_from([None, 0, 2, "\t"]), st.booleans())
def test_json_of_marked_strings_is_that_of_the_standard_library(value, ascii, indent, sort_keys) -> None:
    def marked(value):
        if isinstance(value, dict):
            return {marked(k): marked(v) for k, v in value.items()}
        if isinstance(value, list):
            return [marked(v) for v in value]
        return from_slot(Slot(value, 0, Part.TEXT)) if isinstance(value, str) else value

    options = {"ensure_ascii": ascii, "indent": indent, "sort_keys": sort_keys}
    assert marked_json(marked(value), **options) == json.dumps(value, **options)

"""A token whose text spans two parts of a message belongs to one of them by rule; other tokens keep their part."""

from __future__ import annotations

import pytest

from tests.renderers.chats import decode, everyones_tokenizer
from tinkerloop.errors import DatumError
from tinkerloop.renderers import Part, get_renderer
from tinkerloop.renderers.assembly import Assembler
from tinkerloop.renderers.pieces import SEAM, Piece, scaffold, stop, text
from tinkerloop.tokenizers.encoders import encoder_of

TEXT, REASONING, SCAFFOLD, STOP = Part.TEXT, Part.REASONING, Part.SCAFFOLD, Part.STOP


def spelled(*pieces: Piece) -> list[tuple[str, Part]]:
    """Return the spans of one message's pieces: the text and the part of each."""
    ours = Assembler(encoder_of(everyones_tokenizer()), ["<|im_end|>"], "test")
    made = ours.assemble([(0, piece) for piece in pieces])
    return [(decode(made.tokens[span.start : span.stop]), span.part) for span in made.spans]


@pytest.mark.parametrize(
    ("pieces", "spans"),
    [
        ([text("a>"), scaffold("\n")], [("a", TEXT), (">\n", SCAFFOLD)]),
        ([scaffold("a>"), text("\nb")], [("a>\n", SCAFFOLD), ("b", TEXT)]),
        ([text("a>", REASONING), text("\nb")], [("a>\n", REASONING), ("b", TEXT)]),
        ([text("\n"), text("\n", REASONING), scaffold("\n\n")], [("\n\n\n\n", SCAFFOLD)]),
        ([text("\n"), scaffold("\n"), text("\n\nb")], [("\n\n\n\n", SCAFFOLD), ("b", TEXT)]),
    ],
)
def test_a_token_of_two_kinds_is_scaffold_if_one_side_is_and_else_the_firsts(pieces, spans):
    assert spelled(*pieces) == spans


def test_a_token_that_spells_only_the_later_text_is_of_its_kind():
    assert spelled(text("a\n\n\n"), stop("\n\n")) == [("a\n\n\n\n", TEXT), ("\n", STOP)]


def test_boundaries_hold_where_the_tokenizer_normalises_across_them():
    assert spelled(text("ae", REASONING), text("\u0301b")) == [("aé", REASONING), ("b", TEXT)]


def test_a_seam_keeps_apart_what_would_be_one_token():
    assert spelled(text("a>"), SEAM, scaffold("\n")) == [("a>", TEXT), ("\n", SCAFFOLD)]


def test_a_conversation_without_a_token_has_empty_arrays_and_no_datum():
    silent = get_renderer("gpt_oss_no_sysprompt", everyones_tokenizer())  # writes no empty system message
    example = silent.build_supervised_example([{"role": "system", "content": ""}], allow_zero_weight=True)
    assert [len(array) for array in (example.tokens, example.weights, example.parts, example.message_index)] == [0] * 4
    with pytest.raises(DatumError, match="too short"):
        example.to_datum()

"""Stop strings are searched in the text as it was sampled, spaces included."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.renderers.chats import SPACING, sentencepiece_tokenizer
from tinkerloop.local.nn.inputs import Input
from tinkerloop.local.nn.stop_strings import ends_in_stop, text_decoder
from tinkerloop.local.nn.token_sampling import Continuation, SampleRequest


def stops(tokenizer, prompt: list[str], reply: list[str], stop: str) -> bool:
    """Return whether a reply of these tokens ends in the stop string."""
    before, tokens = (tokenizer.convert_tokens_to_ids(part) for part in (prompt, reply))
    request = SampleRequest(Input(np.array(before)), 1, 9, 1.0, -1, 1.0, 0, frozenset(), (stop,))
    row = Continuation(request, 0, np.random.default_rng(0), tokens=tokens)
    return ends_in_stop(row, text_decoder(tokenizer))


@pytest.mark.parametrize("spacing", SPACING)
@pytest.mark.parametrize("reply", [["▁the"], ["▁", "t", "h", "e"], ["c", "▁the"]])
def test_a_stop_string_that_begins_with_a_space_is_found_at_the_start_of_a_reply_too(spacing, reply):
    tokenizer = sentencepiece_tokenizer(spacing)
    assert stops(tokenizer, ["▁a"], reply, " the")
    assert stops(tokenizer, ["▁a"], reply, "the")
    assert not stops(tokenizer, ["▁the"], reply, "a the")


def test_a_space_that_the_tokenizer_writes_after_a_control_token_is_no_text():
    tokenizer = sentencepiece_tokenizer("legacy")
    assert not stops(tokenizer, ["<s>"], ["▁the"], " the")
    assert stops(tokenizer, ["<s>"], ["▁the"], "the")
    assert stops(sentencepiece_tokenizer("never"), ["<s>"], ["▁the"], " the")


def test_the_bytes_of_a_character_may_be_several_tokens():
    tokenizer = sentencepiece_tokenizer("never")
    smile = ["<0xF0>", "<0x9F>", "<0x99>", "<0x82>"]
    assert stops(tokenizer, smile[:2], [*smile, "a"], "🙂a")
    assert not stops(tokenizer, smile[:2], smile[:3], "🙂")


def test_a_tokenizer_without_an_encoder_decodes_itself():
    vocab = {"[UNK]": 0, "stop": 1, "##per": 2}
    core = Tokenizer(models.WordPiece(vocab=vocab, unk_token="[UNK]"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]")
    assert stops(tokenizer, ["stop"], ["stop", "##per"], "stopper")

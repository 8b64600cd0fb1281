"""Tokens are decoded in the notation of their vocabulary, which is decided once for each tokenizer.

Control tokens are tokens such as <s> that structure a conversation.
"""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from tests.renderers.chats import SPACING, everyones_tokenizer, sentencepiece_tokenizer
from tinkerloop.errors import TinkerloopError
from tinkerloop.tokenizers.encoders import HuggingFaceEncoder, encoder_of, fastest
from tinkerloop.tokenizers.notations import bytes_of_byte_level, bytes_of_sentencepiece, is_byte_level


@pytest.mark.parametrize(
    ("token", "in_sentencepiece", "in_byte_level"),
    [
        ("<0x0A>", b"\n", b"<0x0A>"),
        ("<0xZZ>", b"<0xZZ>", b"<0xZZ>"),
        ("é", "é".encode(), b"\xe9"),
        ("Ġ", "Ġ".encode(), b" "),
        ("▁café", " café".encode(), "▁café".encode()),
    ],
)
def test_a_token_spells_other_bytes_in_each_notation(token: str, in_sentencepiece: bytes, in_byte_level: bytes) -> None:
    assert bytes_of_sentencepiece(token) == in_sentencepiece
    assert bytes_of_byte_level(token) == in_byte_level


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"decoder": {"type": "ByteLevel"}}, True),
        ({"decoder": None, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}]}}, True),
        ({"decoder": {"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "ByteLevel"}]}}, True),
        ({"decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}}, False),
        ({"decoder": {"type": "Metaspace"}, "pre_tokenizer": {"type": "Metaspace"}}, False),
        ({}, False),
    ],
)
def test_the_steps_of_a_tokenizer_tell_its_notation(sections: dict[str, Any], expected: bool) -> None:
    assert is_byte_level(sections) is expected


@pytest.mark.parametrize("spacing", SPACING)
@pytest.mark.parametrize("text", ["é", "Das Café:\nüber 日本", "Ġ â", "<0x0A>", "👩🏽\u200d🚀"])
def test_ordinary_text_comes_back_from_a_sentencepiece_vocabulary(text: str, spacing: str) -> None:
    encoder = encoder_of(sentencepiece_tokenizer(spacing))
    token = encoder.id_of("<s>")
    assert token is not None
    assert encoder.decode_bytes([token, *encoder.encode(text)]).decode() == f"<s>{text}"


def test_added_tokens_are_literal_and_added_runs_of_spaces_are_spaces() -> None:
    core = sentencepiece_tokenizer("never").backend_tokenizer
    core = Tokenizer.from_str(core.to_str())
    core.add_tokens([AddedToken("▁▁▁", normalized=False), AddedToken("<a▁b>", normalized=False)])
    encoder = HuggingFaceEncoder(core)
    ids = [core.token_to_id("▁▁▁"), core.token_to_id("<a▁b>")]
    assert encoder.decode_bytes(ids).decode() == "   <a▁b>"


def word_level(decoder: Any) -> Tokenizer:
    vocab = {token: i for i, token in enumerate(["[UNK]", "a", "b", "##b", "the", "is", ".", "="])}
    core = Tokenizer(models.WordPiece(vocab=vocab, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoder
    return core


@pytest.mark.parametrize("decoder", [decoders.WordPiece(), None], ids=["WordPiece", "none"])
def test_a_vocabulary_in_another_notation_is_rejected(decoder: Any) -> None:
    with pytest.raises(TinkerloopError, match="tokens for 'a b' would be decoded as 'ab'"):
        fastest(HuggingFaceEncoder(word_level(decoder)))


def test_a_vocabulary_without_some_characters_is_accepted() -> None:
    vocab = {token: i for i, token in enumerate(["<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz"])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    core.decoder = decoders.Metaspace(prepend_scheme="always")
    assert fastest(HuggingFaceEncoder(core)).decode_bytes([2]) == b"a"


@pytest.mark.parametrize("spacing", [*SPACING, None])
def test_only_tokenizers_that_write_spaces_encode_by_place(spacing: str | None) -> None:
    tokenizer = sentencepiece_tokenizer(spacing) if spacing else everyones_tokenizer()
    encoder: Any = encoder_of(tokenizer)
    assert (encoder.encode_at is None, not encoder.spaced) == {
        "first": (False, True),
        "always": (False, False),
        "legacy": (False, False),
    }.get(spacing or "", (True, True))

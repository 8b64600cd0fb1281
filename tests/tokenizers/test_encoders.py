"""Encoders give the tokenizer's ids for ordinary text, and never a control token."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from tests.renderers.chats import CONTROL, everyones_tokenizer
from tinkerloop.tokenizers import encoders, engines
from tinkerloop.tokenizers.encoders import FastEncoder, HuggingFaceEncoder, encoder_of
from tinkerloop.tokenizers.engines import ENGINES
from tinkerloop.tokenizers.loading import tokenizer_to_render
from tinkerloop.tokenizers.notations import byte_of_character
from tinkerloop.tokenizers.places import Place
from tinkerloop.tokenizers.tiny_tokenizer import tiny_tokenizer

REFERENCE = HuggingFaceEncoder(everyones_tokenizer())

FEW = settings(max_examples=60, suppress_health_check=list(HealthCheck))


def engine(name: str) -> FastEncoder:
    pytest.importorskip(name)
    return FastEncoder(REFERENCE, name)


@pytest.mark.parametrize("name", sorted(ENGINES))
@FEW
@given(text=st.text(max_size=30) | st.sampled_from(CONTROL))
def test_a_fast_engine_gives_the_ids_of_the_reference(name: str, text: str) -> None:
    assert engine(name).encode(text) == REFERENCE.encode(text)


@FEW
@given(text=st.text(max_size=30), token=st.sampled_from(CONTROL))
def test_text_is_encoded_as_by_the_tokenizer_and_control_tokens_as_text(text: str, token: str) -> None:
    tokenizer = everyones_tokenizer()
    assert REFERENCE.encode(text) == tokenizer.encode(text, add_special_tokens=False) or any(c in text for c in CONTROL)
    assert REFERENCE.id_of(token) not in REFERENCE.encode(f"{text}{token}")
    assert REFERENCE.decode_bytes(REFERENCE.encode(token)).decode() == token


@pytest.mark.parametrize(
    "text", ["\u0eb9\u0eba", "\u0898\u0899", "\u1ac2\u1ac3", "\U00011839\U0001183a", "e\u0301", "é日한"]
)
def test_tiktoken_orders_marks_as_the_reference_does(text: str) -> None:
    """Python's `unicodedata` orders marks that the version of Unicode in the package `tokenizers` does not have."""
    assert engine("tiktoken").encode(text) == REFERENCE.encode(text)


def test_text_that_is_not_normalised_would_stay_the_same() -> None:
    kept = "".join(filter(engines.IN_NFC.fullmatch, map(chr, range(0xD800))))
    assert len(kept) > 33_000
    for text in (kept, kept[::-1]):
        assert normalizers.NFC().normalize_str(text) == text


def test_an_added_token_of_spaces_keeps_its_id() -> None:
    core = Tokenizer.from_str(everyones_tokenizer().backend_tokenizer.to_str())
    core.add_tokens([AddedToken("    ", normalized=False)])
    encoder = HuggingFaceEncoder(core)
    ids = core.encode("a    b").ids
    assert encoder.encode("a    b") == ids
    assert encoder.decode_bytes(ids) == b"a    b"


def unigram_core(*added: str) -> Tokenizer:
    """Return a SentencePiece tokenizer with a Unigram vocabulary, and these added tokens outside the vocabulary."""
    letters = [(letter, -2.0) for letter in "\u2581abcdefghijklmnopqrstuvwxyz<>_|"]
    byte_tokens = [(f"<0x{byte:02X}>", -9.0) for byte in range(256)]
    core = Tokenizer(models.Unigram([("<unk>", 0.0), *letters, *byte_tokens], unk_id=0, byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    core.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    core.add_tokens([AddedToken(token, normalized=False) for token in added])
    return core


@pytest.mark.parametrize("blank", ["\n", "\n\n\n", "\t\t"])
def test_a_blank_added_token_outside_a_unigram_vocabulary_keeps_its_id(blank: str) -> None:
    """The ids of the tokens before it are those of control tokens, which no text may be encoded to."""
    core = unigram_core("<|im_start|>", "<|im_end|>", blank)
    encoder = encoders.fastest(HuggingFaceEncoder(core))
    ids = core.encode(f"a{blank}b").ids
    assert core.token_to_id(blank) in ids
    assert encoder.encode_at(Place.START, f"a{blank}b") == ids
    assert encoder.encode(f"{blank}b") == core.encode(f"{blank}b").ids
    assert encoder.decode_bytes(ids).decode() == f" a{blank}b"
    control = {core.token_to_id("<|im_start|>"), core.token_to_id("<|im_end|>")}
    assert not control & set(encoder.encode(f"<|im_end|>{blank}<|im_start|>"))
    assert encoder.decode_bytes([encoder.id_of("<|im_end|>")]) == b"<|im_end|>"


def split_core(*added: str) -> Tokenizer:
    """Return a byte-level tokenizer with a split pattern, as tiktoken needs, and these added tokens."""
    core = Tokenizer(models.BPE(vocab=dict(byte_of_character()), merges=[]))
    split = pre_tokenizers.Split(Regex(r"\p{N}|\s+(?!\S)|\s+|[^\s\p{N}]+"), "isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    core.decoder = decoders.ByteLevel()
    core.add_tokens([AddedToken(token, normalized=False) for token in added])
    return core


@pytest.mark.parametrize("blank", ["\t" * 4, "\r\n\r\n", "\u00a0\u00a0", "\u3000\u3000", "\u2003", "\n" * 9])
def test_an_engine_that_does_not_know_a_blank_added_token_is_not_used(blank: str) -> None:
    core = split_core("<|im_end|>", blank)
    encoder = encoders.fastest(HuggingFaceEncoder(core))
    assert encoder.encode(f"a{blank}b") == core.encode(f"a{blank}b").ids


def test_ids_that_no_token_has_become_replacement_characters() -> None:
    assert REFERENCE.decode_bytes([-1, 10**9]).decode() == "\ufffd\ufffd"


def test_an_engine_that_differs_on_a_probe_is_not_used(monkeypatch, caplog) -> None:
    monkeypatch.setattr(encoders, "ENGINES", {"wrong": lambda spec: lambda text: [0]})
    assert encoders.fastest(REFERENCE).name == "huggingface"
    assert "wrong encodes" in caplog.text


def test_an_engine_that_is_not_installed_is_passed_over(monkeypatch) -> None:
    def missing(spec: str):
        raise ImportError("no module")

    monkeypatch.setattr(encoders, "ENGINES", {"missing": missing})
    assert encoders.fastest(REFERENCE).name == "huggingface"


def test_the_encoder_of_a_tokenizer_is_built_once() -> None:
    assert encoder_of(everyones_tokenizer()) is encoder_of(everyones_tokenizer())


@pytest.mark.parametrize("tokenizer", [tiny_tokenizer, partial(tokenizer_to_render, "tiny")])
def test_tokens_that_are_added_later_are_known_to_a_new_encoder(tokenizer) -> None:
    one = tokenizer()
    assert encoder_of(one).id_of("<|new|>") is None
    one.add_tokens([AddedToken("<|new|>", special=True)])
    encoder, new = encoder_of(one), one.convert_tokens_to_ids("<|new|>")
    assert encoder.id_of("<|new|>") == new
    assert encoder.decode_bytes([new]) == b"<|new|>"
    assert encoder_of(one) is encoder

"""Encoders give the tokenizer's ids for ordinary text, and never a control token."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, normalizers

from tests.renderers.chats import CONTROL, everyones_tokenizer
from tinkerloop.tokenizers import encoders, engines
from tinkerloop.tokenizers.encoders import FastEncoder, HuggingFaceEncoder, encoder_of
from tinkerloop.tokenizers.engines import ENGINES

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

"""Tokenizers from a file of ranks."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinkerloop.errors import TinkerloopError
from tinkerloop.tokenizers import get_tokenizer
from tinkerloop.tokenizers.encoders import HuggingFaceEncoder, encoder_of
from tinkerloop.tokenizers.tiktoken_file import KIMI_PATTERN

FEW = settings(max_examples=60, suppress_health_check=list(HealthCheck))

KIMI = {"AutoTokenizer": ["tokenization_kimi.TikTokenTokenizer", None]}


def ranks_folder(folder: Path, tokens: list[bytes], auto_map: Any) -> Path:
    """A folder with a vocabulary of ranks, as Kimi's models come."""
    lines = [base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)]
    (folder / "tiktoken.model").write_bytes(b"".join(lines))
    added = {str(len(tokens)): {"content": "[EOS]", "special": True}, str(len(tokens) + 2): {"content": "<think>"}}
    config = {"added_tokens_decoder": added, "auto_map": auto_map, "eos_token": "[EOS]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def from_ranks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    merged = ["th", "the", " t", "er", "aa", "aaa", "\n\n", "  ", "哈哈", "12", "123", "'s", "is"]
    tokens = [*(bytes([i]) for i in range(256)), *("哈".encode()[:n] for n in (2, 3)), *(m.encode() for m in merged)]
    return get_tokenizer(ranks_folder(tmp_path_factory.mktemp("ranks"), tokens, KIMI)), tokens


SPLITS = ["the", "THIS", "it's", "哈哈", "aaaa", "1234", "\n", " ", "é", "👩\u200d🚀", "<|x|>"]


@FEW
@given(text=st.text(max_size=30) | st.lists(st.sampled_from(SPLITS)).map("".join))
def test_a_tokenizer_from_ranks_is_tiktokens(from_ranks: Any, text: str) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    tokenizer, tokens = from_ranks
    ranks = {token: rank for rank, token in enumerate(tokens)}
    official = tiktoken.Encoding("kimi", pat_str=KIMI_PATTERN, mergeable_ranks=ranks, special_tokens={})
    assert HuggingFaceEncoder(tokenizer).encode(text) == encoder_of(tokenizer).encode(text)
    assert encoder_of(tokenizer).encode(text) == official.encode_ordinary(text)


def test_ids_after_the_ranks_are_control_tokens_and_have_names(from_ranks: Any) -> None:
    tokenizer, tokens = from_ranks
    first = len(tokens)
    names = ["[EOS]", f"<|reserved_token_{first + 1}|>", "<think>", f"<|reserved_token_{first + 255}|>"]
    assert tokenizer.convert_tokens_to_ids(names) == [first, first + 1, first + 2, first + 255]
    assert tokenizer.eos_token_id == first


def test_ranks_that_unknown_code_splits_are_refused(tmp_path: Path) -> None:
    folder = ranks_folder(tmp_path, [bytes([i]) for i in range(256)], {"AutoTokenizer": ["mine.Tokenizer", None]})
    with pytest.raises(TinkerloopError, match=r"for 'mine\.Tokenizer'.*convert it"):
        get_tokenizer(folder)

"""Loading rejects a model whose logits the engine would compute wrongly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.local.tiny_models import write_model
from tinkerloop.local.nn.layers import attention
from tinkerloop.local.nn.load_check import error_of_rounding, logits_error
from tinkerloop.local.nn.model_loading import load_model

COMPLETE = attention.attention


@pytest.fixture
def replace_attention(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], None]]:
    """Return a function that replaces the engine's attention until the end of the test."""
    yield lambda function: monkeypatch.setattr(attention, "attention", function)
    monkeypatch.undo()
    attention.register()


def load(folder: Path, dtype: torch.dtype = torch.float32) -> None:
    load_model(str(folder), torch.device("cpu"), dtype)


@pytest.mark.parametrize(
    ("architecture", "argument"),
    [("gemma2", "softcap"), ("gemma2", "scaling"), ("gemma2", "sliding_window"), ("gpt_oss", "s_aux")],
)
def test_a_model_is_rejected_if_attention_ignores_an_argument(architecture, argument, tmp_path, replace_attention):
    fields = {"query_pre_attn_scalar": 32} if architecture == "gemma2" else {}
    folder = write_model(architecture, tmp_path, **fields)
    load(folder)
    replace_attention(lambda *args, **kwargs: COMPLETE(*args, **kwargs | {argument: None}))
    with pytest.raises(NotImplementedError, match="the engine would run wrongly"):
        load(folder)


def test_a_model_in_16_bits_is_rejected_if_attention_is_wrong(tmp_path, replace_attention):
    folder = write_model("llama", tmp_path)
    load(folder, torch.bfloat16)
    replace_attention(lambda *args, **kwargs: (-2 * COMPLETE(*args, **kwargs)[0], None))
    with pytest.raises(NotImplementedError, match="the engine would run wrongly"):
        load(folder, torch.bfloat16)


def test_rounding_to_16_bits_may_throw_one_position_off_but_not_half_of_them():
    logits = torch.linspace(-1, 1, 50).expand(8, 50)
    given = logits.clone()
    given[2] += 0.3
    assert logits_error(given, logits, torch.float32) > error_of_rounding(torch.float32)
    assert logits_error(given, logits, torch.bfloat16) < error_of_rounding(torch.bfloat16)
    given[3:6] += 0.3
    assert logits_error(given, logits, torch.bfloat16) > error_of_rounding(torch.bfloat16)


def test_a_model_is_rejected_if_only_decoding_is_wrong(tmp_path, replace_attention):
    def without_padding(module, query, key, value, attention_mask, **kwargs):
        padded = attention_mask is not None and attention_mask.dtype == torch.bool
        return COMPLETE(module, query, key, value, None if padded else attention_mask, **kwargs)

    folder = write_model("gemma2", tmp_path)
    replace_attention(without_padding)
    with pytest.raises(NotImplementedError, match="the engine would run wrongly"):
        load(folder)

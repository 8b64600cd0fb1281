"""Loading rejects a model whose logits the engine would compute wrongly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.local.tiny_models import write_model
from tinkerloop.local.nn.layers import attention
from tinkerloop.local.nn.model_loading import load_model

COMPLETE = attention.attention


@pytest.fixture
def replace_attention(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], None]]:
    """Return a function that replaces the engine's attention until the end of the test."""
    yield lambda function: monkeypatch.setattr(attention, "attention", function)
    monkeypatch.undo()
    attention.register()


def load(folder: Path) -> None:
    load_model(str(folder), torch.device("cpu"), torch.float32)


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


def test_a_model_is_rejected_if_only_decoding_is_wrong(tmp_path, replace_attention):
    def without_padding(module, query, key, value, attention_mask, **kwargs):
        padded = attention_mask is not None and attention_mask.dtype == torch.bool
        return COMPLETE(module, query, key, value, None if padded else attention_mask, **kwargs)

    folder = write_model("gemma2", tmp_path)
    replace_attention(without_padding)
    with pytest.raises(NotImplementedError, match="the engine would run wrongly"):
        load(folder)

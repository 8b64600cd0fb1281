"""The built-in model `tiny`."""

from __future__ import annotations

import unicodedata

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tinkerloop.local.nn.tiny_model import tiny_model
from tinkerloop.tokenizers.tiny_tokenizer import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def test_equal_seeds_give_equal_models_and_the_global_rng_is_untouched():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    a, b, c = tiny_model(), tiny_model(), tiny_model(seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.lm_head.weight, c.lm_head.weight)


def test_the_weights_stay_the_same_from_version_to_version():
    model = tiny_model()
    assert sum(p.numel() for p in model.parameters()) == 132_992
    ids = torch.tensor([TOKENIZER.encode("<|im_start|>user\nhello")])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, -1]
    torch.testing.assert_close(logits[[0, 104, 258]], torch.tensor([0.02117, 0.17333, 0.40931]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("tied", [False, True])
def test_tied_embeddings_are_a_choice(tied: bool):
    model = tiny_model(tie_word_embeddings=tied)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
    assert not any(p.is_meta for p in [*model.parameters(), *model.buffers()])


def test_a_position_sees_its_past_and_not_its_future():
    model = tiny_model()
    a, b = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[1, 9, 3, 4]])
    with torch.no_grad():
        x, y = model(input_ids=a).logits, model(input_ids=b).logits
    assert torch.equal(x[:, :1], y[:, :1])
    assert (x[:, 2:] - y[:, 2:]).abs().amax(-1).min() > 1e-3


def test_model_and_tokenizer_survive_a_folder(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "<|im_start|>user\nna\u0308h  <think>.<|im_end|>"
    ids = tokenizer.encode(text)
    assert ids == TOKENIZER.encode(text)
    assert tokenizer.chat_template == TOKENIZER.chat_template
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)
    with torch.no_grad():
        x, y = (m(input_ids=torch.tensor([ids])).logits for m in (model, loaded))
    assert torch.equal(x, y)

"""The built-in tiny model and tokenizer."""

from __future__ import annotations

import unicodedata

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from tinkerloop.local.nn.tiny_model import tiny_config, tiny_model
from tinkerloop.tokenizers.tiny_tokenizer import CONTROL_TOKENS, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def test_a_byte_is_its_own_id():
    text = "Aß 漢\n\x00"
    assert TOKENIZER.encode(text, add_special_tokens=False) == list(text.encode())


def test_control_tokens_have_fixed_ids_and_qwen3s_flags():
    assert TOKENIZER.convert_tokens_to_ids(list(CONTROL_TOKENS)) == list(range(256, 268))
    assert len(TOKENIZER) == 268 == tiny_config().vocab_size
    added = TOKENIZER.added_tokens_decoder
    assert {token.content: token.special for token in added.values()} == CONTROL_TOKENS
    assert not any(token.normalized or token.lstrip or token.rstrip for token in added.values())
    assert (TOKENIZER.eos_token_id, TOKENIZER.pad_token_id, TOKENIZER.bos_token_id) == (258, 256, None)


def test_encoding_adds_no_token_by_default():
    assert TOKENIZER.encode("hi") == [104, 105]


@settings(deadline=None, max_examples=200)
@given(st.text())
def test_nfc_text_survives_the_round_trip(text: str):
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    assert TOKENIZER.decode(ids) == unicodedata.normalize("NFC", text)


def test_spaces_and_punctuation_are_not_cleaned_up():
    text = "  a , b . it 's  \n\n"
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_skipping_special_tokens_keeps_thinking_and_tool_markers():
    ids = TOKENIZER.encode("<think>a</think><tool_call><|im_end|>")
    assert len(ids) == 5
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == "<think>a</think><tool_call>"


def test_the_chat_template_is_chatml_with_reasoning_before_the_reply():
    messages = [
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "reasoning_content": "sum", "content": "4"},
        {"role": "user", "content": "thanks"},
    ]
    rendered = TOKENIZER.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == (
        "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n<think>\nsum\n</think>\n\n4<|im_end|>\n"
        "<|im_start|>user\nthanks<|im_end|>\n<|im_start|>assistant\n"
    )


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

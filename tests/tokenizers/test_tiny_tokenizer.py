"""The built-in tokenizer of the tiny models."""

from __future__ import annotations

import unicodedata

from hypothesis import given, settings
from hypothesis import strategies as st

from tinkerloop.local.nn.tiny_model import tiny_config
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


@settings(max_examples=200)
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

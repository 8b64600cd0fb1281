"""The built-in tokenizer, made from code: bytes and Qwen3's control tokens. It needs no torch."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CONTROL_TOKENS: dict[str, bool] = {
    "<|endoftext|>": True,
    "<|im_start|>": True,
    "<|im_end|>": True,
    "<|vision_start|>": True,
    "<|vision_end|>": True,
    "<|image_pad|>": True,
    "<tool_call>": False,
    "</tool_call>": False,
    "<tool_response>": False,
    "</tool_response>": False,
    "<think>": False,
    "</think>": False,
}
"""Qwen3's control tokens by name -> special; their ids follow the 256 byte tokens in this order."""

# ChatML, where a reply's reasoning precedes its text. Renderers write tool calls and declarations; this does not.
_CHAT_TEMPLATE = """\
{%- for message in messages -%}
    {{- '<|im_start|>' + message.role + '\\n' -}}
    {%- if message.reasoning_content -%}
        {{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' -}}
    {%- endif -%}
    {{- message.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def _byte_characters() -> list[str]:
    """The printable character that stands for each byte 0..255 in a byte-level vocabulary.

    Bytes that print as themselves do; the rest take the characters from U+0100 on, in order (as in GPT-2).
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Make a byte-level tokenizer: 256 byte tokens, then Qwen3's control tokens (ids 256 to 267).

    A byte's id is the byte: `encode("A") == [65]`. Text is normalised to NFC, as Qwen3 does; decoding gives any
    NFC text back exactly. As with any Hugging Face tokenizer, a control token spelled out in text is encoded as
    the control token.
    """
    core = Tokenizer(models.BPE(vocab={c: byte for byte, c in enumerate(_byte_characters())}, merges=[]))
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    # One by one: adding a batch would put the special tokens first whatever the order here.
    for token, special in CONTROL_TOKENS.items():
        added = AddedToken(token, normalized=False, special=special)
        (core.add_special_tokens if special else core.add_tokens)([added])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=_CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=32768,
    )

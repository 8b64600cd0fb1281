"""The built-in tokenizer: one token per byte, and Qwen3's control tokens (such as <|im_end|>). It needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from tinkerloop.tokenizers.notations import byte_of_character

if TYPE_CHECKING:
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
"""Mapping from the name of a Qwen3 control token to whether the tokenizer marks it as special.

Their ids follow those of the 256 byte tokens, in this order.
"""

# ChatML. The reasoning of an assistant message precedes its text. The template does not write tool calls or tool
# declarations; renderers do.
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


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a new byte-level tokenizer: 256 byte tokens, then Qwen3's control tokens (ids 256 to 267).

    The id of a byte token is the value of the byte: `encode("A") == [65]`. Text is normalised to NFC, as Qwen3 does,
    and decoding returns NFC text exactly. As with any Hugging Face tokenizer, the name of a control token in text is
    encoded as this control token.
    """
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tiny_core(),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=_CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=32768,
    )


def tiny_core() -> Tokenizer:
    """Return the part of `tiny_tokenizer` that encodes and decodes. transformers is not imported."""
    core = Tokenizer(models.BPE(vocab=byte_of_character(), merges=[]))
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    # Add the tokens one by one: a single call would give the special tokens the first ids.
    for token, special in CONTROL_TOKENS.items():
        added = AddedToken(token, normalized=False, special=special)
        (core.add_special_tokens if special else core.add_tokens)([added])
    return core

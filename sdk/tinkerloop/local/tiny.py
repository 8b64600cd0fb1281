"""The built-in tiny model: a real Qwen3 architecture and a real tokenizer, made from code in milliseconds.

Nothing is downloaded and nothing is read from disk, so tests, examples and the debugger always have a model.
The weights are random: the model is for exercising code, not for answering questions.
"""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

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

# ChatML; a reply's reasoning precedes its text. Tool calls and declarations are a renderer's business.
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
    """A byte-level tokenizer: 256 byte tokens, then Qwen3's control tokens (ids 256 to 267).

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


def tiny_config(**overrides: Any) -> Qwen3Config:
    """A two-layer Qwen3, hidden size 64, 0.13 million parameters; `overrides` are `Qwen3Config` fields.

    Grouped-query attention (4 heads, 2 key-value heads) and an untied `lm_head`, as in the larger Qwen3 models,
    so that a LoRA on the `lm_head` is independent of the embedding.
    """
    fields: dict[str, Any] = {
        "vocab_size": 256 + len(CONTROL_TOKENS),
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
        "eos_token_id": 258,
        "pad_token_id": 256,
        "bos_token_id": None,
    }
    return Qwen3Config(**(fields | overrides))


def tiny_model(seed: int = 0, **overrides: Any) -> Qwen3ForCausalLM:
    """A random `tiny_config(**overrides)` model in float32 and eval mode; equal seeds give equal weights.

    Matrices are drawn from N(0, 1/fan_in), embeddings from N(0, 1), norms are one; logits therefore differ
    visibly between tokens and positions. Only an own generator is used: the global RNG is neither read nor
    advanced.
    """
    config = tiny_config(**overrides)
    with torch.device("meta"):  # no storage, so the constructors' own initialisation draws nothing
        model = Qwen3ForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            state[name] = torch.ones(parameter.shape)
        else:
            scale = 1.0 if "embed_tokens" in name and not config.tie_word_embeddings else parameter.shape[1] ** -0.5
            state[name] = torch.randn(parameter.shape, generator=generator) * scale
    model.load_state_dict(state, strict=False, assign=True)  # a tied lm_head is absent: tied just below
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config)  # its buffers are computed, not loaded
    return model.eval()

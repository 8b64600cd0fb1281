"""The built-in model `tiny`: a very small model of the real Qwen3 architecture, created by code in milliseconds.

Nothing is downloaded or read from disk, so tests, examples and debugging work without model files. The weights are
random: the model serves to run code, not to answer questions.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from tinkerloop.tokenizers.tiny_tokenizer import CONTROL_TOKENS


def tiny_config(**overrides: Any) -> Qwen3Config:
    """Return the configuration of a two-layer Qwen3 model with hidden size 64 and 0.13 million parameters.

    As in the larger Qwen3 models, attention is grouped-query (4 heads, 2 key-value heads) and the `lm_head` is not tied
    to the embedding. So a LoRA adapter on the `lm_head` does not affect the embedding.

    Args:
        overrides: fields of `Qwen3Config` that replace the defaults.
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
    """Return a model of `tiny_config(**overrides)` with random float32 weights, in eval mode.

    Equal seeds give equal weights. Matrices are drawn from N(0, 1/fan_in) and embeddings from N(0, 1); norm weights are
    one. So logits clearly differ between tokens and positions. torch's global random generator is not used.
    """
    config = tiny_config(**overrides)
    with torch.device("meta"):  # without storage, the constructors draw no random numbers
        model = Qwen3ForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            state[name] = torch.ones(parameter.shape)
        else:
            scale = 1.0 if "embed_tokens" in name and not config.tie_word_embeddings else parameter.shape[1] ** -0.5
            state[name] = torch.randn(parameter.shape, generator=generator) * scale
    model.load_state_dict(state, strict=False, assign=True)  # a tied lm_head is missing; the next line ties it
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config)  # its buffers are computed, not loaded
    return model.eval()

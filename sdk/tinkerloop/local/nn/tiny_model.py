"""The built-in `tiny`: a real Qwen3 architecture, made from code in milliseconds.

Nothing is downloaded and nothing is read from disk, so tests, examples and the debugger always have a model.
The weights are random: the model is for exercising code, not for answering questions.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from tinkerloop.tokenizers.tiny_tokenizer import CONTROL_TOKENS


def tiny_config(**overrides: Any) -> Qwen3Config:
    """Return the configuration of a two-layer Qwen3, hidden size 64, 0.13 million parameters.

    `overrides` are `Qwen3Config` fields.

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
    """Make a random `tiny_config(**overrides)` model in float32 and eval mode; equal seeds give equal weights.

    Matrices are drawn from N(0, 1/fan_in), embeddings from N(0, 1), norms are one; logits therefore differ
    visibly between tokens and positions. The global random generator is neither read nor advanced.
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

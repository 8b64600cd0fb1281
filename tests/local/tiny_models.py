"""Write tiny random models of several architectures to folders that transformers can load.

    python tests/local/tiny_models.py DIR [NAME ...]

Tests write the models to a temporary folder. Nothing is downloaded.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tinkerloop.tokenizers.tiny_tokenizer import tiny_tokenizer

_COMMON = {
    "vocab_size": 268,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "eos_token_id": 258,
    "pad_token_id": 256,
    "bos_token_id": None,
}
_MOE = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}

CONFIGS: dict[str, dict[str, Any]] = {
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"tie_word_embeddings": False},
    "qwen3_moe": {**_MOE, "num_experts": 4, "norm_topk_prob": True, "decoder_sparse_step": 1},
    "mistral": {"sliding_window": 4},
    "llama": {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "gemma2": {
        "sliding_window": 4,
        "query_pre_attn_scalar": 8,
        "final_logit_softcapping": 5.0,
        "attn_logit_softcapping": 10.0,
    },
    "gemma3_text": {"sliding_window": 4, "query_pre_attn_scalar": 8},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4},
    "deepseek_v3": {
        **_MOE,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
        "num_key_value_heads": 4,
        "head_dim": 8,
    },
    # Linear layers stored as (in, out): transformers' Conv1D.
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    # A model with recurrent and attention layers. Its sequences cannot be packed.
    "qwen3_5_text": {
        "layer_types": ["linear_attention", "full_attention"],
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    },
}
"""Mapping from architecture to additional configuration fields. Sliding windows are shorter than test sequences."""


OTHER_CONFIGS: dict[str, dict[str, Any]] = {
    "jetmoe": {"kv_channels": 8, "num_key_value_heads": 4, "num_local_experts": 4},  # experts that no adapter covers
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32, "do_layer_norm_before": True},  # no block named mlp
}
"""Like `CONFIGS`, for architectures of single tests."""


def write_model(architecture: str, folder: Path, **fields: Any) -> Path:
    """Write a random model of `architecture` with the tiny tokenizer, in float32. `fields` are configuration fields.

    The calling test is skipped if the installed transformers does not have the architecture.
    """
    fields = {**_COMMON, **(CONFIGS | OTHER_CONFIGS)[architecture], **fields}
    if architecture not in CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {architecture}")
    config = AutoConfig.for_model(architecture, **fields)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                # Weights are so large that every part of the model affects the logits.
                if parameter.ndim > 1 or "sinks" in name or "bias" in name:
                    parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


if __name__ == "__main__":
    target = Path(sys.argv[1])
    for name in sys.argv[2:] or CONFIGS:
        print(write_model(name, target / name))

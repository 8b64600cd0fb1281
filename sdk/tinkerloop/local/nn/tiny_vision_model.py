"""The built-in model `tiny-vl`: a very small model of the real Qwen3-VL architecture, created by code in milliseconds.

It uses the tokenizer of `tiny`. All weights are random, including those of the vision tower. To train the model on
images, train all weights (`rank=0`), or give the vision tower an adapter as well (`train_vision=True`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from tinkerloop.tokenizers.tiny_tokenizer import CONTROL_TOKENS


def tiny_vl_config(text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None) -> Qwen3VLConfig:
    """Return the configuration of a two-layer Qwen3-VL model with a two-layer vision tower and 0.48 million parameters.

    `text` and `vision` hold fields that replace the defaults of the text and of the vision configuration.
    """
    ids = {token: 256 + i for i, token in enumerate(CONTROL_TOKENS)}
    text_fields = {
        "vocab_size": 256 + len(CONTROL_TOKENS),
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "bos_token_id": None,
        # head_dim / 2 = 8 frequencies, divided among time, height and width
        "rope_theta": 10_000.0,
        # Under this name, transformers 4 and 5 both read it.
        "rope_scaling": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 2, 2]},
    }
    text_fields |= text or {}
    vision_fields = {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 4,
        "out_hidden_size": text_fields["hidden_size"],
        "num_position_embeddings": 16**2,
        "deepstack_visual_indexes": [0],
    }
    return Qwen3VLConfig(
        text_config=text_fields,
        vision_config=vision_fields | (vision or {}),
        image_token_id=ids["<|image_pad|>"],
        # The model supports no videos, so this is an id that no token has.
        video_token_id=text_fields["vocab_size"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )


def tiny_vl_model(seed: int = 0, config: Qwen3VLConfig | None = None) -> Qwen3VLForConditionalGeneration:
    """Return a model of `config` (None: `tiny_vl_config()`) with random float32 weights, in eval mode.

    Equal seeds give equal weights. Matrices are drawn from N(0, 1/fan_in) and word embeddings from N(0, 1); norm
    weights are one and biases zero. torch's global random generator is not changed.
    """
    config = tiny_vl_config() if config is None else config
    with torch.random.fork_rng():  # the constructors draw random weights, which are overwritten below
        model = Qwen3VLForConditionalGeneration(config)
    words = model.get_input_embeddings()
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 1:
                nn.init.constant_(parameter, 0.0 if name == "bias" else 1.0)
            else:
                scale = 1.0 if module is words else 1 / math.sqrt(parameter[0].numel())
                nn.init.normal_(parameter, std=scale, generator=generator)
    return model.eval()

"""Loading of a base model: a built-in model, a local folder, or a model of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as hf_logging

from tinkerloop.local.nn.layers import attention
from tinkerloop.local.nn.load_check import packs
from tinkerloop.local.nn.model import Model
from tinkerloop.local.request_errors import bad_request
from tinkerloop.tokenizers.loading import BUILT_IN, NO_HUB_NAME
from tinkerloop.tokenizers.tiny_tokenizer import tiny_tokenizer

TINY_MODEL, TINY_VISION_MODEL = BUILT_IN
"""The names of the built-in models, which are created by code without any files."""


def load_model(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    gradient_checkpointing: bool | None = None,
    folder: str | None = None,
) -> Model:
    """Load a base model and check that the engine computes correct logits with it.

    Weights are read only from safetensors files.

    Args:
        name: a built-in model, or a folder or hub name of a causal or image-text model of transformers.
        gradient_checkpointing: True: always recompute activations. False: never. None: decide by available memory.
        folder: where to load the model from, if `name` does not say it.

    Raises:
        tinker.BadRequestError: the model cannot be loaded.
        NotImplementedError: the check found that the engine would compute wrong logits.
    """
    module, tokenizer = _read(folder or name, dtype)
    model = Model(name, module.to(device), tokenizer, gradient_checkpointing, folder)
    model.packs = packs(model)
    return model


def _read(name: str, dtype: torch.dtype) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    if name == TINY_MODEL:
        from tinkerloop.local.nn.tiny_model import tiny_model

        return cast(nn.Module, tiny_model()).to(dtype=dtype), tiny_tokenizer()
    if name == TINY_VISION_MODEL:
        from tinkerloop.local.nn.tiny_vision_model import tiny_vl_model

        return cast(nn.Module, tiny_vl_model()).to(dtype=dtype), tiny_tokenizer()
    attention.register()
    is_folder = Path(name).exists()
    offline = is_folder or "/" not in name  # a name of the hub is OWNER/NAME
    try:
        has_vision = hasattr(AutoConfig.from_pretrained(name, local_files_only=offline), "vision_config")
        with _without_progress_bar():
            module = (AutoModelForImageTextToText if has_vision else AutoModelForCausalLM).from_pretrained(
                name,
                dtype=dtype,
                attn_implementation=attention.NAME,
                use_safetensors=True,
                local_files_only=offline,
            )
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=offline)
    except (OSError, ValueError) as error:
        if offline and not is_folder:
            raise bad_request(f"cannot load base_model={name!r}: {NO_HUB_NAME}") from error
        hint = "" if is_folder else ": there is no such folder, and the Hugging Face hub did not provide it"
        raise bad_request(f"cannot load base_model={name!r}{hint}: {error}") from error
    return cast(nn.Module, module), tokenizer


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    """Turn off transformers' progress bar in the context, because it would overwrite what the user's program prints."""
    enabled = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            hf_logging.enable_progress_bar()

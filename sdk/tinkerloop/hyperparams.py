"""Hyperparameters that depend on the model: a learning rate to start from, and the size of a LoRA adapter."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tinkerloop.errors import PlanError, UnknownRendererError
from tinkerloop.extras import needs_extra
from tinkerloop.model_info import get_model_attributes
from tinkerloop.number_checks import check_whole

_FULL_RATE = 5e-5
_LORA_FACTOR = 10.0
_EXPONENTS = {"llama": 0.781, "qwen": 0.0775}

# (organization, size) -> hidden size, for the models of the table in `model_info` that the rule covers
_HIDDEN_SIZES = {
    "meta-llama": {"1B": 2048, "3B": 3072, "8B": 4096, "70B": 8192},
    "Qwen": {
        "0.6B": 1024,
        "1.7B": 2048,
        "4B": 2560,
        "8B": 4096,
        "9B": 4096,
        "14B": 5120,
        "27B": 5120,
        "32B": 5120,
        "30B-A3B": 2048,
        "35B-A3B": 2048,
        "235B-A22B": 4096,
        "397B-A17B": 4096,
    },
}

_DENSE = ("llama", "mistral", "qwen2", "qwen3", "qwen3_vl_text")
EXPERT_MODELS = ("qwen3_moe", "qwen3_vl_moe_text")
"""The architectures with experts whose layers are counted here."""


def recommended_learning_rate(model: str, rank: int = 32) -> float:
    """Return a learning rate to start from, by the rule of the Tinker Cookbook.

        learning rate = 5e-5 * (10 with LoRA, 1 without) * (2000 / hidden size) ** exponent

    The exponent is 0.781 for Llama and 0.0775 for Qwen. With LoRA the best learning rate is about 10 times that of full
    fine-tuning, and does not depend on the rank. Source: Schulman and Thinking Machines Lab, "LoRA Without Regret",
    2025, https://thinkingmachines.ai/blog/lora/; constants of the Cookbook's `get_lr`, version 0.6.1.

        >>> f"{recommended_learning_rate('meta-llama/Llama-3.1-8B'):.4g}"
        '0.0002856'
        >>> [f"{recommended_learning_rate('Qwen/Qwen3-8B', rank):.4g}" for rank in (32, 0)]
        ['0.000473', '4.73e-05']

    Args:
        model: a model name of the service, a local folder with config.json, or a name on the Hugging Face hub.
        rank: the rank of the LoRA adapter; 0 means that all weights are trained.

    Raises:
        PlanError: `rank` is no whole number of at least 0, or the rule covers neither the model nor its architecture.
        MissingPackageError: the configuration must be read from the hub, and transformers is not installed.
    """
    check_whole("rank", rank, 0)
    name, hidden_size = _family_and_hidden_size(model)
    exponent = next((value for family, value in _EXPONENTS.items() if name.startswith(family)), None)
    if exponent is None or hidden_size is None:
        raise PlanError(
            f"no learning rate is published for the model {model!r}, only for Llama and Qwen: set learning_rate; "
            "1e-4 to 5e-4 is a usual range to try with LoRA"
        )
    return _FULL_RATE * (_LORA_FACTOR if rank else 1.0) * (2000 / hidden_size) ** exponent


def _family_and_hidden_size(model: str) -> tuple[str, int | None]:
    """Return the family in lower case (such as "qwen" or "qwen3_moe"), and the hidden size; None if not known."""
    try:
        facts = get_model_attributes(model)
    except UnknownRendererError:  # a name on the hub
        facts = None
    if facts is not None and facts.organization:
        family = facts.organization.lower().removeprefix("meta-")
        return family, _HIDDEN_SIZES.get(facts.organization, {}).get(facts.size_str)
    config = language_model_config(model)
    return config.get("model_type", ""), config.get("hidden_size")


def lora_parameter_count(
    model: str | Mapping[str, Any],
    rank: int = 32,
    *,
    train_mlp: bool = True,
    train_attn: bool = True,
    train_unembed: bool = True,
) -> int:
    """Return the number of trained parameters of a LoRA adapter.

    A matrix from m to n features has `rank * (m + n)` adapter parameters. With E experts, the factor on the side of the
    hidden size is shared, so an expert matrix from m to n features has `rank * (m + E * n)`. That is how the hosted
    service counts, as the Cookbook's `get_lora_param_count` documents.

        >>> llama_8b = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "vocab_size": 128256}
        >>> llama_8b |= {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8}
        >>> lora_parameter_count(llama_8b, rank=32), lora_parameter_count(llama_8b, rank=1, train_mlp=False)
        (88121344, 984320)

    Args:
        model: a local folder with config.json, a name on the Hugging Face hub, or the contents of config.json.
        rank: the rank of the adapter.
        train_mlp: count the adapters of the MLP layers.
        train_attn: count the adapters of the attention layers.
        train_unembed: count the adapter of the output layer.

    Raises:
        NotImplementedError: the architecture has other layers than those that are counted here.
        PlanError: `rank` is no whole number of at least 0, or the configuration lacks a size.
        MissingPackageError: the configuration must be read from the hub, and transformers is not installed.
    """
    check_whole("rank", rank, 0)
    config = language_model_config(model)
    kind = config.get("model_type")
    if kind not in (*_DENSE, *EXPERT_MODELS):
        raise NotImplementedError(
            f"lora_parameter_count does not support the layers of {kind!r}, only those of "
            f"{', '.join((*_DENSE, *EXPERT_MODELS))}"
        )
    if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
        raise NotImplementedError("lora_parameter_count does not support layers with experts beside layers without")
    hidden, heads = config_size(config, "hidden_size"), config_size(config, "num_attention_heads")
    head = config.get("head_dim") or hidden // heads
    queries, keys = heads * head, (config.get("num_key_value_heads") or heads) * head
    attention = 2 * (hidden + queries) + 2 * (hidden + keys)  # q and o; k and v
    if kind in EXPERT_MODELS:
        mlp = 3 * (hidden + expert_count(config) * config_size(config, "moe_intermediate_size"))  # gate, up and down
    else:
        mlp = 3 * (hidden + config_size(config, "intermediate_size"))
    layers = config_size(config, "num_hidden_layers") * (mlp * train_mlp + attention * train_attn)
    return rank * (layers + (hidden + config_size(config, "vocab_size")) * train_unembed)


def expert_count(config: Mapping[str, Any]) -> int:
    """Return the number of experts of a layer; transformers 5 writes it under another name than transformers 4."""
    return config_size(config, "num_experts" if "num_experts" in config else "num_local_experts")


def config_size(config: Mapping[str, Any], name: str) -> int:
    """Return a size of a model from its configuration.

    Raises:
        PlanError: the configuration lacks the size, or it is no whole number above 0.
    """
    if name not in config:
        raise PlanError(
            f"the configuration of the model has no {name!r}, only {', '.join(sorted(config))}: pass a whole "
            "config.json"
        )
    check_whole(f"{name!r} of the model's configuration", config[name], 1)
    return config[name]


def adapter_size(model: str, rank: int) -> str:
    """Return the rank of an adapter in words and, for a model folder, its number of parameters.

    >>> adapter_size("Qwen/Qwen3-8B", 32)
    'rank 32'
    """
    if rank == 0:
        return "none: all weights are trained"
    try:
        return (
            f"rank {rank}, {lora_parameter_count(model, rank):,} parameters" if os.path.isdir(model) else f"rank {rank}"
        )
    except (NotImplementedError, PlanError):
        return f"rank {rank}"


def language_model_config(model: str | Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the configuration of a language model; in a model for images and text, the part for text.

    Args:
        model: a local folder with config.json, a name on the Hugging Face hub, or the contents of config.json.

    Raises:
        PlanError: there is no such configuration.
        MissingPackageError: the configuration must be read from the hub, and transformers is not installed.
    """
    config = model if isinstance(model, Mapping) else _read_config(model)
    return config.get("text_config") or config


def _read_config(model: str) -> Mapping[str, Any]:
    if model in ("tiny", "tiny-vl"):
        raise PlanError(f"no sizes are listed for the built-in model {model!r}")
    path = Path(model) / "config.json"
    if os.path.isdir(model):
        if not path.is_file():
            raise PlanError(f"the model folder {model} has no config.json: pass a folder with it, or set the value")
        return json.loads(path.read_text(encoding="utf-8"))
    with needs_extra("local", "reading the configuration of a model from the hub"):
        from transformers import AutoConfig
    try:
        return AutoConfig.from_pretrained(model.partition(":")[0]).to_dict()
    except (OSError, ValueError) as error:
        raise PlanError(
            f"the model {model!r} is neither a folder, nor a model with known sizes, nor on the hub: {error}"
        ) from error

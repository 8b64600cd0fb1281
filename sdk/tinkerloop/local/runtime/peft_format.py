"""PEFT's file format for adapters: the tensor names and the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tinkerloop.local.nn.layers.experts import ExpertWeights
from tinkerloop.local.nn.layers.lora import ALPHA, LoRALinear, LoraSpec
from tinkerloop.local.nn.model import Model


def tensor_names(model: Model, spec: LoraSpec) -> dict[str, str]:
    """Return a mapping from the engine's names of the trained tensors to their names in a checkpoint.

    Adapter tensors get PEFT's names. PEFT wraps a module once for each of its stacked parameters; the wrapper of the
    last parameter is the outermost. Each wrapper adds `.base_layer` to the names of the parameters wrapped before.
    With rank 0 every parameter is trained and keeps its name.
    """
    if spec.rank == 0:
        return {name: name for name, _ in model.module.named_parameters()}
    names: dict[str, str] = {}
    trained = model.trained_layers(spec)
    for name, layer in trained.items():
        module = name
        if isinstance(layer, ExpertWeights):
            module = name.rsplit(".", 1)[0]
            siblings = [n for n in trained if n.rsplit(".", 1)[0] == module]
            module += ".base_layer" * (len(siblings) - 1 - siblings.index(name))
        for part in ("lora_A", "lora_B"):
            names[f"{name}.{part}"] = f"base_model.model.{module}.{part}.weight"
    return names


def adapted_modules(model: Model, spec: LoraSpec) -> dict[str, list[str]]:
    """Return PEFT's `target_modules` and `target_parameters` for the layers that get an adapter with `spec`.

    Linear layers are listed by the last part of their names. If another module (for example a convolution) has the
    same last part, PEFT would adapt it too; in this case full names are listed.
    """
    trained = model.trained_layers(spec)
    linears = [name for name, layer in trained.items() if isinstance(layer, LoRALinear)]
    leaves = {name.rsplit(".", 1)[-1] for name in linears}
    exact = [name for name, _ in model.module.named_modules() if name.rsplit(".", 1)[-1] in leaves] == linears
    targets = {"target_modules": sorted(leaves) if exact else linears}
    stacked = [name for name, layer in trained.items() if isinstance(layer, ExpertWeights)]
    return {**targets, "target_parameters": stacked} if stacked else targets


def adapter_config(base_model: str, rank: int, targets: Mapping[str, list[str]]) -> dict[str, Any]:
    """Return the contents of adapter_config.json, with which PEFT computes the same as the engine.

    `targets` contains PEFT's `target_modules` and `target_parameters`.
    """
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": rank,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        **targets,
    }

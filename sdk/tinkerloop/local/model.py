"""A frozen base model: loading it, its adaptable layers, and the forward pass over a packed batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as hf_logging

from tinkerloop.local import attention, decoder, norms, own_forward
from tinkerloop.local.activations import Activations
from tinkerloop.local.experts import ExpertWeights
from tinkerloop.local.futures import bad_request
from tinkerloop.local.inputs import Batch, Input
from tinkerloop.local.lora import LoRALinear, LoraSpec, initialise
from tinkerloop.local.parameters import Layout, Weights
from tinkerloop.local.replica import Layer, Replica
from tinkerloop.local.vision import vision_of

TINY, TINY_VL = "tiny", "tiny-vl"
"""The names of the built-in models, which are made from code."""

FOLD_LIMIT = 2 * 2**30
"""Fold adapters into a copy of the frozen weights up to this many bytes of float32 weights."""


class Model:
    """One frozen base, shared by every client that trains or samples an adapter on it."""

    def __init__(
        self,
        name: str,
        module: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        gradient_checkpointing: bool | None = None,
    ):
        assert isinstance(module, PreTrainedModel)
        attention.register()
        module.set_attn_implementation(attention.NAME)
        module.eval().requires_grad_(False)
        norms.take_over(module)
        self.name, self.module, self.tokenizer = name, module, tokenizer
        decoder.take_over(module)
        first = Replica(module)
        self.replicas = [first]
        self.trunk, self.head, self.layers, self.kinds = first.trunk, first.head, first.layers, first.kinds
        config = module.config.get_text_config()
        self.vocab_size: int = config.vocab_size
        self.max_length: int = config.max_position_embeddings
        self.vision = vision_of(name, module)
        self.device, self.dtype = first.head.layer.weight.device, first.head.layer.weight.dtype
        weights = sum(layer.weight.numel() * 4 for layer in self.layers.values())
        self.fold = self.dtype == torch.float32 and weights <= FOLD_LIMIT
        self.end_tokens = _end_tokens(module, tokenizer)
        self._bound: tuple[object, ...] | None = None
        self._weights: Weights | None = None
        self._base: dict[str, torch.Tensor] = {}
        self._trained: LoraSpec | None = None
        self.activations = Activations(module, self._run_trial, gradient_checkpointing)
        self.packs: bool = own_forward.packs(self)
        """Whether sequences may run one after another in one row; else each runs alone."""

    def trained_layers(self, spec: LoraSpec) -> dict[str, Layer]:
        return {name: layer for name, layer in self.layers.items() if spec.covers(self.kinds[name])}

    def new_weights(self, spec: LoraSpec) -> Weights:
        """Fresh weights: an adapter that changes nothing yet, or (rank 0) a copy of the whole model."""
        layout = self.layout(spec)
        weights = Weights(layout, layout.zeros(self.device))
        if spec.rank == 0:
            for name, parameter in self.module.named_parameters():
                weights.named[name].copy_(self._base.get(name, parameter.data))
        else:
            initialise(weights.named, spec.seed)
        return weights

    def layout(self, spec: LoraSpec) -> Layout:
        """The names and shapes of what `spec` trains."""
        if spec.rank == 0:
            return Layout({name: tuple(p.shape) for name, p in self.module.named_parameters()})
        shapes: dict[str, tuple[int, ...]] = {}
        for name, layer in self.trained_layers(spec).items():
            shapes[f"{name}.lora_A"], shapes[f"{name}.lora_B"] = layer.shapes(spec.rank)
        return Layout(shapes)

    def peft_targets(self, spec: LoraSpec) -> dict[str, list[str]]:
        """PEFT's names for what `spec` adapts.

        Linear layers by their last names where no other module has one of those (PEFT would adapt a convolution as
        well), else by full name.
        """
        trained = self.trained_layers(spec)
        linears = [name for name, layer in trained.items() if isinstance(layer, LoRALinear)]
        leaves = {name.rsplit(".", 1)[-1] for name in linears}
        exact = [name for name, _ in self.module.named_modules() if name.rsplit(".", 1)[-1] in leaves] == linears
        targets = {"target_modules": sorted(leaves) if exact else linears}
        stacked = [name for name, layer in trained.items() if isinstance(layer, ExpertWeights)]
        return {**targets, "target_parameters": stacked} if stacked else targets

    def file_names(self, spec: LoraSpec) -> dict[str, str]:
        """Our names of the trained tensors -> their names in a checkpoint, which are PEFT's.

        PEFT wraps a module once for each of its stacked parameters, the last one outermost.
        """
        if spec.rank == 0:
            return {name: name for name, _ in self.module.named_parameters()}
        names: dict[str, str] = {}
        trained = self.trained_layers(spec)
        for name, layer in trained.items():
            place = name
            if isinstance(layer, ExpertWeights):
                place = name.rsplit(".", 1)[0]
                siblings = [n for n in trained if n.rsplit(".", 1)[0] == place]
                place += ".base_layer" * (len(siblings) - 1 - siblings.index(name))
            for part in ("lora_A", "lora_B"):
                names[f"{name}.{part}"] = f"base_model.model.{place}.{part}.weight"
        return names

    def bind(
        self,
        spec: LoraSpec | None,
        weights: Weights | None,
        gradients: Sequence[Mapping[str, torch.Tensor] | None] = (None,),
    ) -> None:
        """Make the next passes use these weights (None: the base alone), and add gradients to these buffers.

        There is one set of buffers, or None, for each replica that is to be used.
        """
        version = None if weights is None else weights.version
        key = (version, *map(id, gradients))
        # What is bound may be other weights of this version, as a run's are of its snapshot's until they are trained.
        if self._bound == key and (self._weights is None or self._weights.version is version):
            return
        self._unbind()
        while len(self.replicas) < len(gradients):
            self.replicas.append(self.replicas[0].copy())
        if spec is not None and weights is not None:
            if spec.rank == 0:
                self._bind_parameters(weights, gradients[0])
            else:
                self._bind_adapter(spec, weights, gradients[0])
                for replica, buffers in zip(self.replicas[1 : len(gradients)], gradients[1:], strict=True):
                    replica.share(self.replicas[0], buffers)
        self._bound, self._weights = key, weights
        self._trained = None if spec is None else replace(spec, seed=0)

    def hidden(self, batch: Batch) -> torch.Tensor:
        """The last hidden states (T, H) of a packed batch, on the first replica."""
        return self.replicas[0].hidden(batch)

    def choose_activations(self, lengths: Sequence[int]) -> None:
        """Before a pass goes backward: keep or recompute, where sequences of these lengths run at the same time."""
        self.activations.choose(lengths, self._trained)

    def _run_trial(self, length: int) -> torch.Tensor:
        return self.hidden(Batch.of([Input(np.ones(length, np.int64))], self.device))

    def _unbind(self) -> None:
        for replica in self.replicas:
            for layer in replica.layers.values():
                layer.slot = None
        if self._base:
            for name, parameter in self.module.named_parameters():
                parameter.requires_grad_(False)
                parameter.grad = None
                parameter.data = self._base[name]
            self._base = {}

    def _bind_adapter(self, spec: LoraSpec, weights: Weights, gradients: Mapping[str, torch.Tensor] | None) -> None:
        for name, layer in self.trained_layers(spec).items():
            a, b = f"{name}.lora_A", f"{name}.lora_B"
            pair = None if gradients is None else (gradients[a], gradients[b])
            fold = self.fold and not (layer is self.head.layer and self.head.tiled)  # a tile is folded when it is used
            layer.bind(weights.named[a], weights.named[b], spec.scale, pair, fold)

    def _bind_parameters(self, weights: Weights, gradients: Mapping[str, torch.Tensor] | None) -> None:
        for name, parameter in self.module.named_parameters():
            self._base[name] = parameter.data
            parameter.data = weights.named[name]
            if gradients is not None:
                parameter.requires_grad_(True)
                parameter.grad = gradients[name]  # autograd accumulates in place


def load(name: str, device: torch.device, dtype: torch.dtype, gradient_checkpointing: bool | None = None) -> Model:
    """A built-in model, or any transformers causal or image-text LM from a folder or the hub (safetensors only)."""
    module, tokenizer = _read(name, dtype)
    return Model(name, module.to(device), tokenizer, gradient_checkpointing)


def _read(name: str, dtype: torch.dtype) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    if name == TINY:
        from tinkerloop.local.tiny import tiny_model, tiny_tokenizer

        return cast(nn.Module, tiny_model()).to(dtype=dtype), tiny_tokenizer()
    if name == TINY_VL:
        from tinkerloop.local.tiny import tiny_tokenizer
        from tinkerloop.local.vision_tiny import tiny_vl_model

        return cast(nn.Module, tiny_vl_model()).to(dtype=dtype), tiny_tokenizer()
    attention.register()
    try:
        sees = hasattr(AutoConfig.from_pretrained(name), "vision_config")
        with _without_progress_bar():
            module = (AutoModelForImageTextToText if sees else AutoModelForCausalLM).from_pretrained(
                name, dtype=dtype, attn_implementation=attention.NAME, use_safetensors=True
            )
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        hint = "" if Path(name).exists() else "; no such folder here, and it cannot be loaded from the hub"
        raise bad_request(f"cannot load base_model={name!r}{hint}: {error}") from error
    return cast(nn.Module, module), tokenizer


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    """transformers draws one over whatever the script prints."""
    drawn = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            hf_logging.enable_progress_bar()


def _end_tokens(module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that end a sequence: the generation configuration's, the model's, else the tokenizer's."""
    for owner in (module.generation_config, module.config.get_text_config(), tokenizer):
        ids = getattr(owner, "eos_token_id", None)
        if ids is not None:
            return frozenset(ids if isinstance(ids, list | tuple) else [ids])
    return frozenset()

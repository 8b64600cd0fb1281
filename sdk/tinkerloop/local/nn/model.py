"""A frozen base model with its replicas. It attaches the weights and gradients of an adapter to its layers."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tinkerloop.local.nn.inputs import Input, PackedBatch
from tinkerloop.local.nn.layers import attention, decoder_layer, norms
from tinkerloop.local.nn.layers.gradient_checkpointing import GradientCheckpointing
from tinkerloop.local.nn.layers.lora import Fold, LoRALinear, LoraSpec, initialise, worth_folding
from tinkerloop.local.nn.parameters import ParameterLayout, Weights
from tinkerloop.local.nn.prefix_store import PrefixStore
from tinkerloop.local.nn.replica import AdaptableLayer, Replica
from tinkerloop.local.nn.stop_strings import TextAfter, text_decoder
from tinkerloop.local.nn.vision import vision_of

FOLD_LIMIT = 2 * 2**30
"""Adapters are folded into a copy of the frozen weights only if these take at most this many bytes in float32."""
PACK_FROM = 32 * 2**20
"""Weights are packed for sampling only if they take at least this many bytes in float32. In smaller models, the calls
of oneDNN take longer than they save."""
LEAST_PREFIXES = 64 * 2**20
"""The starts of sampled prompts may take at least this many bytes, even if the weights take less."""


class Model:
    """A frozen base model. It is shared by all clients that train or sample an adapter on it."""

    def __init__(
        self,
        name: str,
        module: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        gradient_checkpointing: bool | None = None,
        folder: str | None = None,
    ):
        assert isinstance(module, PreTrainedModel)
        attention.register()
        module.set_attn_implementation(attention.NAME)
        module.eval().requires_grad_(False)
        norms.use_own_norms(module)
        self.name, self.module, self.tokenizer = name, module, tokenizer
        decoder_layer.use_own_layers(module)
        first = Replica(module)
        self.replicas = [first]
        self.trunk, self.head, self.layers, self.kinds = first.trunk, first.head, first.layers, first.kinds
        config = module.config.get_text_config()
        self.vocab_size: int = config.vocab_size
        self.max_length: int = config.max_position_embeddings
        self.vision = vision_of(folder or name, module)
        self.device, self.dtype = first.head.layer.weight.device, first.head.layer.weight.dtype
        weights = sum(layer.weight.numel() * 4 for layer in self.layers.values())
        self.fits_folded = self.dtype == torch.float32 and weights <= FOLD_LIMIT
        self._packs_weights = self.fits_folded and self.device.type == "cpu" and weights >= PACK_FROM
        self._updates = self.dtype == torch.float32  # else the layers hold rounded copies of A and B
        self.end_tokens = _end_tokens(module, tokenizer)
        self._bound: tuple[object, ...] | None = None
        self._weights: Weights | None = None
        self._base: dict[str, torch.Tensor] = {}
        self.weights_packed = False
        self.prefixes = PrefixStore(limit=max(weights // 2, LEAST_PREFIXES))
        """The keys and values of the starts of sampled prompts, until other weights become active."""
        self.trained: LoraSpec | None = None
        """The kind of the active adapter, with seed 0. None: no adapter."""
        self.block_sizes: dict[tuple[int, LoraSpec | None], tuple[int, ...]] = {}
        """The results of `row_blocks.block_sizes`, by number of threads and kind of adapter."""
        self.prompt_sizes: dict[tuple[int, LoraSpec | None], tuple[int, ...]] = {}
        """The results of `row_blocks.prompt_sizes`, in the same way."""
        self.gradient_checkpointing = GradientCheckpointing(module, self._run_trial, gradient_checkpointing)
        self.packs = True
        """True if sequences can be packed into one row, False if each must run alone. `load_model` sets it."""

    @functools.cached_property
    def text_after(self) -> TextAfter:
        """The function that decodes sampled tokens. It is chosen at the first request with a stop string."""
        return text_decoder(self.tokenizer)

    def trained_layers(self, spec: LoraSpec) -> dict[str, AdaptableLayer]:
        """Return the layers to which `spec` gives an adapter, by name."""
        return {name: layer for name, layer in self.layers.items() if spec.covers(self.kinds[name])}

    def new_weights(self, spec: LoraSpec) -> Weights:
        """Return initial weights: an adapter that does not change the model's outputs.

        With rank 0, return a copy of all weights of the model instead.
        """
        layout = self.layout(spec)
        weights = Weights(layout, layout.zeros(self.device))
        if spec.rank == 0:
            for name, parameter in self.module.named_parameters():
                weights.named[name].copy_(self._base.get(name, parameter.data))
        else:
            initialise(weights.named, spec.seed)
        return weights

    def layout(self, spec: LoraSpec) -> ParameterLayout:
        """Return the layout (names, shapes and offsets) of the tensors that are trained with `spec`."""
        if spec.rank == 0:
            return ParameterLayout({name: tuple(p.shape) for name, p in self.module.named_parameters()})
        shapes: dict[str, tuple[int, ...]] = {}
        for name, layer in self.trained_layers(spec).items():
            shapes[f"{name}.lora_A"], shapes[f"{name}.lora_B"] = layer.shapes(spec.rank)
        return ParameterLayout(shapes)

    def bind(
        self,
        spec: LoraSpec | None,
        weights: Weights | None,
        gradients: Sequence[Mapping[str, torch.Tensor] | None] = (None,),
        step_tokens: int | None = None,
    ) -> None:
        """Make these weights and gradient buffers active, so that the next forward and backward passes use them.

        Args:
            spec: which layers the weights belong to, and their rank; None if `weights` is None.
            weights: the weights to use; None: the base model without an adapter.
            gradients: for each replica that will be used, buffers by tensor name, to which gradients are added; None:
                no gradients.
            step_tokens: the number of tokens in a step, by which `worth_folding` decides whether adapters are folded.
                None: not known; they are folded. Folded and separate products round differently. So that splitting a
                batch does not change the rounding, this must be a number that does not depend on the split.
        """
        version = None if weights is None else weights.version
        fold = spec is not None and spec.rank > 0 and self._folds(spec, step_tokens)
        key = (version, fold, *map(id, gradients))
        # An equal key is not enough: a snapshot shares its version with the weights it was copied from. If those are
        # active and were trained since, their values are no longer those of this version.
        if self._bound == key and (self._weights is None or self._weights.version is version):
            return
        if self._weights is weights and self._bound is not None and self._bound[1:] == key[1:] and self._updates:
            self.unpack()  # the layers hold views of these weights, so only what was computed from them is old
            for layer in self.layers.values():
                layer.update(version)
            self._bound = key
            return
        self._unbind()
        while len(self.replicas) < len(gradients):
            self.replicas.append(self.replicas[0].copy())
        if spec is not None and weights is not None:
            if spec.rank == 0:
                self._bind_parameters(weights, gradients[0])
            else:
                self._bind_adapter(spec, weights, gradients[0], fold)
                for replica, buffers in zip(self.replicas[1 : len(gradients)], gradients[1:], strict=True):
                    replica.share(self.replicas[0], buffers)
        self._bound, self._weights = key, weights
        self.trained = None if spec is None else replace(spec, seed=0)

    def pack(self) -> None:
        """Pack the layers' active weights for sampling, until others become active. Small models are not packed.

        The packed copy takes as much memory as the weights.
        """
        if self.weights_packed or not self._packs_weights:
            return
        for name, layer in self.layers.items():
            if isinstance(layer, LoRALinear) and self.kinds[name] != "vision":
                layer.pack()
        self.weights_packed = True

    def unpack(self) -> None:
        """Free the packed weights, and compute the next products from the layers' own weights."""
        for layer in self.layers.values():
            if isinstance(layer, LoRALinear):
                layer.packed, layer.sampling = None, False
        self.weights_packed = False
        self.prefixes.clear()

    def hidden(self, batch: PackedBatch) -> torch.Tensor:
        """Return the last layer's hidden states (T, H) of a packed batch, computed by the first replica."""
        return self.replicas[0].hidden(batch)

    def choose_gradient_checkpointing(self, lengths: Sequence[int]) -> None:
        """Decide whether a backward pass over sequences of these lengths, all at once, uses gradient checkpointing."""
        self.gradient_checkpointing.choose(lengths, self.trained)

    def _run_trial(self, length: int) -> torch.Tensor:
        return self.hidden(PackedBatch.of([Input(np.ones(length, np.int64))], self.device))

    def _unbind(self) -> None:
        self._bound = None
        for replica in self.replicas:
            for layer in replica.layers.values():
                layer.adapter = None
        self.unpack()
        if self._base:
            for name, parameter in self.module.named_parameters():
                parameter.requires_grad_(False)
                parameter.grad = None
                parameter.data = self._base[name]
            self._base = {}

    def _folds(self, spec: LoraSpec, step_tokens: int | None) -> bool:
        if self.dtype != torch.float32 or step_tokens is None:
            return self.dtype == torch.float32
        layers = self.trained_layers(spec).values()
        return worth_folding([layer for layer in layers if isinstance(layer, LoRALinear)], step_tokens)

    def _bind_adapter(
        self, spec: LoraSpec, weights: Weights, gradients: Mapping[str, torch.Tensor] | None, fold: bool
    ) -> None:
        for name, layer in self.trained_layers(spec).items():
            a, b = f"{name}.lora_A", f"{name}.lora_B"
            pair = None if gradients is None else (gradients[a], gradients[b])
            how = Fold.NO
            if fold and layer is self.head.layer and self.head.tiled:
                how = Fold.PARTS
            elif fold and self.fits_folded:
                how = Fold.WHOLE
            layer.bind(weights.named[a], weights.named[b], spec.scale, pair, how, weights.version)

    def _bind_parameters(self, weights: Weights, gradients: Mapping[str, torch.Tensor] | None) -> None:
        for name, parameter in self.module.named_parameters():
            self._base[name] = parameter.data
            parameter.data = weights.named[name]
            if gradients is not None:
                parameter.requires_grad_(True)
                parameter.grad = gradients[name]  # autograd accumulates in place


def _end_tokens(module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids of the end-of-sequence tokens.

    They are taken from the generation configuration, else from the model's configuration, else from the tokenizer.
    """
    for owner in (module.generation_config, module.config.get_text_config(), tokenizer):
        ids = getattr(owner, "eos_token_id", None)
        if ids is not None:
            return frozenset(ids if isinstance(ids, list | tuple) else [ids])
    return frozenset()

"""A network whose layers take adapters: what one thread runs passes on.

The replicas of a model share its frozen weights and the folded ones. Each has module objects of its own, because
forward passes leave things on them (a pass's segments, rotary tables): so threads may run them at the same time.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from tinkerloop.local.nn.inputs import PackedBatch
from tinkerloop.local.nn.layers import attention
from tinkerloop.local.nn.layers.decoder_layer import DecoderLayer
from tinkerloop.local.nn.layers.experts import ExpertWeights
from tinkerloop.local.nn.layers.head import Head
from tinkerloop.local.nn.layers.lora import LoRALinear
from tinkerloop.local.nn.vision import vision_parts
from tinkerloop.local.unsupported import unsupported_error

AdaptableLayer = LoRALinear | ExpertWeights


class Replica:
    """One network with its adaptable layers, name -> layer, and their kinds, name -> "attn", "mlp", ..."""

    def __init__(self, module: PreTrainedModel):
        self.module, self.trunk = module, cast(nn.Module, module.base_model)
        self.layers, self.kinds = _adaptable(module)
        output = module.get_output_embeddings()
        if not isinstance(output, LoRALinear):
            names = f"{type(module).__name__}: {type(output).__name__}"
            raise unsupported_error("an output layer that is not linear", names)
        self.head = Head(output, *_logit_transform(module.config.get_text_config()))
        self._active: torch.Tensor | None = None  # (T,), on the CPU
        self._last, self._on_active = _last_layer(module)
        self._weights_everywhere = self._weights_asked = 0
        for name, layer in self.layers.items():
            if self.kinds[name] == "unembed" or name.startswith(self._on_active):
                self._weights_asked += layer.weight.numel()
            elif self.kinds[name] != "vision":
                self._weights_everywhere += layer.weight.numel()
        config = module.config.get_text_config()
        self._weights_a_pair: int = config.num_hidden_layers * config.hidden_size
        if self._last is None:  # a layer of ours sees to it itself
            for block in map(module.get_submodule, self._on_active):
                block.register_forward_pre_hook(self._take_active)
                block.register_forward_hook(self._put_active)

    def work(self, length: int, asking: int) -> float:
        """About how many weights a sequence is multiplied with, if the head and the last layer take `asking` positions.

        Attention is counted as a weight for each pair of positions, layer and unit of a layer's width: fitted to
        times on a CPU.
        """
        return asking * self._weights_asked + length * (self._weights_everywhere + length * self._weights_a_pair)

    def copy(self) -> Replica:
        """Another one on the same weights; nothing may be bound."""
        folded = [layer.fold_buffer for layer in self.layers.values()]
        return copy.deepcopy(self, {id(tensor): tensor for tensor in [*self.module.parameters(), *folded]})

    def share(self, other: Replica, gradients: Mapping[str, torch.Tensor] | None) -> None:
        """Use the adapter that `other` has bound, with gradient buffers of one's own."""
        for name, layer in self.layers.items():
            adapter = other.layers[name].adapter
            if adapter is not None:
                grad_a = None if gradients is None else gradients[f"{name}.lora_A"]
                grad_b = None if gradients is None else gradients[f"{name}.lora_B"]
                layer.adapter = replace(adapter, a=adapter.a.detach().requires_grad_(), grad_a=grad_a, grad_b=grad_b)

    @contextmanager
    def only(self, active: torch.Tensor | None) -> Iterator[None]:
        """For one batch, forward and backward: hidden states are wanted only where `active` (T,) is true (None: all).

        It is on the CPU. The last layer leaves out the others where it can: their states are meaningless.
        """
        self._active = active
        try:
            yield
        finally:
            self._active = None

    def hidden(self, batch: PackedBatch) -> torch.Tensor:
        """The last hidden states (T, H) of a packed batch; with autograd if it is enabled and gradients are bound."""
        some = every = batch.segments
        if self._active is not None:
            some = [int(part.sum()) for part in self._active.split(every)]
        for name, layer in self.layers.items():
            layer.segments = some if name.startswith(self._on_active) else every
        if self._last is not None:
            self._last.active = self._active
        output = self.trunk(
            input_ids=batch.tokens,
            attention_mask=attention.packed_mask(batch.lengths),
            position_ids=batch.positions,
            use_cache=False,
            **batch.image_inputs,
        )
        return output.last_hidden_state[0]

    def _take_active(self, block: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return args if self._active is None else (args[0][:, self._active], *args[1:])  # (1, T, H) -> (1, active, H)

    def _put_active(self, block: nn.Module, args: object, output: Any) -> Any:
        if self._active is None:
            return output
        found, *rest = output if isinstance(output, tuple) else (output,)  # some give their router's scores as well
        spread = found.new_zeros(1, len(self._active), found.shape[-1])
        spread[:, self._active] = found
        return (spread, *rest) if rest else spread


def _adaptable(module: PreTrainedModel) -> tuple[dict[str, AdaptableLayer], dict[str, str]]:
    """Every layer that can carry an adapter, name -> layer and name -> kind, in the model's order.

    Linear layers are replaced by LoRALinear ones that share their weights; stacked experts are found by their shape.
    """
    output, sees = module.get_output_embeddings(), vision_parts(module)
    layers: dict[str, AdaptableLayer] = {}
    kinds: dict[str, str] = {}
    for name, part in list(module.named_modules()):
        if isinstance(part, nn.Linear):
            kind = "unembed" if part is output else "vision" if name.startswith(sees) else _kind(name)
            if kind is None:
                continue
            wrapped = LoRALinear.wrap(part)
            module.set_submodule(name, wrapped)
            layers[name], kinds[name] = wrapped, kind
        elif name.rsplit(".", 1)[-1] == "experts":
            for attribute, parameter in part.named_parameters(recurse=False):
                if parameter.ndim == 3:
                    layers[f"{name}.{attribute}"] = ExpertWeights(part, attribute)
                    kinds[f"{name}.{attribute}"] = "mlp"
    return layers, kinds


def _last_layer(module: PreTrainedModel) -> tuple[DecoderLayer | None, tuple[str, ...]]:
    """The last decoder layer if it is ours, and the names of its parts that need not run on every position.

    Of another layer that is the feed-forward block, where transformers' usual naming tells.
    """
    sees, names = vision_parts(module), [name for name, _ in module.named_modules()]
    blocks = [name for name in names if re.fullmatch(r"(.*\.)?layers\.\d+\.mlp", name) and not name.startswith(sees)]
    if not blocks:
        return None, ()
    name = blocks[-1].removesuffix(".mlp")
    layer = module.get_submodule(name)
    if not isinstance(layer, DecoderLayer):
        return None, (blocks[-1],)
    return layer, tuple(f"{name}.{part}" for part in ("self_attn.q_proj", "self_attn.o_proj", "mlp"))


def _kind(name: str) -> str | None:
    """ "attn" or "mlp" for a linear layer of a decoder block; None for a router's, which is not adapted."""
    leaf = name.rsplit(".", 1)[-1]
    if leaf in ("gate", "router", "shared_expert_gate"):
        return None
    if any(part in name for part in (".mlp.", "expert", "feed_forward", ".ffn.", "block_sparse_moe")):
        return "mlp"
    return "attn"


def _logit_transform(config: Any) -> tuple[float, float | None]:
    """What lies between the output projection and the logits: (factor, tanh cap)."""
    scale = getattr(config, "logit_scale", None)
    divisor = getattr(config, "logits_scaling", None)
    factor = 1.0 if scale is None else float(scale)
    if divisor is not None:
        factor /= float(divisor)
    return factor, getattr(config, "final_logit_softcapping", None)

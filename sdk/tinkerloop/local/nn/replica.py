"""A replica of a model: a copy of its module objects, on which one thread runs forward and backward passes.

All replicas of a model share its frozen and folded weights. They need separate module objects, because a forward pass
stores state on these (sequence lengths, rotary tables). So several threads can run replicas at the same time.
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
from transformers import Cache, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tinkerloop.local.nn.inputs import PackedBatch
from tinkerloop.local.nn.layers import attention
from tinkerloop.local.nn.layers.decoder_layer import DecoderLayer
from tinkerloop.local.nn.layers.experts import ExpertWeights
from tinkerloop.local.nn.layers.head import Head
from tinkerloop.local.nn.layers.lora import LoRAConv1D, LoRALinear
from tinkerloop.local.nn.vision import vision_parts
from tinkerloop.local.unsupported import unsupported_error

AdaptableLayer = LoRALinear | ExpertWeights
ROUTERS = ("gate", "router", "shared_expert_gate")
"""Names of the layers that choose experts. They are not adapted."""


class Replica:
    """A copy of a model's module objects.

    `layers` maps names to the layers that can have an adapter; `kinds` maps the same names to the kinds of these
    layers ("attn", "mlp", "unembed" or "vision").
    """

    def __init__(self, module: PreTrainedModel):
        self.module = module
        # In transformers 4, the base_model of Gemma 3 for text is the whole model with its output layer.
        self.trunk = cast(nn.Module, module.base_model if module.base_model is not module else module.model)
        self.layers, self.kinds = _adaptable(module)
        output = module.get_output_embeddings()
        if not isinstance(output, LoRALinear):
            names = f"{type(module).__name__}: {type(output).__name__}"
            raise unsupported_error("an output layer that is not linear", names)
        self.head = Head(output, *_logit_transform(module.config.get_text_config()))
        self._active: torch.Tensor | None = None  # (T,), on the CPU
        self._last, self._on_active = _last_layer(module)
        self._weights_per_token = self._weights_per_wanted = 0
        for name, layer in self.layers.items():
            if self.kinds[name] == "unembed" or name.startswith(self._on_active):
                self._weights_per_wanted += layer.weight.numel()
            elif self.kinds[name] != "vision":
                self._weights_per_token += layer.weight.numel()
        config = module.config.get_text_config()
        self._weights_per_pair: int = config.num_hidden_layers * config.hidden_size
        if self._last is None:  # DecoderLayer skips positions without hooks
            for block in map(module.get_submodule, self._on_active):
                block.register_forward_pre_hook(self._take_active)
                block.register_forward_hook(self._put_active)

    def work(self, length: int, wanted: int) -> float:
        """Estimate the number of multiplications for a sequence of `length` positions.

        The head and the last layer compute only `wanted` of the positions. Attention counts as
        length^2 * layers * hidden size, which fits times measured on a CPU.
        """
        return wanted * self._weights_per_wanted + length * (self._weights_per_token + length * self._weights_per_pair)

    def copy(self) -> Replica:
        """Return a new replica that shares the weights. No adapter may be attached when this is called."""
        folded = [layer.fold_buffer for layer in self.layers.values()]
        return copy.deepcopy(self, {id(tensor): tensor for tensor in [*self.module.parameters(), *folded]})

    def share(self, other: Replica, gradients: Mapping[str, torch.Tensor] | None) -> None:
        """Attach the adapter of the replica `other`, but with these gradient buffers (None: no gradients)."""
        for name, layer in self.layers.items():
            adapter = other.layers[name].adapter
            if adapter is not None:
                grad_a = None if gradients is None else gradients[f"{name}.lora_A"]
                grad_b = None if gradients is None else gradients[f"{name}.lora_B"]
                layer.adapter = replace(adapter, a=adapter.a.detach().requires_grad_(), grad_a=grad_a, grad_b=grad_b)

    @contextmanager
    def restrict_to(self, active: torch.Tensor | None) -> Iterator[None]:
        """In this context, compute the last layer only at the positions of the batch where `active` is True.

        `active` is a mask (T,) on the CPU; None: all positions. Forward and backward passes skip the other positions
        as far as the layer allows it. The hidden states at those positions are undefined.
        """
        self._active = active
        try:
            yield
        finally:
            self._active = None

    def hidden(
        self, batch: PackedBatch, cache: Cache | None = None, cache_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the last layer's hidden states (T, H) of a packed batch, computed with the active weights.

        For sampling, `cache` stores the keys and values, and `cache_mask` is the attention mask that belongs to it.
        """
        active_segments = segments = batch.segments
        if self._active is not None:
            active_segments = [int(part.sum()) for part in self._active.split(segments)]
        for name, layer in self.layers.items():
            layer.segments = active_segments if name.startswith(self._on_active) else segments
            if isinstance(layer, LoRALinear):
                layer.sampling = cache is not None
        if self._last is not None:
            self._last.active = self._active
        output = self.trunk(
            input_ids=batch.tokens,
            attention_mask=attention.packed_mask(batch.lengths) if cache_mask is None else cache_mask,
            position_ids=batch.positions,
            past_key_values=cache,
            use_cache=cache is not None,
            **batch.image_inputs,
        )
        return output.last_hidden_state[0]

    def _take_active(self, block: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return args if self._active is None else (args[0][:, self._active], *args[1:])  # (1, T, H) -> (1, active, H)

    def _put_active(self, block: nn.Module, args: object, output: Any) -> Any:
        if self._active is None:
            return output
        states, *rest = output if isinstance(output, tuple) else (output,)  # some blocks also return router scores
        spread = states.new_zeros(1, len(self._active), states.shape[-1])
        spread[:, self._active] = states
        return (spread, *rest) if rest else spread


def _adaptable(module: PreTrainedModel) -> tuple[dict[str, AdaptableLayer], dict[str, str]]:
    """Return the layers that can have an adapter by name, and their kinds by name, in the model's order.

    Linear layers are replaced by `LoRALinear` layers that share their weights. In a module named `experts`, every 3-D
    parameter is taken for stacked experts. `uncovered` in coverage.py lists the layers that cannot have an adapter.
    """
    output, vision = module.get_output_embeddings(), vision_parts(module)
    layers: dict[str, AdaptableLayer] = {}
    kinds: dict[str, str] = {}
    for name, part in list(module.named_modules()):
        if isinstance(part, nn.Linear) or (isinstance(part, Conv1D) and part is not output):
            kind = "unembed" if part is output else "vision" if name.startswith(vision) else _kind(name)
            if kind is None:
                continue
            wrapped = LoRALinear.wrap(part) if isinstance(part, nn.Linear) else LoRAConv1D.wrap(part)
            module.set_submodule(name, wrapped)
            layers[name], kinds[name] = wrapped, kind
        elif name.rsplit(".", 1)[-1] == "experts":
            for attribute, parameter in part.named_parameters(recurse=False):
                if parameter.ndim == 3:
                    layers[f"{name}.{attribute}"] = ExpertWeights(part, attribute)
                    kinds[f"{name}.{attribute}"] = "mlp"
    return layers, kinds


def _last_layer(module: PreTrainedModel) -> tuple[DecoderLayer | None, tuple[str, ...]]:
    """Return the last decoder layer if it is a `DecoderLayer`, else None; and its submodules that can skip positions.

    The submodules are given by name. In other layer classes only the feed-forward block can skip positions, and only if
    it has its usual name in transformers, `mlp`.
    """
    vision, names = vision_parts(module), [name for name, _ in module.named_modules()]
    blocks = [
        name for name in names if re.fullmatch(r"(.*\.)?(layers|h)\.\d+\.mlp", name) and not name.startswith(vision)
    ]
    if not blocks:
        return None, ()
    name = blocks[-1].removesuffix(".mlp")
    layer = module.get_submodule(name)
    if not isinstance(layer, DecoderLayer):
        return None, (blocks[-1],)
    return layer, tuple(f"{name}.{part}" for part in ("self_attn.q_proj", "self_attn.o_proj", "mlp"))


def _kind(name: str) -> str | None:
    """Return the kind of a decoder block's linear layer, "attn" or "mlp"; None for a router, which gets no adapter."""
    leaf = name.rsplit(".", 1)[-1]
    if leaf in ROUTERS:
        return None
    if leaf in ("fc1", "fc2") or any(
        part in name for part in (".mlp.", "expert", "feed_forward", ".ffn.", "block_sparse_moe")
    ):
        return "mlp"
    return "attn"


def _logit_transform(config: Any) -> tuple[float, float | None]:
    """Return the factor by which the architecture multiplies logits, and its tanh soft cap (None: no cap)."""
    scale = getattr(config, "logit_scale", None)
    divisor = getattr(config, "logits_scaling", None)
    factor = 1.0 if scale is None else float(scale)
    if divisor is not None:
        factor /= float(divisor)
    return factor, getattr(config, "final_logit_softcapping", None)

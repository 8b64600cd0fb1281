"""The check of a newly loaded model: compare the engine's logits with those of the model's own forward pass."""

from __future__ import annotations

import inspect
import logging
from typing import TYPE_CHECKING

import numpy as np
import torch

from tinkerloop.local.nn.generation import prefill, step
from tinkerloop.local.nn.inputs import Input, PackedBatch, example_input
from tinkerloop.local.nn.layers import attention
from tinkerloop.local.nn.vision import image_tensors
from tinkerloop.local.unsupported import unsupported_error

if TYPE_CHECKING:
    from tinkerloop.local.nn.model import Model

logger = logging.getLogger(__name__)

NEXT = 1
"""The token that the check appends to each sequence to test decoding with a key-value cache."""


@torch.no_grad()
def packs(model: Model) -> bool:
    """Return True if sequences can be packed into one row, False if each must run alone.

    Packed sequences and decoding are compared with the model's own forward pass. Layers with a recurrent state (as in
    Qwen3.5) carry the state from one packed sequence into the next, which gives wrong logits. For such a model, single
    sequences are compared instead. In decoding, the padding of shorter prompts must not change the state.

    Raises:
        NotImplementedError: the logits are wrong also for single sequences, or in decoding.
    """
    inputs = [Input(np.arange(1, n + 1) % model.vocab_size) for n in (3, 5)]
    if model.vision is not None:
        inputs.insert(1, example_input(model.vision))
    longer = [Input(np.append(one.tokens, NEXT), one.images, one.starts) for one in inputs]
    alone, after = _own_logits(model, inputs), [logits[-1:] for logits in _own_logits(model, longer)]
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.1

    def error(hidden: torch.Tensor, expected: list[torch.Tensor]) -> float:
        logits = torch.cat(expected)
        return ((model.head.logits(hidden) - logits).abs().max() / logits.abs().max().clamp(min=1)).item()

    errors = {"for packed sequences": error(model.hidden(PackedBatch.of(inputs, model.device)), alone)}
    can_pack = errors["for packed sequences"] <= tolerance
    if not can_pack:
        apart = torch.cat([model.hidden(PackedBatch.of([one], model.device)) for one in inputs])
        errors = {"for sequences run one by one": error(apart, alone)}
    cache, mask, _ = prefill(model, inputs)
    _, stepped = step(model, cache, mask, [NEXT] * len(inputs), [one.shift for one in inputs])
    errors["in decoding with a cache"] = error(stepped, after)
    architecture = f"{model.name} ({type(model.module).__name__})"
    if not all(value <= tolerance for value in errors.values()):  # `not (... <= ...)`, so that NaN raises too
        measured = " and ".join(f"{value:.2g} {name}" for name, value in errors.items())
        raise unsupported_error(
            "architectures that the engine would run wrongly",
            f"{architecture}: the relative error to the logits of the model's own forward pass is {measured}",
        )
    if not can_pack:
        logger.warning("%s: its sequences cannot be packed into one row, so each runs alone", architecture)
    return can_pack


def _own_logits(model: Model, sequences: list[Input]) -> list[torch.Tensor]:
    """Return the logits (N, vocabulary) of each sequence by the model's own forward pass, with its own positions.

    Attention is computed by the model's own code too ("eager"). So the comparison also finds an argument of attention
    that `attention` ignores. The fused kernels of transformers are no reference: for Gemma 2, some versions of
    transformers leave out the soft cap of the attention scores. The mask is given because without one, transformers
    4.57 takes the repeated positions of an image for the start of another sequence.
    """
    takes_types = "mm_token_type_ids" in inspect.signature(model.trunk.forward).parameters
    model.module.set_attn_implementation("eager")
    logits = []
    for one in sequences:
        ids = torch.from_numpy(one.tokens)[None].to(model.device)
        extra = image_tensors(one.images, model.device)
        if extra and takes_types:
            extra["mm_token_type_ids"] = torch.from_numpy(one.on_image.astype(np.int64))[None].to(model.device)
        output = model.module(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **extra)
        logits.append(output.logits[0].float())
    model.module.set_attn_implementation(attention.NAME)
    return logits

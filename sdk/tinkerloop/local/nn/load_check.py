"""The check of a newly loaded model: compare the engine's logits with those of the model's own forward pass."""

from __future__ import annotations

import inspect
import logging
from typing import TYPE_CHECKING

import numpy as np
import torch

from tinkerloop.local.nn.generation import prefill, step
from tinkerloop.local.nn.inputs import Input, PackedBatch, example_input
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

    Layers with a recurrent state (as in Qwen3.5) carry the state from one packed sequence into the next, which gives
    wrong logits. For such a model, single sequences and decoding are checked as well. In decoding, the padding of
    shorter prompts must not change the state.

    Raises:
        NotImplementedError: the logits are wrong also for single sequences, or in decoding.
    """
    inputs = [Input(np.arange(1, n + 1) % model.vocab_size) for n in (3, 5)]
    if model.vision is not None:
        inputs.insert(1, example_input(model.vision))
    alone = [_own_logits(model, one) for one in inputs]
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.1

    def error(hidden: torch.Tensor, expected: list[torch.Tensor]) -> float:
        logits = torch.cat(expected)
        return ((model.head.logits(hidden) - logits).abs().max() / logits.abs().max().clamp(min=1)).item()

    packed = error(model.hidden(PackedBatch.of(inputs, model.device)), alone)
    if packed <= tolerance:
        return True
    apart = error(torch.cat([model.hidden(PackedBatch.of([one], model.device)) for one in inputs]), alone)
    cache, mask, _ = prefill(model, inputs)
    _, stepped = step(model, cache, mask, [NEXT] * len(inputs), [one.shift for one in inputs])
    longer = [Input(np.append(one.tokens, NEXT), one.images, one.starts) for one in inputs]
    decoded = error(stepped, [_own_logits(model, one)[-1:] for one in longer])
    architecture = f"{model.name} ({type(model.module).__name__})"
    if not (apart <= tolerance and decoded <= tolerance):  # `not (... <= ...)`, so that NaN raises too
        raise unsupported_error(
            "architectures that the engine would run wrongly",
            f"{architecture}: the relative error to the logits of the model's own forward pass is {packed:.2g} for "
            f"packed sequences, {apart:.2g} for sequences run one by one and {decoded:.2g} in decoding with a cache",
        )
    logger.warning("%s: sequences cannot be packed into one row in this architecture, so each runs alone", architecture)
    return False


def _own_logits(model: Model, one: Input) -> torch.Tensor:
    """Return the logits (N, vocabulary) of one sequence by the model's own forward pass, with its own positions."""
    extra = image_tensors(one.images, model.device)
    if extra and "mm_token_type_ids" in inspect.signature(model.trunk.forward).parameters:
        extra["mm_token_type_ids"] = torch.from_numpy(one.on_image.astype(np.int64))[None].to(model.device)
    ids = torch.from_numpy(one.tokens)[None].to(model.device)
    return model.module(input_ids=ids, use_cache=False, **extra).logits[0].float()

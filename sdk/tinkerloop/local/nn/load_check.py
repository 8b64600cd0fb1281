"""The check on loading: the engine's logits of a model are compared with the model's own."""

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
"""The token that the check decodes with a cache."""


@torch.no_grad()
def packs(model: Model) -> bool:
    """Return True if sequences can be packed into one row, False if each must run alone.

    Layers with a recurrent state (as in Qwen3.5) carry it from one sequence of a row into the next. For such a model,
    runs of single sequences and decoding are checked as well: padding of shorter prompts must not change the state.

    Raises:
        NotImplementedError: the logits are wrong for single sequences, too, or in decoding.
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
    if not (apart <= tolerance and decoded <= tolerance):  # `not`, so that NaN is refused too
        raise unsupported_error(
            "architectures that the engine would run wrongly",
            f"{architecture}: logits differ from the model's own by {packed:.2g} (relative) when sequences are packed, "
            f"by {apart:.2g} when they run one by one and by {decoded:.2g} when decoded with a cache",
        )
    logger.warning("%s: sequences cannot be packed in this architecture, so each runs alone", architecture)
    return False


def _own_logits(model: Model, one: Input) -> torch.Tensor:
    """Return the model's own logits (N, vocabulary) of one sequence, with positions that it computes itself."""
    extra = image_tensors(one.images, model.device)
    if extra and "mm_token_type_ids" in inspect.signature(model.trunk.forward).parameters:
        extra["mm_token_type_ids"] = torch.from_numpy(one.on_image.astype(np.int64))[None].to(model.device)
    ids = torch.from_numpy(one.tokens)[None].to(model.device)
    return model.module(input_ids=ids, use_cache=False, **extra).logits[0].float()

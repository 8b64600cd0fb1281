"""The check of a newly loaded model: compare the engine's logits with those of the model's own forward pass."""

from __future__ import annotations

import inspect
import logging
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from tinkerloop.local.nn.generation import prefill, step
from tinkerloop.local.nn.inputs import Input, PackedBatch, example_input
from tinkerloop.local.nn.layers import attention
from tinkerloop.local.nn.vision import image_tensors
from tinkerloop.local.unsupported import unsupported_error

if TYPE_CHECKING:
    from tinkerloop.local.nn.model import Model

logger = logging.getLogger(__name__)


@torch.no_grad()
def packs(model: Model) -> bool:
    """Return True if sequences can be packed into one row, False if each must run alone.

    Packed sequences and decoding are compared with the model's own forward pass. Layers with a recurrent state (as in
    Qwen3.5) carry the state from one packed sequence into the next, which gives wrong logits. For such a model, single
    sequences are compared instead. In decoding, the padding of shorter prompts must not change the state.

    Raises:
        NotImplementedError: the logits are wrong also for single sequences, or in decoding.
    """
    inputs = [Input(_tokens(model, n)) for n in (3, 5)]
    if model.vision is not None:
        inputs.insert(1, example_input(model.vision))
    new = int(_tokens(model, 6)[-1])
    longer = [Input(np.append(one.tokens, new), one.images, one.starts) for one in inputs]
    alone, after = _own_logits(model, inputs), [logits[-1:] for logits in _own_logits(model, longer)]
    tolerance = error_of_rounding(model.dtype)

    def error(hidden: torch.Tensor, expected: list[torch.Tensor]) -> float:
        return logits_error(model.head.logits(hidden), torch.cat(expected), model.dtype)

    errors = {"for packed sequences": error(model.hidden(PackedBatch.of(inputs, model.device)), alone)}
    can_pack = errors["for packed sequences"] <= tolerance
    if not can_pack:
        apart = torch.cat([model.hidden(PackedBatch.of([one], model.device)) for one in inputs])
        errors = {"for sequences run one by one": error(apart, alone)}
    cache, mask, _ = prefill(model, inputs)
    _, stepped = step(model, cache, mask, [new] * len(inputs), [one.shift for one in inputs])
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


def error_of_rounding(dtype: torch.dtype) -> float:
    """Return the largest `logits_error` that rounding explains."""
    return 0.1 if dtype.itemsize == 2 else 1e-3


def logits_error(given: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> float:
    """Return the difference of logits (N, vocabulary) as a part of the largest logit, or of 1.

    It is that of the worst position, but in 16 bits the mean over all positions: there, rounding alone throws
    single positions far off in models with huge activations, such as SmolLM2.
    """
    of_positions = (given.float() - expected).abs().amax(1) / expected.abs().max().clamp(min=1)
    return (of_positions.mean() if dtype.itemsize == 2 else of_positions.max()).item()


def _tokens(model: Model, count: int) -> NDArray[np.int64]:
    """Return up to seven tokens from all over the vocabulary. Its first ids are often untrained control tokens."""
    return np.arange(1, count + 1) * model.vocab_size // 8


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

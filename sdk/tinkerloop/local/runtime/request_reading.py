"""Checking of a request's datums and prompts, and their conversion to arrays. It runs on the caller's thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tinker
import torch
from numpy.typing import NDArray

from tinkerloop.datum_checks import check_positions
from tinkerloop.datum_values import check_chunks
from tinkerloop.errors import DatumError, ImageError
from tinkerloop.local.nn.inputs import Input, read_input
from tinkerloop.local.nn.vision import Vision
from tinkerloop.local.request_errors import user_error


@dataclass(frozen=True)
class DatumArrays:
    """One datum as arrays. `targets` and every loss input in `inputs` have the same shape, (N,) or (N, K)."""

    input: Input
    targets: NDArray[np.int64]
    inputs: dict[str, NDArray[np.float32]]

    def __len__(self) -> int:
        return len(self.input)

    @property
    def predicts_image(self) -> NDArray[np.bool_]:
        """Mask (N,), True where the next position belongs to an image, so that there is no text token to predict."""
        return np.append(self.input.on_image[1:], False)

    def driven(self, name: str) -> NDArray[np.bool_]:
        """Return a mask (N,), True where the loss input `name` is not 0."""
        return np.logical_or.reduce(self.inputs[name].reshape(len(self), -1) != 0, axis=1)

    def until_last(self, name: str) -> DatumArrays:
        """Return this datum without the positions after the last one whose loss input `name` is not 0.

        Attention is causal, so no remaining position depends on the removed ones. At least one position remains. If
        the cut would fall inside an image, the whole image remains.
        """
        driven = np.flatnonzero(self.driven(name))
        end = int(driven[-1]) + 1 if len(driven) else 1
        for start, image in zip(self.input.starts, self.input.images, strict=True):
            if start < end:
                end = max(end, start + image.tokens)
        inputs = {key: values[:end] for key, values in self.inputs.items()}
        return DatumArrays(self.input.until(end), self.targets[:end], inputs)


@dataclass(frozen=True)
class Targets:
    """Targets and loss inputs of a packed batch of T positions.

    K is the largest number of targets per position in the batch. Datums with fewer targets are padded with 0.
    """

    targets: torch.Tensor  # (T, K)
    inputs: dict[str, torch.Tensor]  # each (T, K)

    @classmethod
    def of(cls, examples: Sequence[DatumArrays], device: torch.device) -> Targets:
        width = max(1 if example.targets.ndim == 1 else example.targets.shape[1] for example in examples)

        def stack(arrays: Sequence[NDArray]) -> torch.Tensor:
            columns = [array[:, None] if array.ndim == 1 else array for array in arrays]
            if any(column.shape[1] != width for column in columns):
                columns = [np.pad(c, ((0, 0), (0, width - c.shape[1]))) for c in columns]
            return torch.from_numpy(np.concatenate(columns)).to(device)

        names = examples[0].inputs
        return cls(
            stack([example.targets for example in examples]),
            {name: stack([example.inputs[name] for example in examples]) for name in names},
        )


def read_datum(
    datum: tinker.Datum,
    loss_fn: str,
    vocab_size: int,
    max_length: int,
    index: int = 0,
    vision: Vision | None = None,
) -> DatumArrays:
    """Check a datum against the rules of `loss_fn` and the limits of the model, and return it as arrays.

    Raises:
        tinker.RequestFailedError: (category user) the datum breaks a rule or a limit. The message gives its `index`.
        NotImplementedError: the datum contains chunks that the model does not support.
    """
    if not isinstance(datum, tinker.Datum):
        raise user_error(f"datum {index}: expected a tinker.Datum, got {type(datum).__name__}")
    try:
        check_chunks(datum.model_input.chunks)
        read = read_input(datum.model_input, vision)
        # Allow datums whose weights are all 0: they train nothing, and custom losses start with such weights.
        check_positions(datum, read.tokens, read.is_text, loss_fn, vocab_size, allow_zero_weight=True)
    except NotImplementedError:
        raise
    except (ValueError, OverflowError, RuntimeError) as error:  # RuntimeError: a sparse tensor with wrong indices
        raise user_error(f"datum {index}: {error}") from error
    if len(read) > max_length:
        raise user_error(
            f"datum {index} is too long: {len(read)} tokens exceed the model's context of {max_length}; shorten it"
        )
    # Copy the arrays: a TensorData shares memory with the caller's array, which may change before the request runs.
    arrays = {name: tensor.to_numpy().copy() for name, tensor in datum.loss_fn_inputs.items()}
    example = DatumArrays(read, arrays.pop("target_tokens"), arrays)
    if read.images and np.any(arrays.get("advantages", np.zeros(len(read)))[example.predicts_image]):
        raise user_error(
            f"datum {index}: advantages must be 0 where the next position belongs to an image, "
            "because there is no text token to predict"
        )
    return example


def read_prompt(prompt: tinker.ModelInput, vocab_size: int, max_length: int, vision: Vision | None = None) -> Input:
    """Check a prompt against the limits of the model, and return it as an `Input`.

    Raises:
        tinker.RequestFailedError: (category user) the prompt is empty or too long, or contains an id outside the
            vocabulary or an invalid image.
        NotImplementedError: the prompt contains chunks that the model does not support.
    """
    if not isinstance(prompt, tinker.ModelInput):
        raise user_error(
            f"the prompt must be a tinker.ModelInput, got {type(prompt).__name__}; tinker.ModelInput.from_ints(ids) "
            "creates one from token ids"
        )
    try:
        read = read_input(prompt, vision)
        if len(read):
            check_chunks(prompt.chunks)
    except (DatumError, ImageError, OverflowError) as error:
        raise user_error(f"invalid prompt: {error}") from error
    tokens = read.tokens
    if not len(tokens):
        raise user_error("the prompt is empty; it must contain at least one token")
    wrong = np.flatnonzero((tokens < 0) | (tokens >= vocab_size))
    if len(wrong):
        position = int(wrong[0])
        raise user_error(
            f"invalid prompt: token id {tokens[position]} at position {position} is outside the vocabulary; "
            f"expected ids in [0, {vocab_size})"
        )
    if len(tokens) > max_length:
        raise user_error(
            f"the prompt is too long: {len(tokens)} tokens exceed the model's context of {max_length}; shorten it"
        )
    return read

"""From a script's datums to the model's tensors: the one place that knows both.

Datums are read and checked on the caller's thread (`read_datum`, `read_prompt`), grouped into micro-batches by their
lengths alone, and laid out one after another in a single row (`Batch`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tinker
import torch
from numpy.typing import NDArray

from tinkerloop.datum import check_datum
from tinkerloop.errors import DatumError
from tinkerloop.local.futures import user_error


@dataclass(frozen=True)
class Example:
    """One datum as arrays; every loss input has the shape of `targets`, (N,) or (N, K)."""

    tokens: NDArray[np.int64]  # (N,)
    targets: NDArray[np.int64]
    inputs: dict[str, NDArray[np.float32]]

    def __len__(self) -> int:
        return len(self.tokens)


def read_tokens(model_input: tinker.ModelInput) -> NDArray[np.int64]:
    """The token ids of a text-only input."""
    tokens: list[int] = []
    for chunk in model_input.chunks:
        if not isinstance(chunk, tinker.EncodedTextChunk):
            raise NotImplementedError(f"the embedded engine does not take {type(chunk).__name__} inputs")
        tokens.extend(chunk.tokens)
    return np.array(tokens, dtype=np.int64)


def read_datum(datum: tinker.Datum, loss_fn: str, vocab_size: int, max_length: int, index: int = 0) -> Example:
    """Check a datum against `loss_fn`'s rules and the model's limits, and convert it.

    Raises tinker.RequestFailedError (category user) naming the datum by its `index` in the request.
    """
    try:
        # An all-zero weight is harmless here: it trains nothing, and custom losses rely on it.
        check_datum(datum, loss_fn=loss_fn, vocab_size=vocab_size, allow_zero_weight=True)
    except DatumError as error:
        raise user_error(f"datum {index}: {error}") from error
    tokens = read_tokens(datum.model_input)
    if len(tokens) > max_length:
        raise user_error(f"datum {index}: {len(tokens)} tokens exceed the model's context of {max_length}")
    arrays = {name: tensor.to_numpy() for name, tensor in datum.loss_fn_inputs.items()}
    return Example(tokens, arrays.pop("target_tokens"), arrays)


def read_prompt(prompt: tinker.ModelInput, vocab_size: int, max_length: int) -> NDArray[np.int64]:
    """The tokens of a prompt, checked."""
    tokens = read_tokens(prompt)
    if not len(tokens):
        raise user_error("the prompt is empty: give at least one token")
    wrong = np.flatnonzero((tokens < 0) | (tokens >= vocab_size))
    if len(wrong):
        at = int(wrong[0])
        raise user_error(f"prompt[{at}]: token id {tokens[at]} is not in [0, {vocab_size})")
    if len(tokens) > max_length:
        raise user_error(f"the prompt's {len(tokens)} tokens exceed the model's context of {max_length}")
    return tokens


def micro_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices grouped in order so that each group has at most `budget` tokens, or is a single longer one.

    A function of the lengths alone: memory at hand or other requests never change a result's rounding.
    """
    groups: list[list[int]] = []
    room = 0
    for index, length in enumerate(lengths):
        if not groups or length > room:
            groups.append([])
            room = budget
        groups[-1].append(index)
        room -= length
    return groups


@dataclass(frozen=True)
class Batch:
    """Sequences one after another in one row, T tokens in all."""

    lengths: list[int]
    tokens: torch.Tensor  # (1, T)
    positions: torch.Tensor  # (1, T), starting at 0 in every sequence

    @property
    def segments(self) -> list[int]:
        """The rows to sum a gradient over in one product: each datum's on the CPU, all of them on a GPU.

        Per datum, sums do not depend on how datums are grouped; on a GPU that many small products would be too slow.
        """
        return self.lengths if self.tokens.device.type == "cpu" else [self.tokens.shape[1]]

    @classmethod
    def of(cls, sequences: Sequence[NDArray[np.int64]], device: torch.device) -> Batch:
        lengths = [len(sequence) for sequence in sequences]
        positions = np.concatenate([np.arange(length) for length in lengths])
        return cls(lengths, _row(np.concatenate(sequences), device), _row(positions, device))


def _row(values: NDArray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(values).to(device)[None]


@dataclass(frozen=True)
class Targets:
    """What a batch's positions should predict. Rows of fewer than K targets are filled with target 0, input 0."""

    targets: torch.Tensor  # (T, K)
    inputs: dict[str, torch.Tensor]  # each (T, K)

    @classmethod
    def of(cls, examples: Sequence[Example], device: torch.device) -> Targets:
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

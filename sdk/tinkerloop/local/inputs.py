"""From a script's datums to the model's tensors: the one place that knows both.

Datums are read and checked on the caller's thread (`read_datum`, `read_prompt`), grouped into micro-batches by their
lengths alone, and laid out one after another in a single row (`Batch`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import tinker
import torch
from numpy.typing import NDArray

from tinkerloop.datum import check_datum
from tinkerloop.errors import DatumError, ImageError
from tinkerloop.images import image_chunk
from tinkerloop.local.futures import user_error
from tinkerloop.local.unsupported import unsupported
from tinkerloop.local.vision import Picture, Vision, images_of


@dataclass(frozen=True, eq=False)
class Input:
    """What a model reads: N token ids, and the pictures that some of them stand for."""

    tokens: NDArray[np.int64]  # (N,)
    pictures: tuple[Picture, ...] = ()
    starts: tuple[int, ...] = ()
    """Where each picture's tokens begin."""
    positions: NDArray[np.int64] | None = None
    """(3, N) (see `Vision.positions`), or None: 0 .. N-1."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def on_picture(self) -> NDArray[np.bool_]:
        """(N,) whether a position is a picture's."""
        found = np.zeros(len(self), dtype=bool)
        for start, picture in zip(self.starts, self.pictures, strict=True):
            found[start : start + picture.tokens] = True
        return found

    @property
    def shift(self) -> int:
        """By how much the positions of what follows differ from counting tokens."""
        return 0 if self.positions is None else int(self.positions.max()) + 1 - len(self)

    def until(self, end: int) -> Input:
        """The first `end` tokens, and the pictures among them, which must not be cut."""
        shown = sum(start < end for start in self.starts)
        positions = None if self.positions is None else self.positions[:, :end]
        return Input(self.tokens[:end], self.pictures[:shown], self.starts[:shown], positions)


@dataclass(frozen=True)
class Example:
    """One datum as arrays; every loss input has the shape of `targets`, (N,) or (N, K)."""

    input: Input
    targets: NDArray[np.int64]
    inputs: dict[str, NDArray[np.float32]]

    def __len__(self) -> int:
        return len(self.input)

    @property
    def predicts_picture(self) -> NDArray[np.bool_]:
        """(N,) whether the position before a picture's is all there is to predict: no text."""
        return np.append(self.input.on_picture[1:], False)

    def driven(self, name: str) -> NDArray[np.bool_]:
        """(N,) whether the loss input `name` is anything but 0 at a position."""
        return np.logical_or.reduce(self.inputs[name].reshape(len(self), -1) != 0, axis=1)

    def until_last(self, name: str) -> Example:
        """Without what comes after the last position whose loss input `name` is not 0: nothing before looks there.

        One position is kept in any case, and pictures are kept whole.
        """
        driven = np.flatnonzero(self.driven(name))
        end = int(driven[-1]) + 1 if len(driven) else 1
        for start, picture in zip(self.input.starts, self.input.pictures, strict=True):
            if start < end:
                end = max(end, start + picture.tokens)
        inputs = {key: values[:end] for key, values in self.inputs.items()}
        return Example(self.input.until(end), self.targets[:end], inputs)


def read_input(model_input: tinker.ModelInput, vision: Vision | None = None) -> Input:
    """Chunks as one sequence.

    Raises:
        DatumError, ImageError: an image that is not what its chunk says, or text that spells an image.
        NotImplementedError: chunks that the model has no use for.
    """
    tokens: list[int] = []
    pictures: list[Picture] = []
    starts: list[int] = []
    for chunk in model_input.chunks:
        if isinstance(chunk, tinker.EncodedTextChunk):
            if vision is not None and not vision.reserved.isdisjoint(chunk.tokens):
                raise DatumError("text holds an id that stands for an image: images are chunks", field="model_input")
            tokens.extend(chunk.tokens)
        elif isinstance(chunk, tinker.types.ImageChunk) and vision is not None:
            picture = vision.read(chunk)
            pictures.append(picture)
            starts.append(len(tokens))
            tokens.extend([vision.image_token] * picture.tokens)
        elif isinstance(chunk, tinker.types.ImageChunk):
            raise unsupported("image chunks for a text model", type(chunk).__name__)
        else:
            raise unsupported("image pointer and audio chunks", type(chunk).__name__)
    positions = None if vision is None else vision.positions(starts, pictures, len(tokens))
    return Input(np.array(tokens, dtype=np.int64), tuple(pictures), tuple(starts), positions)


def example_input(vision: Vision) -> Input:
    """A sequence with two pictures of different shapes, to compare a model's own forward pass on."""
    pictures = [image_chunk(np.full((h, w, 3), 90, np.uint8), processor=vision.processor) for h, w in ((9, 8), (8, 16))]
    words = [tinker.EncodedTextChunk(tokens=[t, t + 1]) for t in (1, 3, 5)]
    return read_input(tinker.ModelInput(chunks=[words[0], pictures[0], words[1], pictures[1], words[2]]), vision)


def read_datum(
    datum: tinker.Datum,
    loss_fn: str,
    vocab_size: int,
    max_length: int,
    index: int = 0,
    vision: Vision | None = None,
) -> Example:
    """Check a datum against `loss_fn`'s rules and the model's limits, and convert it.

    Raises tinker.RequestFailedError (category user) naming the datum by its `index` in the request.
    """
    try:
        # An all-zero weight is harmless here: it trains nothing, and custom losses rely on it.
        check_datum(datum, loss_fn=loss_fn, vocab_size=vocab_size, allow_zero_weight=True)
        read = read_input(datum.model_input, vision)
    except NotImplementedError:
        raise
    except (ValueError, OverflowError, RuntimeError) as error:  # also a sparse tensor whose indices are wrong
        raise user_error(f"datum {index}: {error}") from error
    if len(read) > max_length:
        raise user_error(f"datum {index}: {len(read)} tokens exceed the model's context of {max_length}")
    # Copies: a tensor made from an array shares its memory, and the caller may use that again before its turn comes.
    arrays = {name: tensor.to_numpy().copy() for name, tensor in datum.loss_fn_inputs.items()}
    example = Example(read, arrays.pop("target_tokens"), arrays)
    if read.pictures and np.any(arrays.get("advantages", np.zeros(len(read)))[example.predicts_picture]):
        raise user_error(f"datum {index}: advantages must be 0 where the target is a position of an image")
    return example


def read_prompt(prompt: tinker.ModelInput, vocab_size: int, max_length: int, vision: Vision | None = None) -> Input:
    """A prompt, checked."""
    try:
        read = read_input(prompt, vision)
    except (DatumError, ImageError, OverflowError) as error:
        raise user_error(f"the prompt: {error}") from error
    tokens = read.tokens
    if not len(tokens):
        raise user_error("the prompt is empty: give at least one token")
    wrong = np.flatnonzero((tokens < 0) | (tokens >= vocab_size))
    if len(wrong):
        at = int(wrong[0])
        raise user_error(f"prompt[{at}]: token id {tokens[at]} is not in [0, {vocab_size})")
    if len(tokens) > max_length:
        raise user_error(f"the prompt's {len(tokens)} tokens exceed the model's context of {max_length}")
    return read


def micro_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices in groups that have at most `budget` tokens each, or are a single longer one: first fit, longest first.

    A function of the lengths alone: memory at hand or other requests never change a result's rounding.
    """
    groups: list[list[int]] = []
    rooms: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = next((i for i, room in enumerate(rooms) if lengths[index] <= room), len(groups))
        if at == len(groups):
            groups.append([])
            rooms.append(budget)
        groups[at].append(index)
        rooms[at] -= lengths[index]
    return groups


@dataclass(frozen=True)
class Batch:
    """Sequences one after another in one row, T tokens in all."""

    lengths: list[int]
    tokens: torch.Tensor  # (1, T)
    positions: torch.Tensor  # (1, T), starting at 0 in every sequence; (3, 1, T) with spatial ones
    images: dict[str, torch.Tensor] = field(default_factory=dict)
    """What else the forward pass takes: the pictures, in order."""

    @property
    def segments(self) -> list[int]:
        """The rows to sum a gradient over in one product: each datum's on the CPU, all of them on a GPU.

        Per datum, sums do not depend on how datums are grouped; on a GPU that many small products would be too slow.
        """
        return self.lengths if self.tokens.device.type == "cpu" else [self.tokens.shape[1]]

    @classmethod
    def of(cls, sequences: Sequence[Input], device: torch.device) -> Batch:
        """Raises tinker.RequestFailedError (category user) for a picture that cannot be decoded."""
        lengths = [len(sequence) for sequence in sequences]
        pictures = [picture for sequence in sequences for picture in sequence.pictures]
        tokens = torch.from_numpy(np.concatenate([sequence.tokens for sequence in sequences]))[None]
        rows = [np.arange(len(s)) if s.positions is None else s.positions for s in sequences]
        if any(s.positions is not None for s in sequences):
            rows = [np.broadcast_to(row, (3, row.shape[-1])) for row in rows]
        positions = torch.from_numpy(np.concatenate(rows, axis=-1)).unsqueeze(-2)
        return cls(lengths, tokens.to(device), positions.to(device), images_of(pictures, device))


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

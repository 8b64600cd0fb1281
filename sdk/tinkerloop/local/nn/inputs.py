"""The inputs of a model.

`Input` is one sequence of tokens and images. `PackedBatch` holds several sequences, concatenated into one row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import tinker
import torch
from numpy.typing import NDArray

from tinkerloop.datum_values import chunk_ids
from tinkerloop.errors import DatumError
from tinkerloop.images.chunks import image_chunk
from tinkerloop.local.nn.vision import EncodedImage, Vision, image_tensors
from tinkerloop.local.unsupported import unsupported_error


@dataclass(frozen=True, eq=False)
class Input:
    """One input sequence: N token ids and its images. Each image takes a run of positions that hold an image token."""

    tokens: NDArray[np.int64]  # (N,)
    images: tuple[EncodedImage, ...] = ()
    starts: tuple[int, ...] = ()
    """For each image, the index of its first token."""
    positions: NDArray[np.int64] | None = None
    """Rotary positions (3, N) as returned by `Vision.positions`. None: the positions 0 to N - 1."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def on_image(self) -> NDArray[np.bool_]:
        """Mask (N,): True at the positions that belong to an image."""
        on_image = np.zeros(len(self), dtype=bool)
        for start, image in zip(self.starts, self.images, strict=True):
            on_image[start : start + image.tokens] = True
        return on_image

    @property
    def is_text(self) -> NDArray[np.bool_] | None:
        """Mask (N,): True at the positions of text. None if the input has no images."""
        return ~self.on_image if self.images else None

    @property
    def shift(self) -> int:
        """The rotary position of the token that follows the input, minus its index N; 0 if `positions` is None."""
        return 0 if self.positions is None else int(self.positions.max()) + 1 - len(self)

    def until(self, end: int) -> Input:
        """Return the input cut to its first `end` tokens, with their images. `end` must not cut an image."""
        images = sum(start < end for start in self.starts)
        positions = None if self.positions is None else self.positions[:, :end]
        return Input(self.tokens[:end], self.images[:images], self.starts[:images], positions)


def read_input(model_input: tinker.ModelInput, vision: Vision | None = None) -> Input:
    """Join the chunks of a `tinker.ModelInput` into one sequence.

    Args:
        vision: how the model represents images; None for a text model.

    Raises:
        DatumError: text contains an image or video token, or the `expected_tokens` of an image chunk is wrong.
        ImageError: an image chunk holds no image, or an image that the model does not accept.
        NotImplementedError: the model or the engine does not support this type of chunk.
    """
    chunks = model_input.chunks
    if vision is None and len(chunks) == 1 and isinstance(chunks[0], tinker.EncodedTextChunk):
        return Input(chunk_ids(chunks[0], 0).copy())
    tokens: list[int] = []
    images: list[EncodedImage] = []
    starts: list[int] = []
    for index, chunk in enumerate(chunks):
        if isinstance(chunk, tinker.EncodedTextChunk):
            if vision is not None and not vision.reserved.isdisjoint(chunk.tokens):
                raise DatumError(
                    "a text chunk contains the id of an image or video token; pass images as image chunks",
                    field="model_input",
                )
            tokens.extend(chunk_ids(chunk, index).tolist())
        elif isinstance(chunk, tinker.types.ImageChunk) and vision is not None:
            image = vision.read(chunk)
            images.append(image)
            starts.append(len(tokens))
            tokens.extend([vision.image_token] * image.tokens)
        elif isinstance(chunk, tinker.types.ImageChunk):
            raise unsupported_error("image chunks for a text model", type(chunk).__name__)
        else:
            raise unsupported_error("image pointer and audio chunks", type(chunk).__name__)
    positions = None if vision is None else vision.positions(starts, images, len(tokens))
    return Input(np.array(tokens, dtype=np.int64), tuple(images), tuple(starts), positions)


def example_input(vision: Vision) -> Input:
    """Return a sequence with two images of different shapes, with which a model is checked when it is loaded."""
    images = [image_chunk(np.full((h, w, 3), 90, np.uint8), processor=vision.processor) for h, w in ((9, 8), (8, 16))]
    start = [] if vision.start_token is None else [vision.start_token]
    words = [tinker.EncodedTextChunk(tokens=tokens) for tokens in ([1, 2, *start], [3, 4, *start], [5, 6])]
    return read_input(tinker.ModelInput(chunks=[words[0], images[0], words[1], images[1], words[2]]), vision)


@dataclass(frozen=True)
class PackedBatch:
    """Several sequences, concatenated into one row of T tokens."""

    lengths: list[int]
    tokens: torch.Tensor  # (1, T)
    positions: torch.Tensor  # (1, T), starting at 0 in every sequence; (3, 1, T) if an input has `positions`
    image_inputs: dict[str, torch.Tensor] = field(default_factory=dict)
    """The images, as the arguments of a forward pass that `image_tensors` returns. Empty without images."""

    @property
    def segments(self) -> list[int]:
        """How many rows (positions) each matrix product for a weight gradient covers.

        On the CPU there is one product for each datum, so results do not depend on the packing. On a GPU one product
        covers all rows, because many small products would be too slow.
        """
        return self.lengths if self.tokens.device.type == "cpu" else [self.tokens.shape[1]]

    @classmethod
    def of(cls, sequences: Sequence[Input], device: torch.device) -> PackedBatch:
        """Pack sequences into one row, and decode their images.

        Raises:
            ImageError: an image cannot be decoded.
        """
        lengths = [len(sequence) for sequence in sequences]
        images = [image for sequence in sequences for image in sequence.images]
        tokens = torch.from_numpy(np.concatenate([sequence.tokens for sequence in sequences]))[None]
        rows = [np.arange(len(s)) if s.positions is None else s.positions for s in sequences]
        if any(s.positions is not None for s in sequences):
            rows = [np.broadcast_to(row, (3, row.shape[-1])) for row in rows]
        positions = torch.from_numpy(np.concatenate(rows, axis=-1)).unsqueeze(-2)
        return cls(lengths, tokens.to(device), positions.to(device), image_tensors(images, device))

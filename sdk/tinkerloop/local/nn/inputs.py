"""The inputs of a model: one sequence of tokens and images (`Input`), and several in one row (`PackedBatch`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import tinker
import torch
from numpy.typing import NDArray

from tinkerloop.datum import chunk_ids
from tinkerloop.errors import DatumError
from tinkerloop.images.chunks import image_chunk
from tinkerloop.local.nn.vision import EncodedImage, Vision, image_tensors
from tinkerloop.local.unsupported import unsupported_error


@dataclass(frozen=True, eq=False)
class Input:
    """The input of a model: N token ids, and the images that some of them stand for."""

    tokens: NDArray[np.int64]  # (N,)
    images: tuple[EncodedImage, ...] = ()
    starts: tuple[int, ...] = ()
    """The index of each image's first token."""
    positions: NDArray[np.int64] | None = None
    """(3, N) (see `Vision.positions`), or None: 0 .. N-1."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def on_image(self) -> NDArray[np.bool_]:
        """(N,) True at the positions of images."""
        on_image = np.zeros(len(self), dtype=bool)
        for start, image in zip(self.starts, self.images, strict=True):
            on_image[start : start + image.tokens] = True
        return on_image

    @property
    def is_text(self) -> NDArray[np.bool_] | None:
        """(N,) whether a position is text; None if all are."""
        return ~self.on_image if self.images else None

    @property
    def shift(self) -> int:
        """The difference between the next token's position and its index."""
        return 0 if self.positions is None else int(self.positions.max()) + 1 - len(self)

    def until(self, end: int) -> Input:
        """Return the first `end` tokens and their images; `end` must not cut an image."""
        images = sum(start < end for start in self.starts)
        positions = None if self.positions is None else self.positions[:, :end]
        return Input(self.tokens[:end], self.images[:images], self.starts[:images], positions)


def read_input(model_input: tinker.ModelInput, vision: Vision | None = None) -> Input:
    """Join the chunks of a model input into one sequence.

    Raises:
        DatumError, ImageError: an image differs from what its chunk says, or text holds an id that stands for an image.
        NotImplementedError: chunks that the model does not support.
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
                    "text holds a token id that stands for an image: pass images as image chunks", field="model_input"
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
    """Make a sequence with two images of different shapes, for the check on loading."""
    images = [image_chunk(np.full((h, w, 3), 90, np.uint8), processor=vision.processor) for h, w in ((9, 8), (8, 16))]
    words = [tinker.EncodedTextChunk(tokens=[t, t + 1]) for t in (1, 3, 5)]
    return read_input(tinker.ModelInput(chunks=[words[0], images[0], words[1], images[1], words[2]]), vision)


@dataclass(frozen=True)
class PackedBatch:
    """Sequences one after another in one row, T tokens in all."""

    lengths: list[int]
    tokens: torch.Tensor  # (1, T)
    positions: torch.Tensor  # (1, T), starting at 0 in every sequence; (3, 1, T) with spatial ones
    image_inputs: dict[str, torch.Tensor] = field(default_factory=dict)
    """Further arguments of the forward pass: the images, in order."""

    @property
    def segments(self) -> list[int]:
        """The numbers of rows whose gradient is summed in one product: each datum's on the CPU, all rows on a GPU.

        With a product for each datum, results do not depend on the packing; on a GPU so many small products would be
        too slow.
        """
        return self.lengths if self.tokens.device.type == "cpu" else [self.tokens.shape[1]]

    @classmethod
    def of(cls, sequences: Sequence[Input], device: torch.device) -> PackedBatch:
        """Pack sequences, and decode their images.

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

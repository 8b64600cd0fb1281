"""Images for a vision-language model: from a chunk's bytes to patches, grids and positions.

Pixel values equal those of transformers' image processors (for Qwen, the PIL variant), computed with numpy and Pillow
alone. An image is decoded when its packed batch runs, so a queued request holds files, not pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tinker.types import ImageChunk
from torch import nn

from tinkerloop.errors import DatumError, ImageError
from tinkerloop.images.chunks import image_size, open_image
from tinkerloop.images.processors import (
    ImageProcessor,
    KimiImageProcessor,
    QwenImageProcessor,
    get_image_processor,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncodedImage:
    """An image in a sequence: its file, and the grid of patches that the model makes of it."""

    data: bytes
    grid: tuple[int, int, int]  # patches over (time, height, width)
    processor: ImageProcessor

    @property
    def tokens(self) -> int:
        return self.grid[1] * self.grid[2] // self.processor.merge_size**2

    def patches(self) -> NDArray[np.float32]:
        """Decode the image into patches (see `patchify`)."""
        return patchify(open_image(self.data), self.processor)


@dataclass(frozen=True)
class Vision:
    """The rules of one model for images."""

    processor: ImageProcessor
    image_token: int
    """The token id at every position of an image."""
    reserved: frozenset[int]
    """The token ids that the model reads as an image or a video anywhere in a sequence."""
    spatial: bool = True
    """True if an image's positions spread over height and width; else they count tokens, as in text."""

    def read(self, chunk: ImageChunk) -> EncodedImage:
        """Read a chunk and check its number of tokens; only the file's header is parsed.

        Raises:
            DatumError: `expected_tokens` is not the number of tokens the image takes.
            ImageError: it is not an image, or the model cannot take it.
        """
        width, height = image_size(chunk.data)
        image = EncodedImage(chunk.data, self.processor.grid(width, height), self.processor)
        if chunk.expected_tokens != image.tokens:
            raise DatumError(
                f"an image of {width} x {height} pixels takes a different number of tokens in this model: build the "
                "chunk with tinkerloop.image_chunk",
                field="expected_tokens",
                expected=image.tokens,
                given=chunk.expected_tokens,
            )
        return image

    def positions(self, starts: Sequence[int], images: Sequence[EncodedImage], length: int) -> NDArray[np.int64] | None:
        """Compute rotary positions (3, length) over time, height and width, for images that start at `starts`.

        Returns None if positions count tokens: without images, and in a model without `spatial` positions.
        Text has the same position in all three. An image's tokens share one time and spread over height and width;
        the text after it continues from the largest position (Qwen2-VL, arXiv:2409.12191, section 2.1).
        """
        if not images or not self.spatial:
            return None
        positions = np.empty((3, length), np.int64)
        end = position = 0  # the end of the last image, and the next position
        for start, image in zip(starts, images, strict=True):
            positions[:, end:start] = np.arange(position, position + start - end)
            position += start - end
            h, w = (side // self.processor.merge_size for side in image.grid[1:])
            end = start + h * w
            positions[:, start:end] = position + np.stack(
                [np.zeros(h * w, np.int64), *np.indices((h, w)).reshape(2, -1)]
            )
            position += max(h, w)
        positions[:, end:] = np.arange(position, position + length - end)
        return positions


def image_tensors(images: Sequence[EncodedImage], device: torch.device) -> dict[str, torch.Tensor]:
    """Return a forward pass's arguments for these images, in the order of their tokens; empty without images."""
    if not images:
        return {}
    patches = np.concatenate([image.patches() for image in images])
    return {
        "pixel_values": torch.from_numpy(patches).to(device),  # (patches of all, ...)
        "image_grid_thw": torch.tensor([image.grid for image in images], device=device),  # (images, 3)
    }


def vision_of(name: str, module: nn.Module) -> Vision | None:
    """Return the rules of the model `name` for images; None if it takes none, or the engine does not know them."""
    config = cast(Any, module).config
    image_token = getattr(config, "image_token_id", None)
    if image_token is None or not vision_parts(module):
        return None
    try:
        processor = get_image_processor(name)
    except ImageError as error:
        return _text_only(name, str(error))
    kimi = config.model_type.startswith("kimi")
    if not isinstance(processor, KimiImageProcessor if kimi else QwenImageProcessor):
        return _text_only(name, f"{type(processor).__name__} does not belong to model_type={config.model_type!r}")
    tower = config.vision_config
    merge = tower.merge_kernel_size[0] if kimi else tower.spatial_merge_size
    sides = (tower.patch_size, merge, getattr(tower, "temporal_patch_size", 1))
    cut = (processor.patch_size, processor.merge_size, processor.temporal_patch_size)
    if sides != cut:
        return _text_only(
            name, f"its vision tower expects (patch, merge, frames) {sides}, its image processor gives {cut}"
        )
    names = ("image_token_id", "video_token_id")
    reserved = frozenset(getattr(config, n) for n in names if getattr(config, n, None))
    return Vision(processor, image_token, reserved, spatial=not kimi)


def _text_only(name: str, reason: str) -> None:
    logger.warning("%s has a vision tower, but takes text only: %s", name, reason)


def vision_parts(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the submodules between pixels and word embeddings: the vision tower and its projector."""
    leaves = ("visual", "vision_tower", "mm_projector")
    return tuple(name for name, _ in module.named_modules() if name.rsplit(".", 1)[-1] in leaves)


def patchify(image: Image.Image, processor: ImageProcessor) -> NDArray[np.float32]:
    """Resize, pad with black, scale to [0, 1], normalise, and cut into patches, in the model's order and shape.

    Returns: for Qwen (patches, 3 * frames * side * side), ordered by (token row, token column, row and column within
    the token), so that patches which are merged into one token are neighbours; for Kimi (patches, 3, side, side).
    """
    (width, height), padded = processor.resized(*image.size), processor.padded(*image.size)
    image = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    if padded != image.size:
        image = image.crop((0, 0, *padded))  # outside the image it is black
    # float64 until it is scaled, as transformers does
    values = (np.asarray(image).astype(np.float64) * (1 / 255)).astype(np.float32)  # (H, W, 3)
    values = (values - np.array(processor.mean, np.float32)) / np.array(processor.std, np.float32)
    side, merge = processor.patch_size, processor.merge_size
    rows, columns = padded[1] // side, padded[0] // side
    if isinstance(processor, KimiImageProcessor):
        values = values.reshape(rows, side, columns, side, 3).transpose(0, 2, 4, 1, 3)  # (row, column, 3, side, side)
        return values.reshape(rows * columns, 3, side, side)
    values = values.reshape(rows // merge, merge, side, columns // merge, merge, side, 3)
    values = values.transpose(0, 3, 1, 4, 6, 2, 5)  # (token row, token column, row, column, 3, side, side)
    values = values.reshape(rows * columns, 3, 1, side * side)
    return np.repeat(values, processor.temporal_patch_size, axis=2).reshape(rows * columns, -1)

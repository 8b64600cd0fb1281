"""Image inputs of vision-language models: compute patches, grids and positions from the bytes of image chunks.

Pixel values equal those of transformers' image processors (for Qwen, the PIL variant), but only numpy and Pillow are
needed. An image is decoded only when its packed batch is computed, so a queued request holds file contents, not pixels.
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
    """An image in a sequence: the contents of its file, and the grid of patches into which the model divides it."""

    data: bytes
    grid: tuple[int, int, int]  # patches over (time, height, width)
    processor: ImageProcessor

    @property
    def tokens(self) -> int:
        return self.grid[1] * self.grid[2] // self.processor.merge_size**2

    def patches(self) -> NDArray[np.float32]:
        """Decode the image and return its patches, as computed by `patchify`."""
        return patchify(open_image(self.data), self.processor)


@dataclass(frozen=True)
class Vision:
    """How one model represents images: its image processor, its image tokens and its rotary positions."""

    processor: ImageProcessor
    image_token: int
    """The token id at every position of an image."""
    reserved: frozenset[int]
    """The token ids that the model interprets as an image or a video; text must not contain them."""
    spatial: bool = True
    """True if image tokens have positions in height and width; False if their positions count tokens, as in text."""
    start_token: int | None = None
    """The token that chat formats write before each image; None: no such token. transformers 4 finds images by it."""

    def read(self, chunk: ImageChunk) -> EncodedImage:
        """Return the image of a chunk after checking its number of tokens. Only the file's header is parsed.

        Raises:
            DatumError: the chunk's `expected_tokens` is not the number of tokens that the image takes.
            ImageError: the chunk holds no image, or one that the model does not accept.
        """
        width, height = image_size(chunk.data)
        image = EncodedImage(chunk.data, self.processor.grid(width, height), self.processor)
        if chunk.expected_tokens != image.tokens:
            raise DatumError(
                f"wrong number of tokens for an image of {width} x {height} pixels in this model; create the chunk "
                "with tinkerloop.image_chunk",
                field="expected_tokens",
                expected=image.tokens,
                given=chunk.expected_tokens,
            )
        return image

    def positions(self, starts: Sequence[int], images: Sequence[EncodedImage], length: int) -> NDArray[np.int64] | None:
        """Return the rotary positions (3, length) of a sequence, in time, height and width.

        A text token has the same position in all three. The tokens of an image share one position in time, and are
        numbered by row in height and by column in width. The text after an image continues from the largest position
        (Qwen2-VL, arXiv:2409.12191, section 2.1).

        Args:
            starts: for each image, the index of its first token.
            length: the number of tokens in the sequence.

        Returns: the positions; None if they simply count tokens, because there are no images or `spatial` is False.
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
    """Return the arguments of a forward pass for these images (in the order of their tokens). Empty without images."""
    if not images:
        return {}
    patches = np.concatenate([image.patches() for image in images])
    return {
        "pixel_values": torch.from_numpy(patches).to(device),  # (patches of all, ...)
        "image_grid_thw": torch.tensor([image.grid for image in images], device=device),  # (images, 3)
    }


def vision_of(name: str, module: nn.Module) -> Vision | None:
    """Return how the model `name` represents images; None if it has no vision tower, or one that is not supported.

    In the latter case a warning gives the reason.
    """
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
        return _text_only(name, f"its {type(processor).__name__} is not for model_type={config.model_type!r}")
    tower = config.vision_config
    merge = tower.merge_kernel_size[0] if kimi else tower.spatial_merge_size
    sides = (tower.patch_size, merge, getattr(tower, "temporal_patch_size", 1))
    cut = (processor.patch_size, processor.merge_size, processor.temporal_patch_size)
    if sides != cut:
        return _text_only(
            name, f"its vision tower expects (patch, merge, frames) {sides}, but its image processor is set to {cut}"
        )
    names = ("image_token_id", "video_token_id")
    reserved = frozenset(getattr(config, n) for n in names if getattr(config, n, None))
    start_token = getattr(config, "vision_start_token_id", None)
    return Vision(processor, image_token, reserved, spatial=not kimi, start_token=start_token)


def _text_only(name: str, reason: str) -> None:
    logger.warning("%s has a vision tower, but the engine accepts only text for it: %s", name, reason)


def vision_parts(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the submodules that turn pixels into embeddings: the vision tower and its projector."""
    leaves = ("visual", "vision_tower", "mm_projector")
    return tuple(name for name, _ in module.named_modules() if name.rsplit(".", 1)[-1] in leaves)


def patchify(image: Image.Image, processor: ImageProcessor) -> NDArray[np.float32]:
    """Return the patches of an image in the order and shape that the model expects.

    The image is resized, padded with black, scaled to [0, 1], normalised and cut into patches.

    Returns: for Qwen (patches, 3 * frames * side * side), ordered by token row, token column, then row and column
    within the token, so that the patches of one token are neighbours. For Kimi (patches, 3, side, side), ordered by
    row and column.
    """
    (width, height), padded = processor.resized(*image.size), processor.padded(*image.size)
    image = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    if padded != image.size:
        image = image.crop((0, 0, *padded))  # the area outside the image becomes black
    # scaled in float64, as in transformers
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

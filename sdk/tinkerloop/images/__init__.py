"""Images as chunks of a model input: opened from many sources, checked, and counted in tokens for each model."""

from tinkerloop.images.chunks import MAX_BYTES, MAX_PIXELS, image_chunk, image_size, open_image
from tinkerloop.images.processors import (
    ImageProcessor,
    KimiImageProcessor,
    QwenImageProcessor,
    as_image_processor,
    get_image_processor,
)

__all__ = [
    "MAX_BYTES",
    "MAX_PIXELS",
    "ImageProcessor",
    "KimiImageProcessor",
    "QwenImageProcessor",
    "as_image_processor",
    "get_image_processor",
    "image_chunk",
    "image_size",
    "open_image",
]

"""Images: checked chunks from any source, and the number of tokens that each model makes of an image."""

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

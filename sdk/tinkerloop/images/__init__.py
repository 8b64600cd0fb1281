"""Images: any kind of image as a checked chunk, and the number of tokens that each processor makes of it."""

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

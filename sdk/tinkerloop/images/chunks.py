"""Images as chunks of a model input: opened, checked, converted if necessary, and counted in tokens.

`image_chunk` returns a `tinker.types.ImageChunk` for any image. A PNG or JPEG file that needs no conversion is passed
through byte for byte: it is checked (complete, with data for every pixel), but not decoded. All other images are
converted, as the docstring of `image_chunk` describes.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote_to_bytes

import numpy as np
from PIL import Image, ImageFile, ImageOps

from tinkerloop._lazy import tinker
from tinkerloop.errors import ImageError
from tinkerloop.images.completeness import check_complete
from tinkerloop.images.processors import ImageProcessor, as_image_processor, get_image_processor
from tinkerloop.images.writing import PNG_SIGNATURE, QUALITIES, jpeg, png, write_within

if TYPE_CHECKING:
    from tinker.types import ImageChunk

__all__ = ["ImageProcessor", "get_image_processor", "image_chunk", "image_size", "open_image"]

MAX_BYTES = 2_000_000
"""Largest size of an image file in bytes; the hosted service rejects larger files."""
MAX_PIXELS = 89_478_485
"""Largest number of pixels of an image. It is Pillow's threshold for warnings about decompression bombs."""

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""File formats that Pillow may open here. None of them makes Pillow run other programs or open other files."""
_ORIENTATION = 0x0112

Fetch = Callable[[str], bytes]


def image_chunk(
    image: Any,
    *,
    model: str | None = None,
    processor: Any = None,
    fetch: Fetch | None = None,
    jpeg_quality: int | None = None,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
) -> ImageChunk:
    """Return an image as a chunk of a model input. Its `expected_tokens` is the number of tokens the model uses for it.

    PNG and JPEG files with 8-bit gray or RGB pixels pass through unchanged. Other images are converted:

    * Transparent images (RGBA, LA, transparent palette entries or colours) are blended over white.
    * Palettes, CMYK and other colour spaces become RGB. 16-bit samples keep their 8 highest bits.
    * A rotation in the EXIF data is applied. Only the first frame of an animation is used.
    * Converted images from a JPEG file are written as JPEG of quality 95. All others (other file formats, arrays, PIL
      images) are written as PNG, without loss. With `jpeg_quality`, all converted images are written as JPEG.
    * A file above `max_bytes` is written again at the size to which the model's image processor scales the image, if
      that is smaller. If it is still too large, it is written as JPEG of quality 95, 85 or 75.

    Args:
        image: a path, the bytes of a file, a `data:` URI, a PIL image, an array, a dict with "bytes" or "path" (as in
            Hugging Face datasets), or an image chunk, whose image is handled like the bytes of a file. An array has
            shape (H, W), (H, W, 3) or (H, W, 4) and dtype uint8, uint16, bool or float with values in [0, 1]. A URL is
            only accepted with `fetch`.
        model: name of the model, from which the image processor is found.
        processor: image processor to use instead of `model`: an `ImageProcessor`, or an image processor of
            transformers for Qwen-VL or Kimi.
        fetch: function that returns the bytes of a URL. Without it nothing is fetched, so that data cannot cause
            network access.
        jpeg_quality: quality, 1 to 100, with which all converted images are written as JPEG. Colour has half the
            resolution. JPEG loses details, but is several times faster than PNG, and several times smaller for
            photographs.
        max_bytes: largest size of the chunk's file in bytes.
        max_pixels: largest width x height to open. Larger images are rejected as possible decompression bombs.

    Raises:
        ImageError: the input is not an image, is truncated, empty or too large, or has an extreme aspect ratio.
    """
    if processor is None and model is None:
        raise ImageError(
            "neither model= nor processor= was given; pass one of them, because the number of tokens depends on it"
        )
    if jpeg_quality is not None and not 1 <= jpeg_quality <= 100:
        raise ImageError(f"jpeg_quality must be an integer from 1 to 100, got {jpeg_quality}")
    rule = as_image_processor(processor) if processor is not None else get_image_processor(str(model))
    given = image if isinstance(image, tinker.types.ImageChunk) else None
    source = _read(given.data if given is not None else image, fetch)

    pil_image = _open(source) if isinstance(source, bytes) else source
    _check_pixels(pil_image.size, max_pixels)
    if isinstance(source, bytes) and len(source) <= max_bytes and _passes(pil_image, source):
        check_complete(source)
        data, size = source, pil_image.size
    else:
        if jpeg_quality is not None:
            write = partial(jpeg, quality=jpeg_quality, subsampling=2)
        elif pil_image.format in ("JPEG", "MPO"):
            write = partial(jpeg, quality=QUALITIES[0])
        else:
            write = png
        data, size = write_within(_to_rgb(pil_image), write, rule, max_bytes)
    tokens = rule.tokens(*size)
    if given is not None and given.expected_tokens not in (None, tokens):
        raise ImageError(
            f"the image chunk has expected_tokens={given.expected_tokens}, but with this model an image of "
            f"{size[0]} x {size[1]} pixels takes {tokens} tokens; set expected_tokens to {tokens} or None"
        )
    kind: Literal["png", "jpeg"] = "png" if data.startswith(PNG_SIGNATURE) else "jpeg"
    return tinker.types.ImageChunk(data=data, format=kind, expected_tokens=tokens)


def open_image(image: Any, *, fetch: Fetch | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open an image from any source that `image_chunk` accepts. Return it as an 8-bit gray or RGB PIL image.

    Transparency, rotation, colour spaces and animations are converted as by `image_chunk`.

    Raises:
        ImageError: the input is not an image, or is truncated, empty or too large.
    """
    source = _read(image.data if isinstance(image, tinker.types.ImageChunk) else image, fetch)
    pil_image = _open(source) if isinstance(source, bytes) else source
    _check_pixels(pil_image.size, max_pixels)
    return _to_rgb(pil_image)


def image_size(data: bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Return the (width, height) of an image file after its EXIF rotation. Only the header is read.

    Raises:
        ImageError: `data` is not an image file, or the image is empty or has more than `max_pixels` pixels.
    """
    pil_image = _open(data)
    width, height = pil_image.size
    _check_pixels((width, height), max_pixels)
    return (height, width) if _orientation(pil_image) >= 5 else (width, height)


def image_content(pil_image: Image.Image) -> bytes:
    """Return bytes that are equal for equal PIL images, in every process, and different for others.

    They are those of the file, if the image was opened from one and not changed. Otherwise they are all of the image
    that `image_chunk` uses.
    """
    if file := _file_behind(pil_image):
        return file
    shown = pil_image.mode, pil_image.size, pil_image.info.get("transparency"), _orientation(pil_image)
    palette = b"" if pil_image.palette is None else pil_image.palette.tobytes()
    return repr(shown).encode() + palette + pil_image.tobytes()


# ---- sources


def _read(image: Any, fetch: Fetch | None) -> bytes | Image.Image:
    """Return the bytes of the image file. For pixels that do not come from a file, return a PIL image."""
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image)
    if isinstance(image, str):
        return _read_string(image, fetch)
    if isinstance(image, os.PathLike):
        return _read_file(os.fspath(image))
    if isinstance(image, Image.Image):
        return _file_behind(image) or image
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if isinstance(image, Mapping) and (image.get("bytes") is not None or image.get("path") is not None):
        return _read(image["bytes"] if image.get("bytes") is not None else image["path"], fetch)
    raise ImageError(
        "unknown kind of image: expected a path, bytes, a data URI, a PIL image, a numpy array, or a dict with "
        f'"bytes" or "path"; got {type(image).__name__}'
    )


def is_path(text: str) -> bool:
    """Return whether a string is read as the path of an image, and not as a data URI or a URL."""
    return _scheme(text) != "data" and not _is_url(text)


def _scheme(text: str) -> str:
    return text.split(":", 1)[0].lower() if ":" in text[:16] else ""


def _is_url(text: str) -> bool:
    return "://" in text[:16] or _scheme(text) in ("http", "https", "file", "ftp")


def _read_string(text: str, fetch: Fetch | None) -> bytes:
    if _scheme(text) == "data":
        return _read_data_uri(text)
    if _is_url(text):
        if fetch is None:
            raise ImageError(
                f"the image {text[:80]!r} is a URL, which is not fetched by default; pass the file's path or bytes, "
                "or pass fetch=, a function that returns the bytes of a URL"
            )
        return fetch(text)
    return _read_file(text)


def _read_data_uri(uri: str) -> bytes:
    head, comma, body = uri.partition(",")
    if not comma:
        raise ImageError(f"invalid data URI {uri[:40]!r}: expected a comma before the data")
    if not head.endswith(";base64"):
        return unquote_to_bytes(body)
    try:
        return base64.b64decode(body, validate=True)
    except ValueError as error:  # binascii.Error is a ValueError
        raise ImageError(f"the data URI {uri[:40]!r}... is not valid base64: {error}") from error


def _read_file(path: str) -> bytes:
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # a device or a named pipe may never end
            raise ImageError(f"cannot read the image {path[:200]!r}: not a regular file")
        return Path(path).read_bytes()
    except ImageError:
        raise
    except (OSError, ValueError) as error:
        raise ImageError(f"cannot read the image {path[:200]!r}: {error}") from error


def _file_behind(pil_image: Image.Image) -> bytes | None:
    """Return the file from which a PIL image was opened, if the image was not changed. Otherwise return None.

    With the file, the image need not be encoded again.
    """
    if not isinstance(pil_image, ImageFile.ImageFile) or not pil_image.tile or pil_image.fp is None:
        return None
    if pil_image.format not in ("PNG", "JPEG", "MPO") or getattr(pil_image, "decoderconfig", ()) not in ((), None):
        return None  # a JPEG that `Image.draft` reads at a smaller size
    position = pil_image.fp.tell()
    try:
        pil_image.fp.seek(0)
        return pil_image.fp.read()
    finally:
        pil_image.fp.seek(position)


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise ImageError(f"expected an array of shape (H, W), (H, W, 3) or (H, W, 4), got shape {array.shape}")
    if array.size == 0:
        raise ImageError(f"the image is empty: got an array of shape {array.shape}, but every side must be at least 1")
    if array.dtype.kind == "f":
        if not (array.min() >= 0 and array.max() <= 1):  # true for NaN too
            raise ImageError(
                f"the values of a float image must be in [0, 1], got values from {array.min():g} to {array.max():g}"
            )
        array = np.rint(array * 255).astype(np.uint8)
    elif array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype == np.uint16:
        array = (array >> 8).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ImageError(
            "an image array must have dtype uint8, uint16, bool or float (values in [0, 1]), "
            f"got dtype {array.dtype}; convert it"
        )
    return Image.fromarray(np.ascontiguousarray(array))


# ---- opening and checking


def _open(data: bytes) -> Image.Image:
    """Return the image as an unloaded PIL image: only the header is parsed.

    Raises:
        ImageError: `data` is empty, too large, or not a file in one of `_FORMATS`.
    """
    if not data:
        raise ImageError("the image file is empty: it has 0 bytes")
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError(f"the image is too large to open: {error}") from error
    except Exception as error:  # for damaged files Pillow raises exceptions of many types
        raise ImageError(
            f"not an image that can be opened; expected a file in one of the formats {', '.join(_FORMATS)}: {error}"
        ) from error


def _check_pixels(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"the image is empty: its size is {width} x {height} pixels")
    if width * height > max_pixels:
        raise ImageError(
            f"the image has {width} x {height} pixels, more than max_pixels={max_pixels}; "
            "scale it down or pass a larger max_pixels"
        )


def _passes(pil_image: Image.Image, data: bytes) -> bool:
    """Return True if a PNG or JPEG file needs no conversion.

    It must have 8-bit gray or RGB pixels, no rotation, no transparency and, for PNG, a single frame. All programs read
    such files in the same way.
    """
    if pil_image.format not in ("PNG", "JPEG", "MPO") or pil_image.mode not in ("L", "RGB"):
        return False
    if pil_image.format == "PNG" and (data[24] > 8 or getattr(pil_image, "is_animated", False)):
        return False
    return "transparency" not in pil_image.info and _orientation(pil_image) == 1


def _orientation(pil_image: Image.Image) -> int:
    if not ({"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"} & pil_image.info.keys()):
        return 1
    try:
        return pil_image.getexif().get(_ORIENTATION, 1)
    except Exception as error:  # for damaged EXIF data Pillow raises exceptions of many types
        raise ImageError(f"cannot read the EXIF data of the image: {error}") from error


# ---- converting


def _to_rgb(pil_image: Image.Image) -> Image.Image:
    """Return the decoded image as 8-bit gray or RGB.

    The EXIF rotation is applied, transparency is blended over white, and only the first frame is used.
    """
    try:
        if getattr(pil_image, "is_animated", False) and pil_image.tell() != 0:
            pil_image.seek(0)
        pil_image.load()
        if _orientation(pil_image) != 1:
            pil_image = ImageOps.exif_transpose(pil_image)
        return _eight_bit(pil_image)
    except ImageError:
        raise
    except Exception as error:  # for damaged files Pillow raises exceptions of many types
        raise ImageError(f"cannot decode the image: the file is truncated or damaged: {error}") from error


def _eight_bit(pil_image: Image.Image) -> Image.Image:
    if pil_image.has_transparency_data:
        rgba = pil_image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    if pil_image.mode in ("L", "RGB"):
        return pil_image
    if pil_image.mode.startswith("I"):
        return _from_wide(pil_image)
    if pil_image.mode == "F":
        raise ImageError(
            "a PIL image of floats (mode F) is not supported, because its value range is not defined; "
            "scale the values to [0, 1] and pass them as an array"
        )
    return pil_image.convert("L" if pil_image.mode == "1" else "RGB")


def _from_wide(pil_image: Image.Image) -> Image.Image:
    """Convert a 16-bit gray image to 8 bits by keeping the high byte. Pillow's own conversion clips values at 255."""
    values = np.asarray(pil_image)
    if values.min() < 0 or values.max() > 65535:
        raise ImageError(
            f"the samples of a gray image must be from 0 to 65535, got values from {values.min()} to {values.max()}"
        )
    return Image.fromarray((values.astype(np.uint16) >> 8).astype(np.uint8))

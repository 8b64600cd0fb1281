"""Images as chunks of a model input: opened, checked, converted if necessary, and counted in tokens.

`image_chunk` makes a `tinker.types.ImageChunk` from any image. A PNG or JPEG file that every program reads in the same
way is passed through byte for byte, and only its header is parsed. Everything else is converted, as described there.
"""

from __future__ import annotations

import base64
import io
import os
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote_to_bytes

import numpy as np
from PIL import Image, ImageFile, ImageOps

from tinkerloop._lazy import tinker
from tinkerloop.errors import ImageError
from tinkerloop.images.processors import ImageProcessor, as_image_processor, get_image_processor
from tinkerloop.images.writing import PNG_SIGNATURE, QUALITIES, jpeg, png, write_within

if TYPE_CHECKING:
    from tinker.types import ImageChunk

__all__ = ["ImageProcessor", "get_image_processor", "image_chunk", "image_size", "open_image"]

MAX_BYTES = 2_000_000
"""The hosted service refuses larger image files."""
MAX_PIXELS = 89_478_485
"""Pillow's own threshold for a decompression bomb."""

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""The formats that are opened. None of them runs other programs or follows references."""
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
    """Make an image a chunk of a model input, with the number of tokens that the model will make of it.

    PNG and JPEG files of 8-bit gray or RGB pass through unchanged. The rest is converted:

    * transparency (RGBA, LA, a palette's or a colour's) is laid over white;
    * palettes, CMYK and other colour spaces become RGB; 16-bit samples keep their 8 highest bits;
    * a rotation in the EXIF data is applied; of an animation the first frame is taken;
    * other file formats, arrays and PIL images are written as PNG, without loss; images from a JPEG file as JPEG
      of quality 95; with `jpeg_quality` all of them as JPEG;
    * an image above `max_bytes` is scaled to the size the model sees, if that is smaller, and as a last resort
      written as JPEG of quality 95, 85 or 75.

    Args:
        image: a path, the bytes of a file, a `data:` URI, a PIL image, an array (uint8 (H, W), (H, W, 3), (H, W, 4);
            bool; uint16; floats in [0, 1]), a dictionary with "bytes" or "path" as HF datasets has it, or an image
            chunk, which is checked and returned unchanged. A URL only with `fetch`.
        model: the model's name, to find its image processor.
        processor: the image processor, instead of `model`: one of ours, or a transformers one of a known kind.
        fetch: returns the bytes of a URL. Without it nothing is fetched, so that data cannot cause network access.
        jpeg_quality: 1 to 100. Write converted images as JPEG of this quality, with colour at half the resolution: with
            loss, but several times faster than PNG, and several times smaller for photographs.
        max_bytes: the largest file to send.
        max_pixels: the largest width x height to open; more is refused as a decompression bomb.

    Raises:
        ImageError: not an image, truncated, empty, too large, or with an extreme aspect ratio.
    """
    if processor is None and model is None:
        raise ImageError("give model= or processor=: the number of tokens depends on the model")
    if jpeg_quality is not None and not 1 <= jpeg_quality <= 100:
        raise ImageError(f"expected a jpeg_quality of 1 to 100, got {jpeg_quality}")
    rule = as_image_processor(processor) if processor is not None else get_image_processor(str(model))
    given = image if isinstance(image, tinker.types.ImageChunk) else None
    source = _read(given.data if given is not None else image, fetch)

    pil_image = _open(source) if isinstance(source, bytes) else source
    _check_pixels(pil_image.size, max_pixels)
    if isinstance(source, bytes) and len(source) <= max_bytes and _passes(pil_image, source):
        _check_complete(source)
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
            f"the image chunk says {given.expected_tokens} tokens, but {size[0]} x {size[1]} pixels make {tokens}"
        )
    kind: Literal["png", "jpeg"] = "png" if data.startswith(PNG_SIGNATURE) else "jpeg"
    return tinker.types.ImageChunk(data=data, format=kind, expected_tokens=tokens)


def open_image(image: Any, *, fetch: Fetch | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open any source of `image_chunk` as an 8-bit gray or RGB PIL image, converted in the same way.

    Raises:
        ImageError: for the same reasons as `image_chunk`.
    """
    source = _read(image.data if isinstance(image, tinker.types.ImageChunk) else image, fetch)
    pil_image = _open(source) if isinstance(source, bytes) else source
    _check_pixels(pil_image.size, max_pixels)
    return _to_rgb(pil_image)


def image_size(data: bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Return (width, height) of an image file, upright, from its header.

    Raises:
        ImageError: not an image, an empty one, or one of more than `max_pixels`.
    """
    pil_image = _open(data)
    width, height = pil_image.size
    _check_pixels((width, height), max_pixels)
    return (height, width) if _orientation(pil_image) >= 5 else (width, height)


# ---- sources


def _read(image: Any, fetch: Fetch | None) -> bytes | Image.Image:
    """Return the bytes of a file, or a PIL image of pixels that are not from a file."""
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
    raise ImageError(f"expected a path, bytes, a data URI, a PIL image or a numpy array, got {type(image).__name__}")


def _read_string(text: str, fetch: Fetch | None) -> bytes:
    scheme = text.split(":", 1)[0].lower() if ":" in text[:16] else ""
    if scheme == "data":
        return _read_data_uri(text)
    if "://" in text[:16] or scheme in ("http", "https", "file", "ftp"):
        if fetch is None:
            raise ImageError(
                f"{text[:80]!r} is a URL, which is not fetched by default: pass the file's path or bytes, or "
                "fetch=, a function from URL to bytes"
            )
        return fetch(text)
    return _read_file(text)


def _read_data_uri(uri: str) -> bytes:
    head, comma, body = uri.partition(",")
    if not comma:
        raise ImageError(f"a data URI needs a comma before its data: {uri[:40]!r}")
    if not head.endswith(";base64"):
        return unquote_to_bytes(body)
    try:
        return base64.b64decode(body, validate=True)
    except ValueError as error:  # binascii.Error is one
        raise ImageError(f"the data URI {uri[:40]!r}... is not valid base64: {error}") from error


def _read_file(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise ImageError(f"cannot read the image {path[:200]!r}: {error}") from error


def _file_behind(pil_image: Image.Image) -> bytes | None:
    """Return the file of a PIL image that was opened and not changed since, so that it need not be encoded again."""
    if not isinstance(pil_image, ImageFile.ImageFile) or not pil_image.tile or pil_image.fp is None:
        return None
    if pil_image.format not in ("PNG", "JPEG", "MPO") or getattr(pil_image, "decoderconfig", ()) not in ((), None):
        return None  # a JPEG that is being drafted at a smaller size
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
        raise ImageError(f"expected an array of shape (H, W), (H, W, 3) or (H, W, 4), got {array.shape}")
    if array.size == 0:
        raise ImageError(f"an array of shape {array.shape} is an empty image")
    if array.dtype.kind == "f":
        if not (array.min() >= 0 and array.max() <= 1):  # also refuses NaN
            raise ImageError(f"float images must lie in [0, 1], got values from {array.min():g} to {array.max():g}")
        array = np.rint(array * 255).astype(np.uint8)
    elif array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype == np.uint16:
        array = (array >> 8).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ImageError(f"expected an array of uint8, uint16, bool or floats in [0, 1], got {array.dtype}")
    return Image.fromarray(np.ascontiguousarray(array))


# ---- opening and checking


def _open(data: bytes) -> Image.Image:
    """Parse the header only."""
    if not data:
        raise ImageError("the image file is empty")
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError(f"the image is too large to open: {error}") from error
    except Exception as error:  # decoders of broken files raise errors of every kind
        raise ImageError(f"not an image that can be opened ({', '.join(_FORMATS)}): {error}") from error


def _check_pixels(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"an image of {width} x {height} pixels is empty")
    if width * height > max_pixels:
        raise ImageError(f"an image of {width} x {height} pixels is above max_pixels={max_pixels}")


def _passes(pil_image: Image.Image, data: bytes) -> bool:
    """Return True for files that every program reads alike: 8-bit gray or RGB, upright, opaque, one frame."""
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
    except Exception as error:  # EXIF data is a format of its own, and its parser raises errors of every kind
        raise ImageError(f"the image's EXIF data cannot be read: {error}") from error


def _check_complete(data: bytes) -> None:
    """Raise if a PNG or JPEG file ends early or (PNG) holds a damaged chunk."""
    if data.startswith(PNG_SIGNATURE):
        position = len(PNG_SIGNATURE)
        while position + 12 <= len(data):
            end = position + 12 + int.from_bytes(data[position : position + 4], "big")
            if end > len(data):
                break
            if zlib.crc32(data[position + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
                raise ImageError(f"the PNG file is damaged: wrong checksum in the chunk at byte {position}")
            if data[position + 4 : position + 8] == b"IEND":
                return
            position = end
        raise ImageError(f"the PNG file is truncated: {len(data)} bytes without its end")
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF and data[position + 1] != 0xDA:  # until the first scan
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        position += 1 if data[position + 1] == 0xFF else 2 + length
    if data.find(b"\xff\xd9", position) < 0:
        raise ImageError(f"the JPEG file is truncated: {len(data)} bytes without its end")


# ---- converting


def _to_rgb(pil_image: Image.Image) -> Image.Image:
    """Decode: upright, first frame, 8-bit gray or RGB, transparency over white."""
    try:
        if getattr(pil_image, "is_animated", False) and pil_image.tell() != 0:
            pil_image.seek(0)
        pil_image.load()
        if _orientation(pil_image) != 1:
            pil_image = ImageOps.exif_transpose(pil_image)
        return _eight_bit(pil_image)
    except ImageError:
        raise
    except Exception as error:  # decoders of broken files raise errors of every kind
        raise ImageError(f"the image file is truncated or damaged: {error}") from error


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
        raise ImageError("an image of floats has no defined range: scale it to [0, 1] and pass it as an array")
    return pil_image.convert("L" if pil_image.mode == "1" else "RGB")


def _from_wide(pil_image: Image.Image) -> Image.Image:
    """Convert 16-bit gray to 8 bits. Pillow's own conversion clips at 255 instead."""
    values = np.asarray(pil_image)
    if values.min() < 0 or values.max() > 65535:
        raise ImageError(f"expected 16-bit samples, got values from {values.min()} to {values.max()}")
    return Image.fromarray((values.astype(np.uint16) >> 8).astype(np.uint8))

"""The check that a PNG or JPEG file is complete, without decoding it.

A model's image processor must be able to decode a file that passes through unchanged. So the pixel data of a PNG file
is decompressed and counted, which takes about half the time of decoding. The pixel data of a JPEG file cannot be
counted without decoding it, and decoders fill what is missing with gray; only its presence and its end are checked.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np

from tinkerloop.errors import ImageError
from tinkerloop.images.writing import PNG_SIGNATURE

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Samples per pixel, by the colour type of a PNG file."""
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Passes of an interlaced PNG file: first column, first row, distance of columns, distance of rows."""
_LAST_FILTER = 4


def check_complete(data: bytes) -> None:
    """Check that a PNG or JPEG file is complete.

    Raises:
        ImageError: the file is truncated or has no pixel data; or a PNG file has a wrong checksum, or pixel data that
            is damaged or does not fill the image.
    """
    if data.startswith(PNG_SIGNATURE):
        _check_png(data)
    else:
        _check_jpeg(data)


def _check_png(data: bytes) -> None:
    parts = []
    position = len(PNG_SIGNATURE)
    while position + 12 <= len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        if end > len(data):
            break
        if zlib.crc32(data[position + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise ImageError(f"the PNG file is damaged: the chunk at byte {position} has a wrong checksum")
        kind = data[position + 4 : position + 8]
        if kind == b"IDAT":
            parts.append(data[position + 8 : end - 4])
        if kind == b"IEND":
            return _check_pixel_data(data, b"".join(parts))
        position = end
    raise ImageError(f"the PNG file is truncated: no IEND chunk in its {len(data)} bytes")


def _check_pixel_data(data: bytes, compressed: bytes) -> None:
    """Check that the compressed pixel data of the PNG file `data` fills the image."""
    passes = list(_passes(data))
    expected = sum(rows * (1 + size) for rows, size in passes)
    try:
        raw = zlib.decompressobj().decompress(compressed, expected)  # at most `expected` bytes
    except zlib.error as error:
        raise ImageError(f"the PNG file is damaged: its pixel data cannot be decompressed: {error}") from error
    if len(raw) < expected:
        raise ImageError(
            f"the PNG file is truncated: its pixel data has {len(raw)} bytes, but the image needs {expected}"
        )
    values, start = np.frombuffer(raw, np.uint8), 0
    for rows, size in passes:
        filters = values[start : start + rows * (1 + size) : 1 + size]
        if filters.max() > _LAST_FILTER:
            raise ImageError(f"the PNG file is damaged: it has an unknown row filter {filters.max()}")
        start += rows * (1 + size)


def _passes(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield (number of rows, bytes of a row without its filter) of each pass of a PNG file."""
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    bits = data[24] * _CHANNELS[data[25]]
    for column, row, columns, rows in _ADAM7 if data[28] else ((0, 0, 1, 1),):
        across, down = -(-(width - column) // columns), -(-(height - row) // rows)
        if across > 0 and down > 0:
            yield down, -(-across * bits // 8)


def _check_jpeg(data: bytes) -> None:
    position = 2
    while (
        position + 4 <= len(data) and data[position] == 0xFF and data[position + 1] != 0xDA
    ):  # headers, up to the first scan
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        position += 1 if data[position + 1] == 0xFF else 2 + length
    end = data.find(b"\xff\xd9", position)
    if end < 0:
        raise ImageError(f"the JPEG file is truncated: no end-of-image marker in its {len(data)} bytes")
    pixels = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    if data[position : position + 2] != b"\xff\xda" or pixels >= end:
        raise ImageError("the JPEG file has no pixel data: no scan before its end-of-image marker")

"""Images become checked chunks: what passes through, what is converted, what is refused."""

import base64
import io
import struct
import zlib

import numpy as np
import pytest
import tinker
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageSequence

from tests.images.image_files import QWEN, encoded, noise, smooth_image
from tinkerloop.errors import ImageError
from tinkerloop.images import MAX_BYTES, image_chunk
from tinkerloop.images.processors import QWEN3_VL, TINY_VL
from tinkerloop.images.writing import png


def pixels_of(chunk):
    return np.asarray(Image.open(io.BytesIO(chunk.data)))


def png_header(width, height):
    """A PNG file that declares its size and holds almost no data."""

    def part(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", zlib.compress(b"")) + part(b"IEND", b"")


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("kind, options", [("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True})])
def test_plain_files_pass_through_unchanged(mode, kind, options):
    data = encoded(smooth_image(mode), kind, **options)
    chunk = image_chunk(data, model=QWEN)
    assert chunk.data == data
    assert chunk.format == kind.lower()
    assert chunk.expected_tokens == QWEN3_VL.tokens(70, 50)


def test_every_way_to_give_a_file_gives_the_same_chunk(tmp_path):
    data = encoded(smooth_image(), "PNG")
    path = tmp_path / "an image.png"
    path.write_bytes(data)
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    opened = Image.open(path)
    sources = [data, bytearray(data), memoryview(data), path, str(path), uri, opened]
    sources += [{"bytes": data, "path": None}, {"bytes": None, "path": str(path)}]
    expected = image_chunk(data, model=QWEN)
    for source in sources:
        assert image_chunk(source, model=QWEN) == expected
    assert opened.tile  # it was not even decoded
    assert image_chunk(expected, model=QWEN) == expected


def test_a_pil_image_that_was_changed_is_encoded_as_it_is_now():
    opened = Image.open(io.BytesIO(encoded(smooth_image(), "PNG")))
    opened.putpixel((3, 4), (1, 2, 3))
    assert tuple(pixels_of(image_chunk(opened, model=QWEN))[4, 3]) == (1, 2, 3)


def test_a_drafted_jpeg_is_encoded_at_its_drafted_size():
    opened = Image.open(io.BytesIO(encoded(smooth_image(size=(640, 480)), "JPEG")))
    opened.draft("RGB", (160, 120))
    assert pixels_of(image_chunk(opened, model=QWEN)).shape[:2] == opened.size[::-1] != (480, 640)


@pytest.mark.parametrize("array", [noise(40, 30), noise(40, 30, 1), noise(40, 30, 1)[:, :, None]])
def test_arrays_become_png_without_loss(array):
    chunk = image_chunk(array, model=QWEN)
    assert chunk.format == "png"
    np.testing.assert_array_equal(pixels_of(chunk), array.squeeze())


@settings(max_examples=100)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3]), st.integers(0, 9))
def test_png_files_are_whole_and_hold_the_pixels(width, height, channels, seed):
    pixels = noise(width, height, channels, seed)
    data = png(Image.fromarray(pixels))
    Image.open(io.BytesIO(data)).verify()  # every checksum
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels)


def test_jpeg_is_written_where_asked_for_and_files_still_pass_through():
    chunk = image_chunk(noise(40, 30), model=QWEN, jpeg_quality=75)
    assert (chunk.format, chunk.data) == ("jpeg", encoded(Image.fromarray(noise(40, 30)), "JPEG"))  # Pillow's own
    file = encoded(smooth_image(), "PNG")
    assert image_chunk(file, model=QWEN, jpeg_quality=75).data == file
    for quality in (0, 101):
        with pytest.raises(ImageError, match=f"1 to 100, got {quality}"):
            image_chunk(noise(40, 30), model=QWEN, jpeg_quality=quality)


def test_numbers_of_other_types_mean_the_same_image():
    expected = noise(20, 10)
    for array in (expected / 255.0, (expected / 255.0).astype(np.float32), expected.astype(np.uint16) << 8):
        np.testing.assert_array_equal(pixels_of(image_chunk(array, model=QWEN)), expected)
    mask = noise(20, 10, 1) > 127
    np.testing.assert_array_equal(pixels_of(image_chunk(mask, model=QWEN)), mask * 255)


def test_transparency_is_laid_over_white():
    rgba = noise(20, 10, 4)
    rgba[:, :10, 3], rgba[:, 10:, 3] = 0, 255
    for source in (rgba, encoded(Image.fromarray(rgba), "PNG"), encoded(Image.fromarray(rgba), "WEBP", lossless=True)):
        found = pixels_of(image_chunk(source, model=QWEN))
        assert (found[:, :10] == 255).all()
        np.testing.assert_array_equal(found[:, 10:], rgba[:, 10:, :3])
    gray = Image.fromarray(noise(20, 10, 1))
    found = pixels_of(image_chunk(encoded(gray, "PNG", transparency=int(np.asarray(gray)[0, 0])), model=QWEN))
    assert (found[0, 0] == 255).all()


def test_palettes_become_rgb():
    palette = smooth_image("RGB").quantize(16)
    found = pixels_of(image_chunk(encoded(palette, "PNG"), model=QWEN))
    np.testing.assert_array_equal(found, np.asarray(palette.convert("RGB")))


def test_cmyk_becomes_rgb_and_stays_a_jpeg():
    data = encoded(smooth_image("CMYK"), "JPEG", quality=95)
    chunk = image_chunk(data, model=QWEN)
    assert (chunk.format, Image.open(io.BytesIO(chunk.data)).mode) == ("jpeg", "RGB")
    assert np.abs(pixels_of(chunk).astype(int) - np.asarray(smooth_image())).mean() < 6


def test_sixteen_bit_gray_keeps_its_high_bits():
    wide = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    for kind in ("PNG", "TIFF"):
        found = pixels_of(image_chunk(encoded(Image.fromarray(wide), kind), model=QWEN))
        np.testing.assert_array_equal(found, wide >> 8)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(kind, orientation):
    upright = smooth_image(size=(64, 32))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(upright, kind, exif=exif)
    chunk = image_chunk(data, model=QWEN)
    assert pixels_of(chunk).shape[:2] == ((32, 64) if orientation < 5 else (64, 32))
    assert (chunk.data == data) == (orientation == 1)
    corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    error = np.abs(pixels_of(chunk)[corner[orientation]].astype(int) - np.asarray(upright)[0, 0])
    assert error.max() < 24  # what JPEG may lose; the other corners are further away
    others = [
        np.abs(np.asarray(upright)[at].astype(int) - np.asarray(upright)[0, 0]).max() for at in ((0, -1), (-1, 0))
    ]
    assert min(others) > 24


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_taken(kind):
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert len(list(ImageSequence.Iterator(Image.open(io.BytesIO(data))))) == 2
    chunk = image_chunk(data, model=QWEN)
    assert (pixels_of(chunk) == (255, 0, 0)).all()
    assert not getattr(Image.open(io.BytesIO(chunk.data)), "is_animated", False)


def test_a_file_above_the_limit_is_scaled_to_what_the_model_sees_before_it_loses_anything():
    large = smooth_image(size=(416, 320))
    limit = len(png(large)) - 1
    chunk = image_chunk(encoded(large, "BMP"), processor=TINY_VL, max_bytes=limit)
    assert chunk.format == "jpeg"  # nothing to scale: it is below the model's maximum
    assert chunk.expected_tokens == TINY_VL.tokens(416, 320)

    larger = smooth_image(size=(1200, 900))
    chunk = image_chunk(larger, processor=TINY_VL, max_bytes=len(png(larger)) - 1)
    assert chunk.format == "png"
    assert Image.open(io.BytesIO(chunk.data)).size == TINY_VL.resized(1200, 900)
    assert chunk.expected_tokens == TINY_VL.tokens(1200, 900)


def test_what_cannot_be_made_small_enough_is_refused():
    with pytest.raises(ImageError, match="max_bytes=1000"):
        image_chunk(noise(300, 300), model=QWEN, max_bytes=1000)


def test_large_photos_fit_the_hosted_limit():
    assert len(image_chunk(noise(1500, 1000), model=QWEN).data) <= MAX_BYTES


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_truncated_files_are_refused(kind, share):
    data = encoded(smooth_image(size=(200, 150)), kind)
    with pytest.raises(ImageError):
        image_chunk(data[: int(len(data) * share)], model=QWEN)


def test_a_damaged_png_is_refused():
    data = bytearray(encoded(smooth_image(), "PNG"))
    data[len(data) // 2] ^= 1
    with pytest.raises(ImageError, match="damaged"):
        image_chunk(data, model=QWEN)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def png_file(pixel_data: bytes | None, width=50, height=40, interlaced=0) -> bytes:
    """An RGB PNG file with right checksums and an end, around any pixel data."""
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes((8, 2, 0, 0, interlaced))
    middle = b"" if pixel_data is None else png_chunk(b"IDAT", pixel_data)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + middle + png_chunk(b"IEND", b"")


ROWS = (b"\0" + bytes(150)) * 40
SCAN = b"\xff\xda"


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (png_file(None), "0 bytes, but the image needs 6040"),
        (png_file(b""), "0 bytes, but the image needs 6040"),
        (png_file(zlib.compress(ROWS[:-1])), "6039 bytes, but the image needs 6040"),
        (png_file(zlib.compress(ROWS)[:20]), "truncated"),
        (png_file(b"no data"), "cannot be decompressed"),
        (png_file(zlib.compress(ROWS[:-151] + b"\x05" + bytes(150))), "unknown row filter 5"),
        (png_file(zlib.compress(ROWS), interlaced=1), "but the image needs"),
        (png_file(zlib.compress(ROWS), width=0), "not an image|empty"),
    ],
)
def test_a_png_file_without_data_for_every_pixel_is_refused(data, problem):
    with pytest.raises(ImageError, match=problem):
        image_chunk(data, model=QWEN)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 9), (50, 40)])
def test_a_complete_png_file_passes_interlaced_or_not(size):
    width, height = size
    plain = png_file(zlib.compress((b"\0" + bytes(3 * width)) * height), *size)
    assert image_chunk(plain, processor=TINY_VL).data == plain
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    rows = [
        b"\0" + bytes(3 * len(range(x, width, dx)))
        for x, y, dx, dy in passes
        for _ in range(y, height, dy)
        if x < width
    ]
    interlaced = png_file(zlib.compress(b"".join(rows)), *size, interlaced=1)
    assert image_chunk(interlaced, processor=TINY_VL).data == interlaced
    Image.open(io.BytesIO(interlaced)).load()


def test_a_jpeg_file_without_a_scan_is_refused():
    data = encoded(smooth_image(), "JPEG")
    start = data.index(SCAN)
    for cut in (data[:start], data[: start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")]):
        with pytest.raises(ImageError, match=r"no pixel data|cannot identify"):  # an old Pillow does not even open it
            image_chunk(cut + b"\xff\xd9", model=QWEN)


@pytest.mark.parametrize(
    "source, problem",
    [
        (b"", "empty"),
        (b"not an image", "not an image"),
        (png_header(0, 10), "empty|not an image"),
        (png_header(30_000, 30_000), "too large|max_pixels"),
        (png_header(10_000, 9_000), "max_pixels"),
        (encoded(Image.new("L", (201, 1)), "PNG"), "aspect ratio of 201.0"),
        (np.zeros((0, 5, 3), np.uint8), "empty"),
        (np.zeros((3, 8, 8), np.uint8), r"expected an array of shape \(H, W\)"),
        (np.full((8, 8), 2.0), r"\[0, 1\]"),
        (np.full((8, 8), np.nan), r"\[0, 1\]"),
        (np.zeros((8, 8), np.int64), "int64"),
        (Image.new("F", (8, 8)), "floats"),
        (12, "got int"),
        ({"url": "x"}, "got dict"),
        ("data:image/png;base64,!!!", "base64"),
        ("data:image/png;base64,é", "base64"),
        ("data:image/png;base64", "comma"),
        ("/no/such/image.png", "cannot read"),
        ("nul\0", "cannot read"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_no_image_is_refused_with_the_reason(source, problem):
    with pytest.raises(ImageError, match=problem):
        image_chunk(source, model=QWEN)


@pytest.mark.parametrize("kind", ["ICO", "PDF", "EPS"])
def test_only_formats_without_side_effects_are_opened(kind):
    with pytest.raises(ImageError, match="not an image"):
        image_chunk(encoded(smooth_image(), kind), model=QWEN)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/x.png", "https://x/y.png", "file:///etc/hostname", "FILE:/x", "ftp://x/y"]
)
def test_nothing_is_fetched_unless_asked_for(url):
    with pytest.raises(ImageError, match="not fetched by default"):
        image_chunk(url, model=QWEN)


def test_a_fetcher_gets_the_url():
    data = encoded(smooth_image(), "PNG")
    asked = []

    def fetch(url):
        asked.append(url)
        return data

    assert image_chunk("https://example.org/a.png", model=QWEN, fetch=fetch).data == data
    assert asked == ["https://example.org/a.png"]


def test_a_chunk_with_a_wrong_count_is_refused():
    chunk = image_chunk(smooth_image(), model=QWEN)
    with pytest.raises(ImageError, match="expected_tokens=7"):
        image_chunk(chunk.model_copy(update={"expected_tokens": 7}), model=QWEN)
    unset = tinker.types.ImageChunk(data=chunk.data, format=chunk.format)
    assert image_chunk(unset, model=QWEN) == chunk


def test_the_model_must_be_named():
    with pytest.raises(ImageError, match="model="):
        image_chunk(smooth_image())


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about broken TIFF tags
@settings(max_examples=150)
@given(st.data())
def test_bytes_of_any_kind_give_a_chunk_or_an_image_error(data):
    good = encoded(smooth_image(size=(32, 32)), data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "TIFF"])))
    at = data.draw(st.integers(0, len(good)))
    broken = good[:at] + data.draw(st.binary(max_size=12)) + good[at + data.draw(st.integers(0, 12)) :]
    try:
        chunk = image_chunk(broken, model=QWEN)
    except ImageError:
        return
    assert chunk.expected_tokens >= 1

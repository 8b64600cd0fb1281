import ast
import base64
import importlib.util
import io
import json
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tinker
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageSequence

from tinkerloop.errors import ImageError
from tinkerloop.images import MAX_BYTES, get_image_processor, image_chunk, image_size, open_image
from tinkerloop.images.processors import KIMI_K25, QWEN2_VL, QWEN3_VL, TINY_VL, as_image_processor
from tinkerloop.images.writing import png

QWEN = "Qwen/Qwen3-VL-30B-A3B-Instruct"
side = st.integers(1, 8192) | st.integers(1, 64)


def noise(width, height, channels=3, seed=0):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(picture, kind, **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(mode="RGB", size=(70, 50)):
    smooth = Image.fromarray(noise(7, 5)).resize(size, Image.Resampling.BICUBIC)
    return smooth.convert(mode)


def pixels_of(chunk):
    return np.asarray(Image.open(io.BytesIO(chunk.data)))


def png_header(width, height):
    """A PNG file that declares its size and holds almost no data."""

    def part(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", zlib.compress(b"")) + part(b"IEND", b"")


# ---- counting


@settings(deadline=None, max_examples=300)
@given(side, side, st.sampled_from([QWEN3_VL, QWEN2_VL, TINY_VL]))
def test_qwen_arithmetic_is_that_of_transformers(width, height, processor):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    if max(width, height) / min(width, height) > 200:
        with pytest.raises(ImageError, match="aspect ratio"):
            processor.tokens(width, height)
        return
    h, w = smart_resize(height, width, processor.factor, processor.min_pixels, processor.max_pixels)
    assert processor.resized(width, height) == (w, h)
    assert processor.grid(width, height) == (1, h // processor.patch_size, w // processor.patch_size)
    assert processor.tokens(width, height) == h * w // processor.factor**2


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 300), st.integers(1, 300))
def test_the_count_of_a_file_is_the_grid_that_transformers_makes_of_its_pixels(width, height):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    theirs = Qwen2VLImageProcessorPil(
        patch_size=16, size={"shortest_edge": 4_096, "longest_edge": 65_536}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    if max(width, height) > 200 * min(width, height):
        return
    chunk = image_chunk(encoded(Image.new("RGB", (width, height)), "PNG"), processor=theirs)
    grid = theirs.preprocess(open_image(chunk), return_tensors="np")["image_grid_thw"][0]
    assert chunk.expected_tokens == grid.prod() // 4
    assert as_image_processor(theirs).grid(width, height) == tuple(grid)


@pytest.mark.parametrize(
    "size, tokens",
    [
        ((224, 224), 64),
        ((150, 224), 70),
        ((224, 150), 70),
        ((304, 304), 100),
        ((400, 300), 108),
        ((1024, 1024), 1024),
        ((1, 1), 64),
        ((1, 200), 114),
        ((16, 3000), 110),
        ((4032, 3024), 11_844),
        ((9000, 9000), 16_384),
    ],
)
def test_known_counts_of_qwen3_vl(size, tokens):
    assert get_image_processor(QWEN).tokens(*size) == tokens


@pytest.mark.parametrize("kind, enough", [("PNG", 41), ("JPEG", 700)])
def test_size_and_tokens_follow_from_the_header_alone(kind, enough):
    head = encoded(picture(size=(300, 200)), kind)[:enough]
    assert image_size(head) == (300, 200)
    assert QWEN3_VL.tokens(*image_size(head)) == 70
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    assert image_size(encoded(picture(size=(300, 200)), kind, exif=exif)[: enough + 200]) == (200, 300)


@pytest.mark.parametrize(
    "size, tokens",
    [((224, 224), 64), ((150, 224), 48), ((1024, 1024), 1369), ((4032, 3024), 4144), ((1, 1), 1), ((10_000, 100), 768)],
)
def test_known_counts_of_kimi(size, tokens):
    assert get_image_processor("moonshotai/Kimi-K2.5").tokens(*size) == tokens


@pytest.fixture(scope="module")
def navit_resize():
    """transformers' function for Kimi, read from its source: importing its module takes torchvision."""
    spec = importlib.util.find_spec("transformers.models.kimi_k25")
    if spec is None or spec.origin is None:
        pytest.skip("this transformers has no Kimi K2.5")
    source = Path(spec.origin).with_name("image_processing_kimi_k25.py").read_text()
    body = [n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef) and n.name == "navit_resize"]
    namespace = {"math": math}
    exec(compile(ast.Module(body, []), "navit_resize", "exec"), namespace)
    return namespace["navit_resize"]


@settings(deadline=None, max_examples=300)
@given(st.integers(1, 20_000), st.integers(1, 20_000))
def test_kimi_arithmetic_is_that_of_transformers(navit_resize, width, height):
    (h, w), (padded_h, padded_w) = navit_resize(height, width, 14, 2, 16_384, 512)
    assert KIMI_K25.resized(width, height) == (w, h)
    assert KIMI_K25.padded(width, height) == (padded_w, padded_h)
    assert KIMI_K25.tokens(width, height) == padded_w * padded_h // 28**2


@pytest.mark.parametrize(
    "name, processor",
    [
        ("Qwen/Qwen3-VL-235B-A22B-Instruct", QWEN3_VL),
        ("Qwen/Qwen3.5-4B", QWEN3_VL),
        ("Qwen/Qwen3.6-27B:peft:65536", QWEN3_VL),
        ("Qwen/Qwen2.5-VL-7B-Instruct", QWEN2_VL),
        ("moonshotai/Kimi-K2.6", KIMI_K25),
        ("tiny-vl", TINY_VL),
    ],
)
def test_processors_are_found_by_model_name(name, processor):
    assert get_image_processor(name) == processor


@pytest.mark.parametrize("name", ["Qwen/Qwen3-8B", "meta-llama/Llama-3.1-8B", "tiny", "Kimi-K2-Thinking"])
def test_a_text_model_has_no_image_processor(name):
    with pytest.raises(ImageError, match="no image processor"):
        get_image_processor(name)


def test_a_local_folder_states_its_own_processor(tmp_path):
    config = {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "size": {"shortest_edge": 65_536, "longest_edge": 16_777_216},
        "patch_size": 16,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    assert get_image_processor(str(tmp_path)) == QWEN3_VL
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "CLIPImageProcessor"}))
    with pytest.raises(ImageError, match="CLIPImageProcessor"):
        get_image_processor(str(tmp_path))


def test_kimi_states_its_processor_with_names_of_its_own(tmp_path):
    config = {"patch_size": 14, "merge_kernel_size": 2, "in_patch_limit": 16_384, "patch_limit_on_one_side": 512}
    config |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "fixed_output_tokens": None, "sample_fps": 2.0}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"media_proc_cfg": config}))
    assert get_image_processor(str(tmp_path)) == KIMI_K25
    assert as_image_processor({"media_proc_cfg": config | {"in_patch_limit": 64}}).tokens(1000, 1000) == 16
    with pytest.raises(ImageError, match="fixed_output_tokens"):
        as_image_processor({"media_proc_cfg": config | {"fixed_output_tokens": 256}})


# ---- what passes through


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("kind, options", [("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True})])
def test_plain_files_pass_through_unchanged(mode, kind, options):
    data = encoded(picture(mode), kind, **options)
    chunk = image_chunk(data, model=QWEN)
    assert chunk.data == data
    assert chunk.format == kind.lower()
    assert chunk.expected_tokens == QWEN3_VL.tokens(70, 50)


def test_every_way_to_give_a_file_gives_the_same_chunk(tmp_path):
    data = encoded(picture(), "PNG")
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
    opened = Image.open(io.BytesIO(encoded(picture(), "PNG")))
    opened.putpixel((3, 4), (1, 2, 3))
    assert tuple(pixels_of(image_chunk(opened, model=QWEN))[4, 3]) == (1, 2, 3)


def test_a_drafted_jpeg_is_encoded_at_its_drafted_size():
    opened = Image.open(io.BytesIO(encoded(picture(size=(640, 480)), "JPEG")))
    opened.draft("RGB", (160, 120))
    assert pixels_of(image_chunk(opened, model=QWEN)).shape[:2] == opened.size[::-1] != (480, 640)


# ---- what is converted, and to what


@pytest.mark.parametrize("array", [noise(40, 30), noise(40, 30, 1), noise(40, 30, 1)[:, :, None]])
def test_arrays_become_png_without_loss(array):
    chunk = image_chunk(array, model=QWEN)
    assert chunk.format == "png"
    np.testing.assert_array_equal(pixels_of(chunk), array.squeeze())


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3]), st.integers(0, 9))
def test_png_files_are_whole_and_hold_the_pixels(width, height, channels, seed):
    pixels = noise(width, height, channels, seed)
    data = png(Image.fromarray(pixels))
    Image.open(io.BytesIO(data)).verify()  # every checksum
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels)


def test_jpeg_is_written_where_asked_for_and_files_still_pass_through():
    chunk = image_chunk(noise(40, 30), model=QWEN, jpeg_quality=75)
    assert (chunk.format, chunk.data) == ("jpeg", encoded(Image.fromarray(noise(40, 30)), "JPEG"))  # Pillow's own
    file = encoded(picture(), "PNG")
    assert image_chunk(file, model=QWEN, jpeg_quality=75).data == file
    for quality in (0, 101):
        with pytest.raises(ImageError, match=f"1 to 100, got {quality}"):
            image_chunk(noise(40, 30), model=QWEN, jpeg_quality=quality)


def test_numbers_of_other_types_mean_the_same_picture():
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
    palette = picture("RGB").quantize(16)
    found = pixels_of(image_chunk(encoded(palette, "PNG"), model=QWEN))
    np.testing.assert_array_equal(found, np.asarray(palette.convert("RGB")))


def test_cmyk_becomes_rgb_and_stays_a_jpeg():
    data = encoded(picture("CMYK"), "JPEG", quality=95)
    chunk = image_chunk(data, model=QWEN)
    assert (chunk.format, Image.open(io.BytesIO(chunk.data)).mode) == ("jpeg", "RGB")
    assert np.abs(pixels_of(chunk).astype(int) - np.asarray(picture())).mean() < 6


def test_sixteen_bit_gray_keeps_its_high_bits():
    wide = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    for kind in ("PNG", "TIFF"):
        found = pixels_of(image_chunk(encoded(Image.fromarray(wide), kind), model=QWEN))
        np.testing.assert_array_equal(found, wide >> 8)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(kind, orientation):
    upright = picture(size=(64, 32))
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
    large = picture(size=(416, 320))
    limit = len(png(large)) - 1
    chunk = image_chunk(encoded(large, "BMP"), processor=TINY_VL, max_bytes=limit)
    assert chunk.format == "jpeg"  # nothing to scale: it is below the model's maximum
    assert chunk.expected_tokens == TINY_VL.tokens(416, 320)

    larger = picture(size=(1200, 900))
    chunk = image_chunk(larger, processor=TINY_VL, max_bytes=len(png(larger)) - 1)
    assert chunk.format == "png"
    assert Image.open(io.BytesIO(chunk.data)).size == TINY_VL.resized(1200, 900)
    assert chunk.expected_tokens == TINY_VL.tokens(1200, 900)


def test_what_cannot_be_made_small_enough_is_refused():
    with pytest.raises(ImageError, match="max_bytes=1000"):
        image_chunk(noise(300, 300), model=QWEN, max_bytes=1000)


def test_large_photos_fit_the_hosted_limit():
    assert len(image_chunk(noise(1500, 1000), model=QWEN).data) <= MAX_BYTES


# ---- what is refused


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_truncated_files_are_refused(kind, share):
    data = encoded(picture(size=(200, 150)), kind)
    with pytest.raises(ImageError):
        image_chunk(data[: int(len(data) * share)], model=QWEN)


def test_a_damaged_png_is_refused():
    data = bytearray(encoded(picture(), "PNG"))
    data[len(data) // 2] ^= 1
    with pytest.raises(ImageError, match="damaged"):
        image_chunk(data, model=QWEN)


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
        image_chunk(encoded(picture(), kind), model=QWEN)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/x.png", "https://x/y.png", "file:///etc/hostname", "FILE:/x", "ftp://x/y"]
)
def test_nothing_is_fetched_unless_asked_for(url):
    with pytest.raises(ImageError, match="nothing is fetched"):
        image_chunk(url, model=QWEN)


def test_a_fetcher_gets_the_url():
    data = encoded(picture(), "PNG")
    asked = []

    def fetch(url):
        asked.append(url)
        return data

    assert image_chunk("https://example.org/a.png", model=QWEN, fetch=fetch).data == data
    assert asked == ["https://example.org/a.png"]


def test_a_chunk_with_a_wrong_count_is_refused():
    chunk = image_chunk(picture(), model=QWEN)
    with pytest.raises(ImageError, match="says 7 tokens"):
        image_chunk(chunk.model_copy(update={"expected_tokens": 7}), model=QWEN)
    unset = tinker.types.ImageChunk(data=chunk.data, format=chunk.format)
    assert image_chunk(unset, model=QWEN) == chunk


def test_the_model_must_be_named():
    with pytest.raises(ImageError, match="model="):
        image_chunk(picture())


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about broken TIFF tags
@settings(deadline=None, max_examples=150)
@given(st.data())
def test_bytes_of_any_kind_give_a_chunk_or_an_image_error(data):
    good = encoded(picture(size=(32, 32)), data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "TIFF"])))
    at = data.draw(st.integers(0, len(good)))
    broken = good[:at] + data.draw(st.binary(max_size=12)) + good[at + data.draw(st.integers(0, 12)) :]
    try:
        chunk = image_chunk(broken, model=QWEN)
    except ImageError:
        return
    assert chunk.expected_tokens >= 1

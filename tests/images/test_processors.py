"""The number of tokens that each image processor makes of an image."""

import ast
import importlib.util
import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.images.image_files import QWEN, encoded, smooth_image
from tinkerloop.errors import ImageError
from tinkerloop.images import get_image_processor, image_chunk, image_size, open_image
from tinkerloop.images.processors import KIMI_K25, QWEN2_VL, QWEN3_VL, TINY_VL, as_image_processor

side = st.integers(1, 8192) | st.integers(1, 64)


@settings(max_examples=300)
@given(side, side, st.sampled_from([QWEN3_VL, QWEN2_VL, TINY_VL]))
def test_qwen_arithmetic_is_that_of_transformers(width, height, processor):
    smart_resize = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl").smart_resize

    if max(width, height) / min(width, height) > 200:
        with pytest.raises(ImageError, match="aspect ratio"):
            processor.tokens(width, height)
        return
    h, w = smart_resize(height, width, processor.factor, processor.min_pixels, processor.max_pixels)
    assert processor.resized(width, height) == (w, h)
    assert processor.grid(width, height) == (1, h // processor.patch_size, w // processor.patch_size)
    assert processor.tokens(width, height) == h * w // processor.factor**2


@settings(max_examples=20)
@given(st.integers(1, 300), st.integers(1, 300))
def test_the_count_of_a_file_is_the_grid_that_transformers_makes_of_its_pixels(width, height):
    module = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    theirs = module.Qwen2VLImageProcessorPil(
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
    head = encoded(smooth_image(size=(300, 200)), kind)[:enough]
    assert image_size(head) == (300, 200)
    assert QWEN3_VL.tokens(*image_size(head)) == 70
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    assert image_size(encoded(smooth_image(size=(300, 200)), kind, exif=exif)[: enough + 200]) == (200, 300)


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


@settings(max_examples=300)
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


QWEN_CONFIG = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 14, "merge_size": 2}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "Expecting value"),
        ("{", "Expecting property name"),
        ("[]", "expected a JSON object, got list"),
        ("null", "expected a JSON object, got NoneType"),
        ("\xff", "codec"),
        ("[" * 100_000, "recursion"),
        (json.dumps({"image_processor_type": "CLIPImageProcessor"}), "CLIPImageProcessor is not supported"),
        (json.dumps({**QWEN_CONFIG, "size": 5}), "not iterable"),
        (json.dumps({**QWEN_CONFIG, "patch_size": 0}), "patch_size of an image processor must be a number >= 1, got 0"),
        (json.dumps({**QWEN_CONFIG, "patch_size": "14"}), "patch_size .* got '14'"),
        (json.dumps({**QWEN_CONFIG, "merge_size": 1.5}), "merge_size .* must be an integer, got 1.5"),
        (json.dumps({**QWEN_CONFIG, "temporal_patch_size": None}), "temporal_patch_size .* got None"),
        (json.dumps({**QWEN_CONFIG, "max_pixels": -1}), "max_pixels .* got -1"),
        (json.dumps({**QWEN_CONFIG, "image_std": [1, 0, 1]}), "std .* other than 0"),
        (json.dumps({**QWEN_CONFIG, "image_mean": [0.5]}), "mean .* three finite numbers"),
        (json.dumps({"media_proc_cfg": {"patch_size": 0}}), "patch_size .* got 0"),
        (json.dumps({"media_proc_cfg": 3}), "attribute"),
    ],
)
def test_a_broken_configuration_is_an_image_error_that_names_the_file(tmp_path, text, says):
    (tmp_path / "preprocessor_config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ImageError, match=f"(?s)preprocessor_config.json.*{says}"):
        get_image_processor(str(tmp_path))


def test_a_processor_file_without_an_image_processor_is_refused(tmp_path):
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "X"}))
    with pytest.raises(ImageError, match=r"processor_config.json.*'image_processor'"):
        get_image_processor(str(tmp_path))

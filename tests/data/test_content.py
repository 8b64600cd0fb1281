"""Rows are recognised by their content: equal in every process, and different where a single pixel differs."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tinkerloop.data import train_test_split
from tinkerloop.data.content import content_text
from tinkerloop.errors import DataError

PIXELS = np.arange(3 * 40 * 40, dtype=np.uint8).reshape(40, 40, 3)
CHANGED = PIXELS.copy()
CHANGED[20, 20, 1] ^= 1


def pil(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels)


def opened(pixels: np.ndarray, *, load: bool) -> Image.Image:
    file = io.BytesIO()
    pil(pixels).save(file, "PNG")
    image = Image.open(file)
    if load:
        image.load()
    return image


@pytest.mark.parametrize(
    "make",
    [
        pil,
        lambda pixels: opened(pixels, load=False),
        lambda pixels: opened(pixels, load=True),
        lambda pixels: pil(pixels).quantize(16),
        lambda pixels: pixels,
        lambda pixels: pixels.astype(object),
        lambda pixels: pixels.tobytes(),
    ],
    ids=["PIL", "a file", "a loaded file", "a palette", "an array", "an array of objects", "bytes"],
)
def test_equal_images_are_equal_and_others_are_not(make: Any) -> None:
    assert content_text({"image": make(PIXELS)}) == content_text({"image": make(PIXELS.copy())})
    assert content_text({"image": make(PIXELS)}) != content_text({"image": make(255 - CHANGED)})


@pytest.mark.parametrize("make", [pil, lambda pixels: pixels, lambda pixels: opened(pixels, load=True)])
def test_one_changed_pixel_shows(make: Any) -> None:
    assert content_text(make(PIXELS)) != content_text(make(CHANGED))


def test_an_image_that_was_opened_from_a_file_stays_unread() -> None:
    image = opened(PIXELS, load=False)
    content_text(image)
    assert image.tile  # its file is passed to the model unchanged only until its pixels are read


SCRIPT = """
import numpy as np
from PIL import Image
from tinkerloop.data import load_conversations, train_test_split

images = [Image.fromarray(np.full((32, 32, 3), i, np.uint8)) for i in range(20)]
rows = [{"messages": [
    {"role": "user", "content": [{"type": "image", "image": image}]}, {"role": "assistant", "content": "y"}
]} for image in images]
conversations = load_conversations(rows)
train, test = train_test_split(conversations, 5)
print(conversations.fingerprint, test.numbers, train_test_split(images, 5)[1].numbers)
"""


def test_every_process_splits_images_in_memory_in_the_same_way() -> None:
    first, second = (subprocess.check_output([sys.executable, "-c", SCRIPT], text=True) for _ in range(2))
    assert first == second


def test_equal_images_stay_on_one_side_of_a_split() -> None:
    rows = [pil(np.full((32, 32, 3), i // 2, np.uint8)) for i in range(20)]
    _, test = train_test_split(rows, 6)
    assert len(test.numbers) == 6
    assert all(number ^ 1 in test.numbers for number in test.numbers)


def test_an_object_that_shows_only_its_address_is_refused() -> None:
    with pytest.raises(DataError, match=r"a row contains a object, which cannot be compared.*pass key="):
        train_test_split([object(), object()], 1)


def test_the_text_of_a_row_without_objects_is_its_json() -> None:
    assert content_text({"role": "user", "content": "ü"}) == '{"content": "\\u00fc", "role": "user"}'

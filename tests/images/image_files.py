"""Images of noise and of smooth colours, and their files, for the tests of processors and chunks."""

import io

import numpy as np
from PIL import Image

QWEN = "Qwen/Qwen3-VL-30B-A3B-Instruct"


def noise(width, height, channels=3, seed=0):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def smooth_image(mode="RGB", size=(70, 50)):
    image = Image.fromarray(noise(7, 5)).resize(size, Image.Resampling.BICUBIC)
    return image.convert(mode)

"""Image processors: the number of tokens that an image takes, from its width and height alone.

Vision models cut an image into square patches after resizing it; the resize rule belongs to the model's image
processor. These classes repeat that arithmetic exactly, without torch, torchvision or a download, so that
`expected_tokens` is what the model will make of the image.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinkerloop.errors import ImageError


@dataclass(frozen=True)
class ImageProcessor:
    """The resize rule of one family: `resized` and `tokens` of a width x height image."""

    patch_size: int = 16
    """Side of a square patch, in pixels."""
    merge_size: int = 2
    """Side of the square of patches that becomes one token."""
    temporal_patch_size: int = 2
    """Frames per patch; a still image is repeated."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Subtracted from each of R, G, B in [0, 1] ..."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """... before the division by this."""

    @property
    def factor(self) -> int:
        """Side, in pixels, of the square that becomes one token."""
        return self.patch_size * self.merge_size

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Return the (width, height) that an image is scaled to, before any padding.

        Raises:
            ImageError: a side is zero, or the aspect ratio is above the family's limit.
        """
        raise NotImplementedError

    def padded(self, width: int, height: int) -> tuple[int, int]:
        """Return the (width, height) that is cut into patches: multiples of `factor`."""
        return self.resized(width, height)

    def grid(self, width: int, height: int) -> tuple[int, int, int]:
        """Return the number of patches over (time, height, width): transformers' `image_grid_thw`."""
        width, height = self.padded(width, height)
        return 1, height // self.patch_size, width // self.patch_size

    def tokens(self, width: int, height: int) -> int:
        """Return the number of tokens that an image takes."""
        width, height = self.padded(width, height)
        return (height // self.factor) * (width // self.factor)


@dataclass(frozen=True)
class QwenImageProcessor(ImageProcessor):
    """The rule of Qwen-VL: both sides rounded to multiples of `factor`, the area kept within [min_pixels, max_pixels].

    Sides are rounded half to even, as Python does. Defaults are those of Qwen3-VL and Qwen3.5: 224 x 224 takes 64
    tokens, 400 x 300 takes 108, anything of 4096 x 4096 or more 16,384.
    """

    min_pixels: int = 65_536
    max_pixels: int = 16_777_216
    max_aspect: float = 200

    def resized(self, width: int, height: int) -> tuple[int, int]:
        _check_sides(width, height)
        aspect = max(width, height) / min(width, height)
        if aspect > self.max_aspect:
            raise ImageError(
                f"a {width} x {height} image has an aspect ratio of {aspect:.1f}, this model takes at most "
                f"{self.max_aspect:g}: crop or pad it"
            )
        factor, area = self.factor, width * height
        w, h = round(width / factor) * factor, round(height / factor) * factor
        if w * h > self.max_pixels:
            beta = math.sqrt(area / self.max_pixels)
            w = max(factor, math.floor(width / beta / factor) * factor)
            h = max(factor, math.floor(height / beta / factor) * factor)
        elif w * h < self.min_pixels:
            beta = math.sqrt(self.min_pixels / area)
            w = math.ceil(width * beta / factor) * factor
            h = math.ceil(height * beta / factor) * factor
        return w, h


@dataclass(frozen=True)
class KimiImageProcessor(ImageProcessor):
    """The rule of Kimi K2.5 and K2.6: scaled down (never up) to a number of patches, padded to whole tokens."""

    patch_size: int = 14
    temporal_patch_size: int = 1
    max_patches: int = 16_384
    max_patches_per_side: int = 512

    def resized(self, width: int, height: int) -> tuple[int, int]:
        _check_sides(width, height)
        patches = max(1.0, width // self.patch_size) * max(1.0, height // self.patch_size)
        longest = self.max_patches_per_side * self.patch_size
        scale = min(1.0, math.sqrt(self.max_patches / patches), longest / width, longest / height)
        w, h = max(1, int(width * scale)), max(1, int(height * scale))
        return min(w, longest), min(h, longest)

    def padded(self, width: int, height: int) -> tuple[int, int]:
        width, height = self.resized(width, height)
        return width + -width % self.factor, height + -height % self.factor


_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

QWEN3_VL = QwenImageProcessor()
QWEN2_VL = QwenImageProcessor(patch_size=14, mean=_CLIP_MEAN, std=_CLIP_STD, min_pixels=3_136, max_pixels=12_845_056)
KIMI_K25 = KimiImageProcessor()
TINY_VL = QwenImageProcessor(min_pixels=4_096, max_pixels=262_144)
"""The processor of the built-in `tiny-vl`: Qwen3-VL's, without enlarging small images (64 x 64 takes 4 tokens)."""

_BY_NAME: tuple[tuple[str, ImageProcessor], ...] = (
    (r"qwen3-vl|qwen3\.[568]", QWEN3_VL),
    (r"qwen2(\.5)?-vl", QWEN2_VL),
    (r"kimi-k2\.[56]", KIMI_K25),
    (r"tiny-vl$", TINY_VL),
)


def get_image_processor(model_name: str) -> ImageProcessor:
    """Return the image processor of a model, from its published name or a local folder's configuration.

    Raises:
        ImageError: the model takes no images, or whose image processor is not known here.
    """
    folder = Path(model_name)
    if folder.is_dir():
        for file, key in (("preprocessor_config.json", None), ("processor_config.json", "image_processor")):
            if (folder / file).exists():
                config = json.loads((folder / file).read_text())
                return as_image_processor(config if key is None else config.get(key, {}))
        raise ImageError(f"{model_name} has no preprocessor_config.json, so it takes no images")
    name = model_name.split(":", 1)[0].rsplit("/", 1)[-1].lower()
    for pattern, processor in _BY_NAME:
        if re.match(pattern, name):
            return processor
    raise ImageError(
        f"no image processor is known for {model_name!r}; known are Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Qwen3.5, Qwen3.6, "
        "Qwen3.8, Kimi-K2.5, Kimi-K2.6, tiny-vl, and local folders with a preprocessor_config.json"
    )


def as_image_processor(given: Any) -> ImageProcessor:
    """Return `given` itself, or the equivalent of a transformers image processor or its configuration.

    Raises:
        ImageError: it is a kind of processor that is not known here.
    """
    if isinstance(given, ImageProcessor):
        return given
    config = given if isinstance(given, Mapping) else given.to_dict() if hasattr(given, "to_dict") else None
    if config is None:
        raise ImageError(
            f"expected an image processor, got {type(given).__name__}: use get_image_processor(model_name)"
        )
    if "media_proc_cfg" in config:
        return _from_published_kimi_config(config["media_proc_cfg"])
    kind = str(config.get("image_processor_type") or type(given).__name__)
    size = dict(config.get("size") or {})
    shared = {name: config[name] for name in ("patch_size", "merge_size", "temporal_patch_size") if name in config}
    shared |= {name: tuple(config[f"image_{name}"]) for name in ("mean", "std") if config.get(f"image_{name}")}
    if re.match(r"Qwen[23](_5)?_?VL", kind):
        defaults = QwenImageProcessor(14, 2, 2, _CLIP_MEAN, _CLIP_STD, 3_136, 1_003_520)  # transformers' own
        return QwenImageProcessor(
            **{name: getattr(defaults, name) for name in ("patch_size", "mean", "std")} | shared,
            min_pixels=config.get("min_pixels") or size.get("shortest_edge") or defaults.min_pixels,
            max_pixels=config.get("max_pixels") or size.get("longest_edge") or defaults.max_pixels,
        )
    if kind.startswith("Kimi"):
        return KimiImageProcessor(
            **shared,
            max_patches=config.get("max_patches", KIMI_K25.max_patches),
            max_patches_per_side=size.get("max_height", KIMI_K25.max_patches_per_side),
        )
    raise ImageError(f"the image processor {kind} is not known here; known are those of Qwen-VL and Kimi")


def _from_published_kimi_config(config: Mapping[str, Any]) -> KimiImageProcessor:
    """Read the preprocessor_config.json that Kimi K2.5 and K2.6 are published with, which has names of its own."""
    if config.get("fixed_output_tokens") is not None:
        raise ImageError("fixed_output_tokens is not known here: the number of tokens follows from the image's size")
    names = {
        "patch_size": "patch_size",
        "merge_kernel_size": "merge_size",
        "in_patch_limit": "max_patches",
        "patch_limit_on_one_side": "max_patches_per_side",
    }
    fields = {ours: config[theirs] for theirs, ours in names.items() if theirs in config}
    fields |= {name: tuple(config[f"image_{name}"]) for name in ("mean", "std") if f"image_{name}" in config}
    return KimiImageProcessor(**fields)


def _check_sides(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"an image of {width} x {height} pixels is empty")

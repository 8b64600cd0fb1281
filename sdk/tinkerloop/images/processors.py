"""Image processors: they compute from the width and height of an image how many tokens it takes.

Vision models resize an image and cut it into square patches. The model's image processor defines the resize rule. The
classes here compute the same rule exactly, without torch, torchvision or a download. So the `expected_tokens` of an
image chunk is the number of tokens that the model uses for the image.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tinkerloop.errors import ImageError


def _check_colours(name: str, values: Any) -> None:
    """Check the mean or the standard deviation of the three colour channels."""
    numbers = isinstance(values, tuple) and len(values) == 3
    numbers = numbers and all(isinstance(value, int | float) and math.isfinite(value) for value in values)
    if not numbers or (name == "std" and 0 in values):
        rule = "three finite numbers" + (" other than 0" if name == "std" else "")
        raise ImageError(f"{name} of an image processor must be {rule}, got {values!r}")


@dataclass(frozen=True)
class ImageProcessor:
    """Base class of the resize rules of one model family each. Subclasses implement `resized`."""

    patch_size: int = 16
    """Side of a square patch, in pixels."""
    merge_size: int = 2
    """Side of the square of patches that becomes one token, in patches."""
    temporal_patch_size: int = 2
    """Number of video frames per patch. A still image is repeated to fill them."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Values subtracted from the R, G and B channels, which are in [0, 1], before they are divided by `std`."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Values by which the R, G and B channels are divided, after `mean` is subtracted."""

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name in ("mean", "std"):
                _check_colours(entry.name, value)
            elif isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value < math.inf:
                raise ImageError(f"{entry.name} of an image processor must be a number >= 1, got {value!r}")
            elif entry.type == "int" and value != int(value):
                raise ImageError(f"{entry.name} of an image processor must be an integer, got {value!r}")

    @property
    def factor(self) -> int:
        """Side of the square of pixels that becomes one token, in pixels."""
        return self.patch_size * self.merge_size

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Return the (width, height) to which an image is scaled, before any padding.

        Raises:
            ImageError: a side is zero, or the aspect ratio is above the limit of the model family.
        """
        raise NotImplementedError

    def padded(self, width: int, height: int) -> tuple[int, int]:
        """Return the (width, height) of the scaled and padded image, which is cut into patches.

        Both are multiples of `factor`.
        """
        return self.resized(width, height)

    def grid(self, width: int, height: int) -> tuple[int, int, int]:
        """Return the number of patches along (time, height, width), which transformers calls `image_grid_thw`."""
        width, height = self.padded(width, height)
        return 1, height // self.patch_size, width // self.patch_size

    def tokens(self, width: int, height: int) -> int:
        """Return the number of tokens that an image takes."""
        width, height = self.padded(width, height)
        return (height // self.factor) * (width // self.factor)


@dataclass(frozen=True)
class QwenImageProcessor(ImageProcessor):
    """Resize rule of Qwen-VL: both sides become multiples of `factor`, and the area stays in [min_pixels, max_pixels].

    Sides are rounded to the nearest multiple, half to even as Python does. The defaults are those of Qwen3-VL and
    Qwen3.5. With them 224 x 224 pixels take 64 tokens, 400 x 300 take 108, and square images of 4096 x 4096 or more
    take 16,384.
    """

    min_pixels: int = 65_536
    max_pixels: int = 16_777_216
    max_aspect: float = 200

    def resized(self, width: int, height: int) -> tuple[int, int]:
        _check_sides(width, height)
        aspect = max(width, height) / min(width, height)
        if aspect > self.max_aspect:
            raise ImageError(
                f"the image of {width} x {height} pixels has an aspect ratio of {aspect:.1f}, but this model accepts "
                f"at most {self.max_aspect:g}; crop or pad the image"
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
    """Resize rule of Kimi K2.5 and K2.6.

    An image is scaled down, never up, until it has at most `max_patches` patches and at most `max_patches_per_side` on
    a side. Then it is padded to multiples of `factor`.
    """

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
"""Image processor of the built-in model `tiny-vl`. It is that of Qwen3-VL with smaller pixel limits.

Images are not enlarged to 65,536 pixels as for Qwen3-VL: 64 x 64 pixels take 4 tokens.
"""

_BY_NAME: tuple[tuple[str, ImageProcessor], ...] = (
    (r"qwen3-vl|qwen3\.[568]", QWEN3_VL),
    (r"qwen2(\.5)?-vl", QWEN2_VL),
    (r"kimi-k2\.[56]", KIMI_K25),
    (r"tiny-vl$", TINY_VL),
)


def get_image_processor(model_name: str) -> ImageProcessor:
    """Return the image processor of a model. `model_name` is a published name or a local folder.

    For a folder, the processor's configuration file in it is read.

    Raises:
        ImageError: the model does not accept images, or its image processor is not supported.
    """
    folder = Path(model_name)
    if folder.is_dir():
        for file, key in (("preprocessor_config.json", None), ("processor_config.json", "image_processor")):
            if (folder / file).exists():
                return _from_file(folder / file, key)
        raise ImageError(
            f"the model {model_name} accepts no images: its folder contains neither preprocessor_config.json "
            "nor processor_config.json"
        )
    name = model_name.split(":", 1)[0].rsplit("/", 1)[-1].lower()
    for pattern, processor in _BY_NAME:
        if re.match(pattern, name):
            return processor
    raise ImageError(
        f"no image processor is known for model {model_name!r}; expected Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Qwen3.5, "
        "Qwen3.6, Qwen3.8, Kimi-K2.5, Kimi-K2.6, tiny-vl, or a local folder with a preprocessor_config.json"
    )


def _from_file(file: Path, key: str | None) -> ImageProcessor:
    """Return the image processor whose configuration is in a JSON file, there in the entry `key` if one is given."""
    try:
        config = json.loads(file.read_bytes())
        config = config if key is None else config[key]
        if not isinstance(config, dict):
            raise TypeError(f"expected a JSON object, got {type(config).__name__}")
        return as_image_processor(config)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ImageError(
            f"{file} is not the configuration of a supported image processor, or is damaged: {error}; restore the "
            "file from the model's repository"
        ) from error


def as_image_processor(given: Any) -> ImageProcessor:
    """Return the `ImageProcessor` for an image processor of transformers, or for its configuration as a mapping.

    An `ImageProcessor` is returned unchanged.

    Raises:
        ImageError: `given` is none of these, or an image processor of a model family that is not supported.
    """
    if isinstance(given, ImageProcessor):
        return given
    config = given if isinstance(given, Mapping) else given.to_dict() if hasattr(given, "to_dict") else None
    if config is None:
        raise ImageError(
            f"expected an image processor or its configuration, got {type(given).__name__}; "
            "get_image_processor(model_name) returns one"
        )
    if "media_proc_cfg" in config:
        return _from_published_kimi_config(config["media_proc_cfg"])
    kind = str(config.get("image_processor_type") or type(given).__name__)
    size = dict(config.get("size") or {})
    shared = {name: config[name] for name in ("patch_size", "merge_size", "temporal_patch_size") if name in config}
    shared |= {name: tuple(config[f"image_{name}"]) for name in ("mean", "std") if config.get(f"image_{name}")}
    if re.match(r"Qwen[23](_5)?_?VL", kind):
        defaults = QwenImageProcessor(14, 2, 2, _CLIP_MEAN, _CLIP_STD, 3_136, 1_003_520)  # transformers' defaults
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
    raise ImageError(f"the image processor {kind} is not supported; expected one of Qwen-VL or Kimi")


def _from_published_kimi_config(config: Mapping[str, Any]) -> KimiImageProcessor:
    """Return the image processor for the published configuration of Kimi K2.5 and K2.6.

    `config` is the entry "media_proc_cfg" of preprocessor_config.json. Its keys differ from those of transformers.
    """
    if config.get("fixed_output_tokens") is not None:
        raise ImageError(
            "the option fixed_output_tokens of a Kimi image processor is not supported; expected no value or null, "
            "because the number of tokens is computed from the image's size"
        )
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
        raise ImageError(f"the image is empty: its size is {width} x {height} pixels")

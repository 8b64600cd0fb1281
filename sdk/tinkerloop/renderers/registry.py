"""Renderers by name: `get_renderer`, the built-in presets, and the registration of the user's own renderers."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from tinkerloop.errors import RenderError, UnknownRendererError
from tinkerloop.renderers.base import Renderer
from tinkerloop.renderers.core import check_tags_in_replies
from tinkerloop.renderers.format import Options

if TYPE_CHECKING:
    from tinkerloop.tokenizers.loading import Tokenizer

Preset = tuple[str, type[Renderer], Options]
Factory = Callable[..., Renderer]

_FAMILIES = (
    "families.deepseek_r1",
    "families.deepseekv3",
    "families.deepseekv4_1",
    "families.gemma3",
    "families.gemma4",
    "families.glm",
    "families.glm4",
    "families.gpt_oss",
    "families.granite3",
    "families.kimi",
    "families.llama3",
    "families.llama4",
    "families.mistral",
    "families.nemotron3",
    "families.qwen2_5",
    "families.qwen3",
    "families.qwen3_5",
    "families.role_colon",
    "families.tml_v0",
    "template",
)
_ALIASES = {"chatml": "qwen3_instruct", "qwen3vl": "qwen3_vl", "qwen3vl_instruct": "qwen3_vl_instruct"}
_ABSENT = ("kimi_k31_pro",)
"""Prefixes of the names of formats that the Tinker Cookbook has and this library does not."""
_REGISTERED: dict[str, Factory] = {}


@cache
def presets() -> dict[str, tuple[type[Renderer], Options]]:
    """Return a dictionary from every built-in name to its (renderer class, options)."""
    by_name: dict[str, tuple[type[Renderer], Options]] = {}
    for module in _FAMILIES:
        listed: Sequence[Preset] = import_module(f"tinkerloop.renderers.{module}").PRESETS
        by_name.update({name: (family, options) for name, family, options in listed})
    return by_name


def get_renderer(
    name: str,
    tokenizer: Tokenizer,
    image_processor: Any = None,
    model_name: str | None = None,
    max_length: int | None = None,
    *,
    options: Options | None = None,
    tags_in_replies: Literal["refuse", "text"] | None = None,
) -> Renderer:
    """Return the renderer called `name`, e.g. `get_renderer("qwen3", get_tokenizer("Qwen/Qwen3-8B"))`.

    Args:
        tokenizer: a tokenizer that has the control tokens of the chat format (such as `<|im_end|>`).
        image_processor: counts the tokens of images. If None, it is found by `model_name`.
        model_name: the name of the model, used only to find the image processor.
        max_length: the default `max_length` of `Rendered.to_datum`.
        options: used instead of the preset options of `name`. Must have the `Options` type of the renderer's class.
        tags_in_replies: what to do with a trained reply or a prefill that spells a tag of the format, such as
            `<tool_call>`: `"refuse"` raises an error and is the default; `"text"` keeps the tag as ordinary text.

    Raises:
        UnknownRendererError: no renderer has this name. The message suggests similar names.
        RenderError: `tokenizer` is not a tokenizer or lacks a control token of the format, `options` has the wrong
            type, or a registered factory did not return a `Renderer`.
    """
    if not isinstance(name, str) and isinstance(tokenizer, str):
        raise UnknownRendererError(
            f"the first argument must be the name of a renderer, got a {type(name).__name__}: are the arguments "
            f"swapped? Write get_renderer({tokenizer!r}, tokenizer)"
        )
    if not isinstance(name, str):
        raise UnknownRendererError(
            f"the name of a renderer must be a string, got {name!r}; see get_registered_renderer_names()"
        )
    if not hasattr(tokenizer, "decode"):
        raise RenderError(f"expected a tokenizer, got {tokenizer!r}; load one with get_tokenizer(model_name)")
    if name in _REGISTERED:
        if options is not None:
            raise RenderError(
                f"the registered renderer {name!r} does not accept options, got {options!r}; set them in its factory"
            )
        renderer = _REGISTERED[name](tokenizer, image_processor)
        if not isinstance(renderer, Renderer):
            raise RenderError(f"the factory of renderer {name!r} must return a Renderer, but it returned {renderer!r}")
        renderer.name, renderer.model_name = name, model_name
        renderer.max_length = max_length if max_length is not None else renderer.max_length
        if tags_in_replies is not None:
            renderer.tags_in_replies = check_tags_in_replies(tags_in_replies)
        return renderer
    preset = presets().get(_ALIASES.get(name, name))
    if preset is None and name.startswith(_ABSENT):
        raise UnknownRendererError(
            f"{name!r} is a format of the Tinker Cookbook that this library does not have, because the package of the "
            "Cookbook does not describe it; 'template' renders any model whose tokenizer has a chat_template, and "
            "register_renderer adds your own renderer"
        )
    if preset is None:
        known_names = get_registered_renderer_names()
        nearest = difflib.get_close_matches(name, known_names, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(nearest)}?" if nearest else f"expected one of {', '.join(known_names)}"
        raise UnknownRendererError(f"unknown renderer {name!r}; {hint}")
    family, preset_options = preset
    if options is not None and type(options) is not family.Options:
        raise RenderError(
            f"the options of renderer {name!r} must be a {family.Options.__name__}, got {type(options).__name__}"
        )
    return family(
        tokenizer,
        options or preset_options,
        name=name,
        image_processor=image_processor,
        model_name=model_name,
        max_length=max_length,
        tags_in_replies="refuse" if tags_in_replies is None else tags_in_replies,
    )


def register_renderer(name: str, factory: Factory) -> None:
    """Register a renderer: `get_renderer(name, ...)` will return `factory(tokenizer, image_processor)`.

    Raises:
        RenderError: a built-in renderer has this name.
    """
    if name in presets() or name in _ALIASES:
        raise RenderError(f"{name!r} is the name of a built-in renderer; choose another name")
    _REGISTERED[name] = factory


def unregister_renderer(name: str) -> bool:
    """Remove a renderer that `register_renderer` added. Return False if no renderer was registered as `name`."""
    return _REGISTERED.pop(name, None) is not None


def is_renderer_registered(name: str) -> bool:
    """Return whether `register_renderer` added a renderer called `name`; False for built-in names."""
    return name in _REGISTERED


def get_registered_renderer_names() -> list[str]:
    """Return all names that `get_renderer` accepts, including aliases, in alphabetical order."""
    return sorted({*presets(), *_ALIASES, *_REGISTERED})

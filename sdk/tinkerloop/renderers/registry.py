"""Renderers by name: `get_renderer`, the built-in presets, and renderers that users register."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from tinkerloop.errors import RenderError, UnknownRendererError
from tinkerloop.renderers.base import Renderer
from tinkerloop.renderers.format import Options

if TYPE_CHECKING:
    from tinkerloop.tokenizers.loading import Tokenizer

Preset = tuple[str, type[Renderer], Options]
Factory = Callable[..., Renderer]

_FAMILIES = (
    "families.deepseekv3",
    "families.glm",
    "families.gpt_oss",
    "families.kimi",
    "families.llama3",
    "families.nemotron3",
    "families.qwen3",
    "families.qwen3_5",
    "families.role_colon",
    "template",
)
_ALIASES = {"chatml": "qwen3_instruct", "qwen3vl": "qwen3_vl", "qwen3vl_instruct": "qwen3_vl_instruct"}
_ABSENT = ("deepseekv4_1", "kimi_k31_pro", "tml_v0")
"""Prefixes of the names of formats that the Cookbook has and this library does not."""
_REGISTERED: dict[str, Factory] = {}


@cache
def presets() -> dict[str, tuple[type[Renderer], Options]]:
    """Return every built-in name -> (family, options)."""
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
) -> Renderer:
    """Return the renderer called `name`, e.g. `get_renderer("qwen3", get_tokenizer("Qwen/Qwen3-8B"))`.

    Args:
        tokenizer: a tokenizer that has the format's control tokens.
        image_processor: counts the tokens of images; found by `model_name` if None.
        max_length: the default of its examples' `to_datum`.
        options: used in place of the options that the name stands for; must be of the family's own type.

    Raises:
        UnknownRendererError: no renderer has that name; names the nearest ones.
        RenderError: no tokenizer, one that lacks a control token of the format, or a factory that returned no renderer.
    """
    if not isinstance(name, str):
        raise UnknownRendererError(f"a renderer has a name, got {name!r}; get_registered_renderer_names lists them")
    if not hasattr(tokenizer, "decode"):
        raise RenderError(f"expected a tokenizer, got {tokenizer!r}; get_tokenizer loads one by a model's name")
    if name in _REGISTERED:
        if options is not None:
            raise RenderError(f"{name!r} is a renderer of your own, whose factory takes no options")
        renderer = _REGISTERED[name](tokenizer, image_processor)
        if not isinstance(renderer, Renderer):
            raise RenderError(f"the factory of {name!r} must return a Renderer, it returned {renderer!r}")
        renderer.name, renderer.model_name = name, model_name
        renderer.max_length = max_length if max_length is not None else renderer.max_length
        return renderer
    preset = presets().get(_ALIASES.get(name, name))
    if preset is None and name.startswith(_ABSENT):
        raise UnknownRendererError(
            f"{name!r} is a format of the Cookbook that this library does not have; 'template' renders any model "
            "whose tokenizer has a chat_template, and register_renderer adds a renderer of your own"
        )
    if preset is None:
        known_names = get_registered_renderer_names()
        nearest = difflib.get_close_matches(name, known_names, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(nearest)}?" if nearest else f"there are {', '.join(known_names)}"
        raise UnknownRendererError(f"no renderer is called {name!r}; {hint}")
    family, preset_options = preset
    if options is not None and type(options) is not family.Options:
        raise RenderError(f"{name!r} takes {family.Options.__name__}, got {type(options).__name__}")
    return family(
        tokenizer,
        options or preset_options,
        name=name,
        image_processor=image_processor,
        model_name=model_name,
        max_length=max_length,
    )


def register_renderer(name: str, factory: Factory) -> None:
    """Make `get_renderer(name, ...)` call `factory(tokenizer, image_processor)`.

    Raises:
        RenderError: a built-in renderer has that name.
    """
    if name in presets() or name in _ALIASES:
        raise RenderError(f"{name!r} is the name of a built-in renderer; choose another name")
    _REGISTERED[name] = factory


def unregister_renderer(name: str) -> bool:
    """Undo `register_renderer`. Return False if no renderer was registered under this name."""
    return _REGISTERED.pop(name, None) is not None


def is_renderer_registered(name: str) -> bool:
    """Return whether `register_renderer` was called for this name."""
    return name in _REGISTERED


def get_registered_renderer_names() -> list[str]:
    """Return all names that `get_renderer` knows, aliases included."""
    return sorted({*presets(), *_ALIASES, *_REGISTERED})

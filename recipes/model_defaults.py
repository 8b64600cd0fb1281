"""The model of a recipe: its options, those whose defaults depend on it, and its renderer. This is not a recipe.

The small models of the recipes need large learning rates, and `recipes/base` has the chat format of `qwen3_instruct`.
Every other model has its own chat format, and a learning rate by `tinkerloop.hyperparams`, or a share of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import chz

import tinkerloop
from tinkerloop.clients import ServiceClientLike
from tinkerloop.hyperparams import recommended_learning_rate
from tinkerloop.number_checks import check_whole
from tinkerloop.renderers import Renderer

BASE = "recipes/base"
SMALL = (BASE, "tiny", "tiny-vl")


NOISY_LOSS_SHARE = 0.1
"""The share of the recommended learning rate for losses with noisy gradients: policy losses and DPO.

With the whole, a model of 135M parameters learned nothing from `rl_arithmetic`: its rewards went up and down.
"""


def renderer_of(model: str) -> str:
    """Return the name of the renderer of a model."""
    return "qwen3_instruct" if model == BASE else tinkerloop.get_recommended_renderer_name(model)


def learning_rate_of(model: str, small: float, rank: int = 32, share: float = 1.0) -> float:
    """Return `small` for the small models of the recipes, else `share` of the model's recommended learning rate."""
    return small if model in SMALL else share * recommended_learning_rate(model, rank)


def held_out_field(default: int, doc: str) -> Any:
    """Return the option for how much is held out: a score needs at least one."""

    def munge(_: Any, number: int) -> int:
        check_whole("the number that is held out for evaluation", number, 1)
        return number

    return chz.field(default=default, munger=munge, doc=doc)


def renderer_field() -> Any:
    """Return the option for the name of the renderer; None is replaced by that of the configuration's model."""
    return chz.field(
        default=None,
        munger=lambda config, name: name or renderer_of(_model(config)),
        doc="Name of the renderer (chat format); by default the recommended one for the model.",
    )


def learning_rate_field(small: float, start: str = "Peak learning rate", share: float = 1.0) -> Any:
    """Return the option for the learning rate; None is replaced by `learning_rate_of` the configuration's model."""

    def munge(config: Any, rate: float | None) -> float:
        return (
            learning_rate_of(_model(config), small, getattr(config, "lora_rank", 32), share) if rate is None else rate
        )

    of_other = "the recommended one" if share == 1 else f"{share:g} times the recommended one"
    doc = f"{start}; by default {small:g} for the small model of the recipe, and {of_other} for another model."
    return chz.field(default=None, munger=munge, doc=doc)


def device_field() -> Any:
    """Return the option for the device of the embedded engine."""
    return chz.field(default=None, doc="Device of the embedded engine, such as cpu or cuda:1; by default cuda if any.")


def dtype_field() -> Any:
    """Return the option for the dtype of the base weights in the embedded engine."""
    return chz.field(
        default=None, doc="Dtype of the base weights in the embedded engine; by default bfloat16 on cuda, else float32."
    )


def dry_run_field() -> Any:
    """Return the option that prints the size of a run in place of training."""
    return chz.field(default=False, doc="Only print the size of the run, and neither train nor write anything.")


def _model(config: Any) -> str:
    return config.model if hasattr(config, "model") else config.model_name


@chz.chz
class ModelOptions:
    """The options that the recipes of reinforcement learning, preferences and distillation share."""

    model: str = chz.field(default=BASE, doc="Base model: a folder or a model name of the service.")
    renderer: str = renderer_field()
    service: str = chz.field(default="local", doc="Service to use: local, tinker, or a URL.")
    device: str | None = device_field()
    dtype: str | None = dtype_field()


def service_and_renderer(config: Any) -> tuple[ServiceClientLike, Renderer]:
    """Return the service of a configuration, whose local files are in the folder of the run, and its renderer."""
    service = tinkerloop.connect(
        config.service, root=Path(config.run) / "service", device=config.device, dtype=config.dtype
    )
    return service, tinkerloop.get_renderer(config.renderer, tinkerloop.get_tokenizer(config.model))

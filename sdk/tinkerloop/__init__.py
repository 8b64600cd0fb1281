"""A low-level training-loop SDK with pluggable callbacks for fine-tuning language models with the Tinker primitives.

This module has the names that most programs need. The other names are in `tinkerloop.callbacks`, `tinkerloop.clients`,
`tinkerloop.data`, `tinkerloop.loop`, `tinkerloop.renderers`, `tinkerloop.local`, `tinkerloop.rollouts`,
`tinkerloop.supervised` and `tinkerloop.testing`.

A module is imported when one of its names is first used. Neither torch nor transformers is imported before they are
needed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tinkerloop._version import __version__ as __version__

if TYPE_CHECKING:
    from tinkerloop import callbacks as callbacks
    from tinkerloop import data as data
    from tinkerloop import errors as errors
    from tinkerloop import loop as loop
    from tinkerloop import renderers as renderers
    from tinkerloop.connection import connect as connect
    from tinkerloop.datum import make_datum as make_datum
    from tinkerloop.datum_checks import check_datum as check_datum
    from tinkerloop.errors import TinkerloopError as TinkerloopError
    from tinkerloop.images.chunks import image_chunk as image_chunk
    from tinkerloop.images.processors import get_image_processor as get_image_processor
    from tinkerloop.loop import Boundary as Boundary
    from tinkerloop.loop import Callback as Callback
    from tinkerloop.loop import Checkpoints as Checkpoints
    from tinkerloop.loop import Eval as Eval
    from tinkerloop.loop import EvalResult as EvalResult
    from tinkerloop.loop import Log as Log
    from tinkerloop.loop import Loop as Loop
    from tinkerloop.loop import MicroBatch as MicroBatch
    from tinkerloop.loop import Pipeline as Pipeline
    from tinkerloop.loop import Plan as Plan
    from tinkerloop.loop import Record as Record
    from tinkerloop.loop import Run as Run
    from tinkerloop.loop import Save as Save
    from tinkerloop.loop import StepResult as StepResult
    from tinkerloop.loop import Stop as Stop
    from tinkerloop.loop import Summary as Summary
    from tinkerloop.loop import open_training_client as open_training_client
    from tinkerloop.loop import schedules as schedules
    from tinkerloop.model_info import get_recommended_renderer_name as get_recommended_renderer_name
    from tinkerloop.renderers import TrainOnWhat as TrainOnWhat
    from tinkerloop.renderers import get_renderer as get_renderer
    from tinkerloop.tokenizers import get_tokenizer as get_tokenizer

_NAMES = {
    "tinkerloop.connection": "connect",
    "tinkerloop.datum": "make_datum",
    "tinkerloop.datum_checks": "check_datum",
    "tinkerloop.errors": "TinkerloopError",
    "tinkerloop.images.chunks": "image_chunk",
    "tinkerloop.images.processors": "get_image_processor",
    "tinkerloop.loop": "Boundary Callback Checkpoints Eval EvalResult Log Loop MicroBatch Pipeline Plan Record Run "
    "Save StepResult Stop Summary open_training_client schedules",
    "tinkerloop.model_info": "get_recommended_renderer_name",
    "tinkerloop.renderers": "TrainOnWhat get_renderer",
    "tinkerloop.tokenizers": "get_tokenizer",
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names.split()}
_MODULES = ("callbacks", "data", "errors", "loop", "renderers")

__all__ = sorted([*_MODULE_OF, *_MODULES])  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"tinkerloop.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'tinkerloop' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULE_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

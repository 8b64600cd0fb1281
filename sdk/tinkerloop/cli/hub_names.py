"""Hub names of models that stand for local folders, in the programs that `tinkerloop run` starts.

The tinker client loads a model's tokenizer by the model's name, in the program's own process. There the method
`from_pretrained` of transformers' Auto classes gets the folder instead of the name. The names are in an environment
variable, so processes that the program starts have them too.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

VARIABLE = "TINKERLOOP_HUB_NAMES"
_CLASSES = {
    "transformers.models.auto.configuration_auto": "AutoConfig",
    "transformers.models.auto.image_processing_auto": "AutoImageProcessor",
    "transformers.models.auto.processing_auto": "AutoProcessor",
    "transformers.models.auto.tokenization_auto": "AutoTokenizer",
}
_LLAMA = "thinkingmachineslabinc/meta-llama-3-instruct-tokenizer"
"""The name with which the client loads the tokenizer of every model whose name begins with meta-llama/Llama-3."""


def environment_of(folders: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables with which a program reads `folders`, a mapping from hub name to folder."""
    names = dict(folders)
    for name, folder in folders.items():
        if name.startswith("meta-llama/Llama-3"):
            names.setdefault(_LLAMA, folder)
    return {VARIABLE: json.dumps(names)}


def redirect_hub_names() -> None:
    """Let transformers' Auto classes load from the folders of the environment variable. Nothing is imported now."""
    if names := json.loads(os.environ.get(VARIABLE, "{}")):
        sys.meta_path.insert(0, _Finder(names))


class _Finder:
    """Import hook that changes a module of `_CLASSES` directly after its import."""

    def __init__(self, names: Mapping[str, str]):
        self._names = names
        self._searching = False

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in _CLASSES or self._searching:
            return None
        self._searching = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._searching = False
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _redirect(getattr(module, _CLASSES[name]), self._names)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _redirect(auto: Any, names: Mapping[str, str]) -> None:
    """Let `auto.from_pretrained` load from the folder of a name."""
    original = auto.from_pretrained

    @functools.wraps(original)
    def from_pretrained(name: Any, *args: Any, **kwargs: Any) -> Any:
        return original(names.get(str(name), name), *args, **kwargs)

    auto.from_pretrained = from_pretrained

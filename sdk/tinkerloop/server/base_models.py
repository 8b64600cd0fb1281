"""The base models that a server offers: an allow-list of names, each with the folder from which it is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tinkerloop.errors import TinkerloopError
from tinkerloop.tokenizers.loading import BUILT_IN


def read_models(options: Sequence[str]) -> dict[str, str]:
    """Return the base models of `--model NAME=FOLDER` options: a mapping from name to folder.

    A built-in model is given by its name alone.

    >>> read_models(["tiny"])
    {'tiny': 'tiny'}

    Raises:
        TinkerloopError: an option has another form, a folder has no config.json, or a name is given twice.
    """
    models: dict[str, str] = {}
    for option in options:
        name, sign, folder = option.partition("=")
        if not sign and name in BUILT_IN:
            folder = name
        elif not name or not folder:
            raise TinkerloopError(
                f"--model {option!r} is not of the form NAME=FOLDER; without a folder only a built-in model can be "
                f"given: {' or '.join(BUILT_IN)}"
            )
        elif not (Path(folder).expanduser() / "config.json").is_file():
            raise TinkerloopError(f"--model {option!r}: {folder} has no config.json, so it is no folder of a model")
        else:
            folder = str(Path(folder).expanduser().absolute())
        if name in models:
            raise TinkerloopError(f"--model gives the name {name!r} twice; a name stands for one folder")
        models[name] = folder
    return models


def write_built_in_tokenizer(folder: Path) -> Path:
    """Write the tokenizer of the built-in models to `folder`, as files that transformers can load. Return `folder`."""
    from tinkerloop.tokenizers.tiny_tokenizer import tiny_tokenizer

    tiny_tokenizer().save_pretrained(folder)
    return folder

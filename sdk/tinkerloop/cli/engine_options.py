"""The options for the models and the engine of `tinkerloop serve` and `tinkerloop run`.

They are read without an import of torch, which takes seconds, so that a wrong option is refused at once.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from tinkerloop.cli.text_options import non_empty_path
from tinkerloop.errors import TinkerloopError
from tinkerloop.tokenizers.loading import BUILT_IN

_DTYPES = ("bfloat16", "float16", "float32", "float64", "half", "float", "double")
_DEVICE = re.compile(r"(cpu|cuda|mps|xpu)(:\d+)?")


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options for the models and the engine."""
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="A base model: the name that programs use, and the folder with the model. It can be given several times; "
        'no other model can be opened. "tiny" and "tiny-vl" are built in and need no folder.',
    )
    parser.add_argument("--root", type=non_empty_path, help="The folder of the checkpoints (default: ~/.tinkerloop).")
    parser.add_argument(
        "--device", type=device_name, help="The torch device (default: cuda if there is a GPU, otherwise cpu)."
    )
    parser.add_argument(
        "--dtype",
        type=dtype_name,
        help="The dtype of the base weights (default: bfloat16 on cuda, otherwise float32).",
    )


def device_name(written: str) -> str:
    """Return the name of a torch device for argparse's `type=`."""
    if not _DEVICE.fullmatch(written):
        raise argparse.ArgumentTypeError(f"expected a torch device, such as cpu, cuda or cuda:1, got {written!r}")
    return written


def dtype_name(written: str) -> str:
    """Return the name of a floating-point dtype for argparse's `type=`."""
    if written not in _DTYPES:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(_DTYPES)}, got {written!r}")
    return written


def read_models(options: Sequence[str]) -> dict[str, str]:
    """Return the base models of `--model NAME=FOLDER` options: a mapping from name to folder.

    A built-in model is given by its name alone.

    >>> read_models(["tiny"])
    {'tiny': 'tiny'}

    Raises:
        TinkerloopError: an option has another form, a folder has no config.json, or a name is given twice or is that
            of a built-in model.
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
        elif name in BUILT_IN:
            # The tokenizer of this name would still be the built-in one in every program.
            raise TinkerloopError(
                f"--model {option!r}: {name!r} is the name of a built-in model; give the folder another name, such as "
                f"my/{name}={folder}, which the program then uses"
            )
        elif not (Path(folder).expanduser() / "config.json").is_file():
            raise TinkerloopError(f"--model {option!r}: {folder} has no config.json, so it is no folder of a model")
        else:
            folder = str(Path(folder).expanduser().absolute())
        if name in models:
            raise TinkerloopError(f"--model gives the name {name!r} twice; a name stands for one folder")
        models[name] = folder
    return models

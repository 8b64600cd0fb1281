"""Loading of tokenizers by name."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinkerloop.errors import TinkerloopError
from tinkerloop.extras import needs_extra
from tinkerloop.tokenizers.encoders import HuggingFaceEncoder, LazyTokenizer, fastest
from tinkerloop.tokenizers.tiktoken_file import RANKS_FILE, tokenizer_from_ranks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    Tokenizer = PreTrainedTokenizerBase


BUILT_IN = ("tiny", "tiny-vl")
"""The names of the built-in models, which need no files."""

NO_HUB_NAME = (
    f"it is no folder and no built-in model (these are {' and '.join(BUILT_IN)}), and a name of the Hugging Face hub "
    "has the form OWNER/NAME"
)
"""The reason why a name without a slash cannot be loaded."""


def absolute_name(name: str | Path) -> str:
    """Return the name of a model; for a folder that exists, its absolute path.

    A relative path would mean another model after a change of the working directory.
    """
    is_folder = str(name) not in ("", *BUILT_IN) and Path(name).is_dir()  # Path("") is the working directory
    return str(Path(name).absolute() if is_folder else name)


def get_tokenizer(name: str | Path) -> Tokenizer:
    """Return the tokenizer of a model. `name` is a hub name or a local folder. The result is cached.

    `"tiny"` and `"tiny-vl"` have the same built-in tokenizer. It is loaded without torch. For other tokenizers
    transformers imports torch, if it is installed.

    Python code that comes with a model is never run. transformers raises an error for a tokenizer that needs such code.
    A folder with a `tiktoken.model` and no `tokenizer.json` (as for Kimi models) is read without the model's code.

    The hub is not asked for a name without a slash, because a hub name is OWNER/NAME; a model with such a name is
    loaded only if it is in the hub's cache on this machine.

    A suffix after a colon in a hub name (`"Qwen/Qwen3-8B:peft"`) is ignored. It names a variant of the model on a
    hosted service.

    Raises:
        TinkerloopError: the tokenizer cannot be loaded.
        MissingPackageError: transformers is not installed.
    """
    return _load(absolute_name(name))


@functools.lru_cache(maxsize=32)
def _load(name: str) -> Tokenizer:
    if name in BUILT_IN:
        with needs_extra("local", "a tokenizer"):
            from tinkerloop.tokenizers.tiny_tokenizer import tiny_tokenizer

            return tiny_tokenizer()
    with needs_extra("local", "a tokenizer"):
        from transformers import AutoTokenizer

    folder = Path(name)
    is_folder = folder.is_dir()
    if is_folder and (folder / RANKS_FILE).is_file() and not (folder / "tokenizer.json").is_file():
        return tokenizer_from_ranks(folder)
    is_hub_name = not is_folder and "/" in name
    try:
        return AutoTokenizer.from_pretrained(
            name if is_folder else name.partition(":")[0],
            trust_remote_code=False,
            local_files_only=not is_hub_name,
        )
    except (OSError, ValueError) as error:
        if not is_folder and not is_hub_name:
            raise TinkerloopError(f"cannot load the tokenizer of {name!r}: {NO_HUB_NAME}") from error
        where = "" if is_folder else " (no such local folder, so it was searched on the hub)"
        raise TinkerloopError(f"cannot load the tokenizer of {name!r}{where}: {error}") from error


def tokenizer_to_render(name: str) -> Any:
    """Return a tokenizer for renderers. The built-in one does not import transformers before a renderer needs that."""
    if name not in BUILT_IN:
        return get_tokenizer(name)
    with needs_extra("local", "a tokenizer"):
        from tinkerloop.tokenizers.tiny_tokenizer import tiny_core, tiny_tokenizer
    return LazyTokenizer(fastest(HuggingFaceEncoder(tiny_core())), tiny_tokenizer)

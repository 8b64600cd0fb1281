"""Loading of tokenizers by name."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from tinkerloop.errors import TinkerloopError
from tinkerloop.tokenizers.tiktoken_file import RANKS_FILE, tokenizer_from_ranks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    Tokenizer = PreTrainedTokenizerBase


@functools.lru_cache(maxsize=32)
def get_tokenizer(name: str | Path) -> Tokenizer:
    """Return the tokenizer of a model, by hub name or local folder; cached.

    `"tiny"` and `"tiny-vl"` share the built-in one.

    Code that comes with a model is never run: a tokenizer that needs it is refused by transformers, and a folder that
    has a `tiktoken.model` instead of a `tokenizer.json`, as Kimi's have, is read without it. A suffix after a colon
    (`"Qwen/Qwen3-8B:peft"`) names a service's variant of the model and is not part of the tokenizer's name.

    The built-in one is loaded without torch. For others transformers itself imports torch, if it is installed.

    Raises:
        TinkerloopError: it cannot be loaded.
    """
    name = str(name)
    if name in ("tiny", "tiny-vl"):
        from tinkerloop.tokenizers.tiny_tokenizer import tiny_tokenizer

        return tiny_tokenizer()
    from transformers import AutoTokenizer

    folder = Path(name)
    is_folder = folder.is_dir()
    if is_folder and (folder / RANKS_FILE).is_file() and not (folder / "tokenizer.json").is_file():
        return tokenizer_from_ranks(folder)
    try:
        return AutoTokenizer.from_pretrained(name if is_folder else name.partition(":")[0], trust_remote_code=False)
    except (OSError, ValueError) as error:
        where = "" if is_folder else " (no such folder here, so looked for on the hub)"
        raise TinkerloopError(f"cannot load the tokenizer of {name!r}{where}: {error}") from error

"""The tokenizer of the built-in base models, as files for the programs that use the server."""

from __future__ import annotations

from pathlib import Path


def write_built_in_tokenizer(folder: Path) -> Path:
    """Write the tokenizer of the built-in models to `folder`, as files that transformers can load. Return `folder`."""
    from tinkerloop.tokenizers.tiny_tokenizer import tiny_tokenizer

    tiny_tokenizer().save_pretrained(folder)
    return folder

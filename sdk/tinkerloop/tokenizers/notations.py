"""Notations of vocabularies: the ways in which the tokens of a vocabulary spell bytes.

* byte-level: one printable character for each byte (GPT-2, Llama 3, Qwen).
* SentencePiece: the text itself, with `▁` for a space and `<0x0A>` for a single byte (Llama 2, Mistral 7B, Gemma).

The same token can stand for other bytes in the other notation: `é` is the byte E9 or the two bytes of the letter.
Therefore the notation is decided once for each tokenizer. Added tokens, such as <|im_end|>, are literal in both.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

SPACE_MARK = "\u2581"
"""The character `▁`, which stands for a space in SentencePiece vocabularies."""
_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")


def is_byte_level(spec: Mapping[str, Any]) -> bool:
    """Return whether the vocabulary of a `tokenizer.json` is byte-level, as its steps tell."""
    sections = (spec.get(section) for section in ("normalizer", "pre_tokenizer", "decoder"))
    return any(step["type"] == "ByteLevel" for section in sections for step in steps(section))


def steps(section: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """Yield the steps of a section of a `tokenizer.json`, such as its decoder. A `Sequence` contains further steps."""
    if section is None:
        return
    yield section
    for value in section.values():
        for inner in value if isinstance(value, list) else ():
            if isinstance(inner, dict) and "type" in inner:
                yield from steps(inner)


def is_blank(token: str) -> bool:
    """Return whether a token consists only of white space or of characters that stand for spaces."""
    return not token.replace(SPACE_MARK, " ").strip()


@functools.cache
def byte_of_character() -> dict[str, int]:
    """Return a mapping from each printable character that stands for a byte in byte-level vocabularies to this byte.

    The characters are those of GPT-2.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(b): b for b in printable} | {chr(0x100 + n): b for n, b in enumerate(others)}


def bytes_of_byte_level(token: str) -> bytes:
    """Return the bytes of a token of a byte-level vocabulary. A token with other characters is literal."""
    table = byte_of_character()
    try:
        return bytes(table[character] for character in token)
    except KeyError:
        return token.encode()


def bytes_of_sentencepiece(token: str) -> bytes:
    """Return the bytes of a token of a SentencePiece vocabulary."""
    if byte := _BYTE.fullmatch(token):
        return bytes.fromhex(byte[1])
    return token.replace(SPACE_MARK, " ").encode()


class TokenBytes(dict[int, bytes]):
    """Mapping from token id to the bytes that the token stands for. An entry is computed at its first use.

    Args:
        id_to_token: returns the token of an id, or None.
        literal: the tokens that stand for their own text, such as <|im_end|>.
        bytes_of: returns the bytes of any other token.
    """

    def __init__(self, id_to_token: Callable[[int], str | None], literal: dict[int, str], bytes_of: Any):
        super().__init__({i: token.encode() for i, token in literal.items()})
        self._id_to_token, self._bytes_of = id_to_token, bytes_of

    def __missing__(self, token_id: int) -> bytes:
        try:
            token = self._id_to_token(token_id)
        except (OverflowError, TypeError):  # the id is negative or too large for the tokenizer's integer type
            token = None
        spelled = self[token_id] = "\ufffd".encode() if token is None else self._bytes_of(token)
        return spelled

    def __reduce__(self) -> Any:
        raise TypeError("cannot pickle TokenBytes: pickle the tokenizer, and call encoder_of on it after loading")

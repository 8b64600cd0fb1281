"""Tokenizers, and the encoders that renderers write with.

`get_tokenizer` finds a Hugging Face tokenizer. `encoder_of` gives its `Encoder`, which encodes *ordinary text only*.
A string that spells a control token is encoded as the characters it consists of, because the encoder does not know
the control vocabulary at all; control tokens enter a sequence by id and in no other way.
"""

from __future__ import annotations

import functools
import json
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tinkerloop.errors import TinkerloopError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    Tokenizer = PreTrainedTokenizerBase


@functools.lru_cache(maxsize=32)
def get_tokenizer(name: str | Path) -> Tokenizer:
    """The tokenizer of a model, by hub name or local folder; `"tiny"` is the built-in one. Calls are cached.

    Code that comes with a model is never run: a tokenizer that needs it is refused by transformers. A suffix after
    a colon (`"Qwen/Qwen3-8B:peft"`) names a service's variant of the model and is not part of the tokenizer's name.
    """
    name = str(name)
    if name == "tiny":
        from tinkerloop.local.tiny import tiny_tokenizer

        return tiny_tokenizer()
    from transformers import AutoTokenizer

    is_folder = Path(name).is_dir()
    return AutoTokenizer.from_pretrained(name if is_folder else name.partition(":")[0], trust_remote_code=False)


class Encoder(Protocol):
    """Ordinary text to ids and back. Implementations are safe to call from several threads."""

    name: str

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, none of them a control token."""
        ...

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes the ids spell, control tokens by their name; an unknown id gives U+FFFD. Never raises."""
        ...

    def id_of(self, token: str) -> int | None:
        """The id of the control token spelled `token`, if the vocabulary has it."""
        ...


class HuggingFaceEncoder:
    """The reference encoder: a copy of the Hugging Face tokenizer whose added vocabulary has been removed."""

    name = "huggingface"

    def __init__(self, tokenizer: Tokenizer):
        from tokenizers import Tokenizer as Core

        core = getattr(tokenizer, "backend_tokenizer", None)
        if core is None:
            raise TinkerloopError(
                f"expected a fast tokenizer (with `backend_tokenizer`), got {type(tokenizer).__name__}"
            )
        self._ids: dict[str, int] = {token.content: i for i, token in core.get_added_tokens_decoder().items()}
        self._core = Core.from_str(ordinary_json(core.to_str()))
        self._bytes = TokenBytes(core.id_to_token, {i: t for t, i in self._ids.items()})

    def encode(self, text: str) -> list[int]:
        return self._core.encode(text, add_special_tokens=False).ids

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return b"".join(map(self._bytes.__getitem__, ids))

    def id_of(self, token: str) -> int | None:
        found = self._ids.get(token)
        return self._core.token_to_id(token) if found is None else found


def ordinary_json(tokenizer_json: str) -> str:
    """A `tokenizer.json` without the added tokens, the post-processor and any truncation or padding.

    Added tokens that are pure whitespace stay: some vocabularies keep runs of newlines or spaces there, and they are
    text, not control.
    """
    spec = json.loads(tokenizer_json)
    spec["added_tokens"] = [t for t in spec.get("added_tokens", ()) if not t["content"].strip()]
    spec["post_processor"] = spec["truncation"] = spec["padding"] = None
    return json.dumps(spec, ensure_ascii=False)


class TokenBytes(dict[int, bytes]):
    """Token id -> the bytes it spells, worked out on first use.

    Knows the two spellings in use: byte-level (one printable character per byte) and SentencePiece's (`▁` for a space,
    `<0x0A>` for a byte).
    """

    def __init__(self, id_to_token: Any, control: dict[int, str]):
        super().__init__({i: token.encode() for i, token in control.items()})
        self._id_to_token = id_to_token

    def __missing__(self, token_id: int) -> bytes:
        try:
            token = self._id_to_token(token_id)
        except (OverflowError, TypeError):  # negative or huge
            token = None
        spelled = "\ufffd".encode() if token is None else _spelled_bytes(token)
        self[token_id] = spelled
        return spelled

    def __reduce__(self) -> Any:
        raise TypeError("a token table belongs to its encoder and is rebuilt with it")


def _spelled_bytes(token: str) -> bytes:
    table = _byte_of_character()
    try:
        return bytes(table[character] for character in token)
    except KeyError:
        pass
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes.fromhex(token[3:5])
    return token.replace("\u2581", " ").encode()


@functools.cache
def _byte_of_character() -> dict[str, int]:
    """The printable characters that byte-level vocabularies write for the bytes 0..255 (as GPT-2 chose them)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(b): b for b in printable} | {chr(0x100 + n): b for n, b in enumerate(others)}


_ENCODERS: weakref.WeakKeyDictionary[Any, Encoder] = weakref.WeakKeyDictionary()


def encoder_of(tokenizer: Tokenizer) -> Encoder:
    """The encoder of a tokenizer, built once for each tokenizer object."""
    encoder = _ENCODERS.get(tokenizer)
    if encoder is None:
        encoder = _ENCODERS[tokenizer] = HuggingFaceEncoder(tokenizer)
    return encoder

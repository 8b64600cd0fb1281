"""Encoders: ordinary text to ids and back, by the fastest engine that gives the right ids.

An encoder knows nothing of the control vocabulary: a string that spells a control token is encoded as the characters it
consists of. Control tokens enter a sequence by id (`id_of`) and in no other way.

Engines, in order of preference: fastokens and tiktoken (the extra `tinkerloop-sdk[fast]`), then the Hugging Face
tokenizer itself, which is the reference. An engine that differs from the reference on a fixed list of strings,
or on a sample of the vocabulary, is not used.
"""

from __future__ import annotations

import functools
import json
import logging
import threading
import unicodedata
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from tinkerloop.errors import TinkerloopError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


class Encoder(Protocol):
    """A converter of ordinary text to ids and back. Implementations can be called from several threads."""

    name: str

    def encode(self, text: str, /) -> list[int]:
        """The ids of `text`, none of them a control token."""
        ...

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes the ids spell, control tokens by their name; an unknown id gives U+FFFD. Never raises."""
        ...

    def id_of(self, token: str) -> int | None:
        """The id of the control token spelled `token`, if the vocabulary has it."""
        ...


class HuggingFaceEncoder:
    """The reference: a copy of the Hugging Face tokenizer whose added vocabulary has been removed."""

    name = "huggingface"

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        from tokenizers import Tokenizer as Core

        core = getattr(tokenizer, "backend_tokenizer", None)
        if core is None:
            raise TinkerloopError(
                f"expected a fast tokenizer (with `backend_tokenizer`), got {type(tokenizer).__name__}"
            )
        self._ids: dict[str, int] = {token.content: i for i, token in core.get_added_tokens_decoder().items()}
        self.json = ordinary_json(core.to_str())
        self._core = Core.from_str(self.json)
        self._bytes = TokenBytes(core.id_to_token, {i: t for t, i in self._ids.items()})

    def encode(self, text: str) -> list[int]:
        return self._core.encode(text, add_special_tokens=False).ids

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return b"".join(map(self._bytes.__getitem__, ids))

    def some_tokens(self, count: int) -> list[str]:
        """Return the text of about `count` tokens, spread over the whole vocabulary."""
        size = self._core.get_vocab_size()
        spelled = (self._bytes[i].decode("utf-8", "ignore") for i in range(0, size, max(1, size // count)))
        return [text for text in spelled if text]

    def id_of(self, token: str) -> int | None:
        token_id = self._ids.get(token)
        return self._core.token_to_id(token) if token_id is None else token_id


def ordinary_json(tokenizer_json: str) -> str:
    """Return a `tokenizer.json` without its added tokens, post-processor, truncation and padding.

    Added tokens of whitespace only stay: some vocabularies have runs of newlines or spaces there, which are text.
    """
    spec = json.loads(tokenizer_json)
    spec["added_tokens"] = [t for t in spec.get("added_tokens", ()) if not t["content"].strip()]
    spec["post_processor"] = spec["truncation"] = spec["padding"] = None
    return json.dumps(spec, ensure_ascii=False)


class TokenBytes(dict[int, bytes]):
    """A table of token id -> the bytes it spells, filled on first use.

    It reads the two spellings in use: byte-level (one printable character per byte) and SentencePiece's (`▁` for a
    space, `<0x0A>` for a byte).
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
    table = byte_of_character()
    try:
        return bytes(table[character] for character in token)
    except KeyError:
        pass
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes.fromhex(token[3:5])
    return token.replace("\u2581", " ").encode()


@functools.cache
def byte_of_character() -> dict[str, int]:
    """Return the byte 0..255 of each printable character that byte-level vocabularies use for it (GPT-2's choice)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(b): b for b in printable} | {chr(0x100 + n): b for n, b in enumerate(others)}


class FastEncoder:
    """An encoder that encodes with another engine, and otherwise uses the reference."""

    def __init__(self, reference: HuggingFaceEncoder, name: str):
        self.name = name
        self.encode = ENGINES[name](reference.json)
        self.decode_bytes = reference.decode_bytes
        self.id_of = reference.id_of


def _fastokens(tokenizer_json: str) -> Callable[[str], list[int]]:
    import fastokens

    core = fastokens.Tokenizer.from_json_str(tokenizer_json)
    return lambda text: core.encode_ordinary(text).ids


def _tiktoken(tokenizer_json: str) -> Callable[[str], list[int]]:
    """Make an `encode` for byte-level BPE with one split pattern, where a token's id is the rank of its merge."""
    import tiktoken

    spec = json.loads(tokenizer_json)
    splits = (spec.get("pre_tokenizer") or {}).get("pretokenizers", [])
    patterns = [step["pattern"]["Regex"] for step in splits if step["type"] == "Split"]
    normalizer = (spec.get("normalizer") or {}).get("type")
    if spec["model"]["type"] != "BPE" or len(patterns) != 1 or normalizer not in (None, "NFC"):
        raise ValueError("tiktoken cannot read this vocabulary")
    table = byte_of_character()
    vocabulary = spec["model"]["vocab"].items()
    ranks = {bytes(table[c] for c in token): i for token, i in vocabulary if all(c in table for c in token)}
    pattern = patterns[0]
    if pattern.endswith(_LAST_SPACE):  # matches the same; without lookahead the rest runs as one automaton, 20 % faster
        pattern = f"(?:{pattern.removesuffix(_LAST_SPACE)}){_LAST_SPACE}"
    core = tiktoken.Encoding("ordinary", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    encode = core.encode_ordinary
    return encode if normalizer is None else lambda text: encode(unicodedata.normalize("NFC", text))


_LAST_SPACE = r"|\s+(?!\S)|\s+"
"""The end of most split patterns: the last of several spaces is joined with what follows."""


ENGINES: dict[str, Callable[[str], Callable[[str], list[int]]]] = {"fastokens": _fastokens, "tiktoken": _tiktoken}
"""The fast engines by name, fastest first: each makes an `encode` function from an `ordinary_json`."""

_ENCODERS: weakref.WeakKeyDictionary[Any, Encoder] = weakref.WeakKeyDictionary()
_BUILDING = threading.Lock()


def encoder_of(tokenizer: PreTrainedTokenizerBase) -> Encoder:
    """Return the fastest encoder that agrees with a tokenizer; chosen once for each tokenizer object."""
    with _BUILDING:
        encoder = _ENCODERS.get(tokenizer)
        if encoder is None:
            encoder = _ENCODERS[tokenizer] = _fastest(HuggingFaceEncoder(tokenizer))
    return encoder


def _fastest(reference: HuggingFaceEncoder) -> Encoder:
    strings = (*probes(), *reference.some_tokens(200))
    expected = [reference.encode(string) for string in strings]
    for name in ENGINES:
        try:
            encoder = FastEncoder(reference, name)
            ids = [encoder.encode(string) for string in strings]
        except Exception as error:  # not installed, or not for this vocabulary: fall back to the reference
            logger.debug("%s cannot encode for this tokenizer: %s", name, error)
            continue
        wrong = next((p for p, a, b in zip(strings, expected, ids, strict=True) if a != b), None)
        if wrong is None:
            return encoder
        logger.warning("%s encodes %r differently from the Hugging Face tokenizer and is not used", name, wrong)
    return reference


@functools.cache
def probes() -> tuple[str, ...]:
    """Return the strings on which encoders are compared: they exercise splits, merges and normalisation."""
    words = ["the", "don't", "I'LL", "naïve", "é", "ſt", "Straße", "ИЗ", "你好", "日本語の", "한국어", "สวัสดี", "עברית"]
    others = ["👩🏽\u200d🚀", "\ufeff", "\u200b", "\u00a0", "\x00", "\x85", "\u2028", "\ufffd", "\U000e0001"]
    numbers = ["1", "12", "123", "1234567", "3.14e-10", "١٢٣", "½", "Ⅷ"]
    marks = [
        "!",
        "?!",
        "...",
        "—",
        "«a»",
        "(){}[]",
        "</",
        "/>",
        "#include<a>",
        "=>",
        "https://a.b/c?d=e",
        "a_b-c",
        "$x",
    ]
    spaces = [" ", "  ", "    ", "\t", "\t\t", "\n", "\n\n", "\n\n\n", "\r\n", "\r", " \n ", "\n  \n", "\x0b", "\u3000"]
    tags = ["<|im_start|>", "<|im_end|>", "<think>", "</think>", "<|endoftext|>", "<tool_call>", "<|eot_id|>", "[INST]"]
    single = [*words, *others, *numbers, *marks, *spaces, *tags]
    joined = [
        a + s + b for s in spaces[:11] for a, b in (("a", "b"), ("the.", "42"), (">", "<"), ("你", "naïve"), ("", "x!"))
    ]
    code = 'def f(x):\n    """Doc."""\n    return {"a": [1, 2.5, None], **x}  # ok\n\n\nclass A:\n\tpass\n'
    return ("", *single, *joined, code, " ".join(single), "".join(single), "a" * 300, " " * 200, "ab" * 200)

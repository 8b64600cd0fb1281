"""Encoders: they convert ordinary text to token ids and back, with the fastest library that gives correct ids.

`encode` never returns a control token (such as <|im_end|>): text that spells a control token is encoded as ordinary
characters. Only `id_of` returns the ids of control tokens.

The libraries, called engines here, are tried in this order: fastokens, tiktoken (both from the extra
`tinkerloop-sdk[fast]`), and the Hugging Face tokenizer, which is the reference. An engine is not used if its ids differ
from the reference on a fixed list of strings or on a sample of the vocabulary.
"""

from __future__ import annotations

import functools
import json
import logging
import re
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from tinkerloop.errors import TinkerloopError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


class Encoder(Protocol):
    """Converter of ordinary text to token ids and back. Several threads may use one encoder at the same time."""

    name: str

    def encode(self, text: str, /) -> list[int]:
        """Return the token ids of `text`. No control token (such as <|im_end|>) is among them."""
        ...

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Return the bytes that the token ids stand for. Never raises.

        A control token gives its name, such as <|im_end|>. An unknown id gives U+FFFD in UTF-8.
        """
        ...

    def id_of(self, token: str) -> int | None:
        """Return the id of the control token with the name `token`, such as <|im_end|>, or None if there is none."""
        ...


class HuggingFaceEncoder:
    """Reference encoder: a copy of a Hugging Face tokenizer without its added tokens.

    `tokenizer` is the tokenizer of transformers or the `tokenizers.Tokenizer` inside it.
    """

    name = "huggingface"

    def __init__(self, tokenizer: PreTrainedTokenizerBase | Tokenizer):
        is_core = hasattr(tokenizer, "get_added_tokens_decoder")
        core: Any = tokenizer if is_core else getattr(tokenizer, "backend_tokenizer", None)
        if core is None:
            raise TinkerloopError(
                f"{type(tokenizer).__name__} is not supported: it has no `backend_tokenizer`; "
                "load a fast tokenizer (PreTrainedTokenizerFast)"
            )
        self._ids: dict[str, int] = {token.content: i for i, token in core.get_added_tokens_decoder().items()}
        self.json = ordinary_json(core.to_str())

    @functools.cached_property
    def _core(self) -> Any:
        from tokenizers import Tokenizer as Core

        return Core.from_str(self.json)

    @functools.cached_property
    def _bytes(self) -> TokenBytes:
        return TokenBytes(self._core.id_to_token, {i: t for t, i in self._ids.items()})

    def __getstate__(self) -> dict[str, Any]:
        return {"_ids": self._ids, "json": self.json}

    def encode(self, text: str) -> list[int]:
        return self._core.encode(text, add_special_tokens=False).ids

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return b"".join(map(self._bytes.__getitem__, ids))

    def some_tokens(self, count: int) -> list[str]:
        """Return the texts of about `count` tokens, at regular steps through the whole vocabulary."""
        size = self._core.get_vocab_size()
        spelled = (self._bytes[i].decode("utf-8", "ignore") for i in range(0, size, max(1, size // count)))
        return [text for text in spelled if text]

    def id_of(self, token: str) -> int | None:
        token_id = self._ids.get(token)
        return self._core.token_to_id(token) if token_id is None else token_id


def ordinary_json(tokenizer_json: str) -> str:
    """Return the contents of a `tokenizer.json` without its added tokens, post-processor, truncation and padding.

    Added tokens that consist only of whitespace are kept. Some vocabularies store runs of newlines or spaces as added
    tokens, and these are ordinary text.
    """
    spec = json.loads(tokenizer_json)
    spec["added_tokens"] = [t for t in spec.get("added_tokens", ()) if not t["content"].strip()]
    spec["post_processor"] = spec["truncation"] = spec["padding"] = None
    return json.dumps(spec, ensure_ascii=False)


class TokenBytes(dict[int, bytes]):
    """Mapping from token id to the bytes that the token stands for. An entry is computed at its first use.

    Two notations of vocabularies are supported: byte-level (one printable character per byte) and SentencePiece (`▁`
    for a space, `<0x0A>` for a byte).
    """

    def __init__(self, id_to_token: Any, control: dict[int, str]):
        super().__init__({i: token.encode() for i, token in control.items()})
        self._id_to_token = id_to_token

    def __missing__(self, token_id: int) -> bytes:
        try:
            token = self._id_to_token(token_id)
        except (OverflowError, TypeError):  # the id is negative or too large for the tokenizer's integer type
            token = None
        spelled = "\ufffd".encode() if token is None else _spelled_bytes(token)
        self[token_id] = spelled
        return spelled

    def __reduce__(self) -> Any:
        raise TypeError("cannot pickle TokenBytes: pickle the tokenizer, and call encoder_of on it after loading")


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
    """Return a mapping from each printable character that stands for a byte in byte-level vocabularies to this byte.

    The characters are those of GPT-2.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(b): b for b in printable} | {chr(0x100 + n): b for n, b in enumerate(others)}


class FastEncoder:
    """Encoder whose `encode` uses the engine `name` of `ENGINES`. `decode_bytes` and `id_of` are the reference's."""

    def __init__(self, reference: HuggingFaceEncoder, name: str):
        self.name, self._reference = name, reference
        self.encode = ENGINES[name](reference.json)
        self.decode_bytes = reference.decode_bytes
        self.id_of = reference.id_of

    def __reduce__(self) -> Any:  # an engine cannot be pickled
        return type(self), (self._reference, self.name)


class LazyTokenizer:
    """A tokenizer that is loaded when one of its attributes is first used. Its encoder is there from the start.

    Loading a tokenizer imports transformers, which takes longer than rendering thousands of rows. Most renderers need
    the encoder only.
    """

    def __init__(self, encoder: Encoder, load: Callable[[], Any]):
        self.encoder, self._load = encoder, load

    @functools.cached_property
    def _loaded(self) -> Any:
        return self._load()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # pickle looks for special methods
            raise AttributeError(name)
        return getattr(self._loaded, name)

    def decode(self, *arguments: Any, **options: Any) -> Any:  # so that a check for a tokenizer does not load it
        return self._loaded.decode(*arguments, **options)


def _fastokens(tokenizer_json: str) -> Callable[[str], list[int]]:
    import fastokens

    core = fastokens.Tokenizer.from_json_str(tokenizer_json)
    return lambda text: core.encode_ordinary(text).ids


def _tiktoken(tokenizer_json: str) -> Callable[[str], list[int]]:
    """Return an `encode` function that uses tiktoken, for a byte-level BPE tokenizer with one split pattern.

    tiktoken merges by token id, so the ids must be in the order of the merges.

    Raises:
        ValueError: the tokenizer is of another kind.
    """
    import tiktoken
    from tokenizers import normalizers

    spec = json.loads(tokenizer_json)
    splits = (spec.get("pre_tokenizer") or {}).get("pretokenizers", [])
    patterns = [step["pattern"]["Regex"] for step in splits if step["type"] == "Split"]
    normalizer = (spec.get("normalizer") or {}).get("type")
    if spec["model"]["type"] != "BPE" or len(patterns) != 1 or normalizer not in (None, "NFC"):
        raise ValueError(
            "tiktoken cannot encode for this tokenizer: it must be BPE with exactly one split pattern, and with no "
            "normalizer or NFC"
        )
    table = byte_of_character()
    vocabulary = spec["model"]["vocab"].items()
    ranks = {bytes(table[c] for c in token): i for token, i in vocabulary if all(c in table for c in token)}
    pattern = patterns[0]
    if pattern.endswith(_LAST_SPACE):  # the same matches, but 20 % faster: the group has no lookahead
        pattern = f"(?:{pattern.removesuffix(_LAST_SPACE)}){_LAST_SPACE}"
    core = tiktoken.Encoding("ordinary", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    encode = core.encode_ordinary
    if normalizer is None:
        return encode
    nfc = normalizers.NFC().normalize_str  # not Python's, whose version of Unicode orders more marks
    return lambda text: encode(text if text.isascii() or IN_NFC.fullmatch(text) else nfc(text))


IN_NFC = re.compile(
    "[\0-\u02ff\u0400-\u0482\u2010-\u2027\u3001-\u3029\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fff\uac00-\ud7a3\uff01-\uff5e]*+"
)
"""Text that is equal to its NFC: Latin, Cyrillic, Chinese, Japanese or Korean, without combining characters.

Looking for other characters takes a tenth of the time of normalising the text.
"""


_LAST_SPACE = r"|\s+(?!\S)|\s+"
"""End of most split patterns. It splits several spaces so that the last one is joined with the text after it."""


ENGINES: dict[str, Callable[[str], Callable[[str], list[int]]]] = {"fastokens": _fastokens, "tiktoken": _tiktoken}
"""Mapping from the name of a fast engine to a function that returns `encode`, given the result of `ordinary_json`.

The fastest engine is first.
"""

_ENCODERS: weakref.WeakKeyDictionary[Any, Encoder] = weakref.WeakKeyDictionary()
_BUILDING = threading.Lock()


def encoder_of(tokenizer: PreTrainedTokenizerBase | LazyTokenizer) -> Encoder:
    """Return the fastest encoder that gives the same ids as `tokenizer`. The choice is cached per tokenizer object."""
    if isinstance(tokenizer, LazyTokenizer):
        return tokenizer.encoder
    with _BUILDING:
        encoder = _ENCODERS.get(tokenizer)
        if encoder is None:
            encoder = _ENCODERS[tokenizer] = fastest(HuggingFaceEncoder(tokenizer))
    return encoder


def fastest(reference: HuggingFaceEncoder) -> Encoder:
    """Return the first encoder that gives the same ids as the reference."""
    strings = (*probes(), *reference.some_tokens(200))
    expected = [reference.encode(string) for string in strings]
    for name in ENGINES:
        try:
            encoder = FastEncoder(reference, name)
            ids = [encoder.encode(string) for string in strings]
        except Exception as error:  # the engine is not installed, or does not support this tokenizer
            logger.debug("%s cannot encode for this tokenizer: %s", name, error)
            continue
        wrong = next((p for p, a, b in zip(strings, expected, ids, strict=True) if a != b), None)
        if wrong is None:
            return encoder
        logger.warning("%s encodes %r differently from the Hugging Face tokenizer and is not used", name, wrong)
    return reference


@functools.cache
def probes() -> tuple[str, ...]:
    """Return strings on which encoders are compared. They cover split patterns, merges and normalisation."""
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

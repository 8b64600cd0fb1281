"""Encoders: they convert ordinary text to token ids and back, with the fastest library that gives correct ids.

`encode` never returns a control token (such as <|im_end|>): text that spells a control token is encoded as ordinary
characters. Only `id_of` returns the ids of control tokens.

The engines are tried in their order, and the Hugging Face tokenizer last, which is the reference. An engine is not used
if its ids differ from the reference on a fixed list of strings, on the added tokens of white space, or on a sample of
the vocabulary.
"""

from __future__ import annotations

import functools
import json
import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from tinkerloop.errors import TinkerloopError
from tinkerloop.tokenizers.engines import ENGINES
from tinkerloop.tokenizers.notations import (
    SPACE_MARK,
    TokenBytes,
    bytes_of_byte_level,
    bytes_of_sentencepiece,
    is_blank,
    is_byte_level,
)
from tinkerloop.tokenizers.places import EncodeAt, Place, spec_at

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


class Encoder(Protocol):
    """Converter of ordinary text to token ids and back. Several threads may use one encoder at the same time.

    An encoder may also have the attributes `encode_at`, `spaced` and `stripping` of `HuggingFaceEncoder`. Without them,
    the ids of a text are taken to depend on nothing beside it.
    """

    name: str

    def encode(self, text: str, /) -> list[int]:
        """Return the token ids of `text`. No control token (such as <|im_end|>) is among them."""
        ...

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Return the bytes that the token ids stand for. Never raises.

        A control token gives its name, such as <|im_end|>. An unknown id gives U+FFFD in UTF-8. A space that the
        tokenizer writes after a control token is no text and gives no byte there.
        """
        ...

    def id_of(self, token: str) -> int | None:
        """Return the id of the control token with the name `token`, such as <|im_end|>, or None if there is none."""
        ...


class HuggingFaceEncoder:
    """Reference encoder: a copy of a Hugging Face tokenizer without its added tokens.

    `encode` gives the ids of a text after a control token, and `encode_at` those at another place in a sequence.

    `tokenizer` is the tokenizer of transformers or the `tokenizers.Tokenizer` inside it.
    """

    name = "huggingface"
    stripping: dict[str, tuple[bool, bool]]
    """For each added token that strips white space beside it, whether it does on its left and on its right side."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase | Tokenizer):
        core = _core_of(tokenizer)
        added = core.get_added_tokens_decoder()
        self._ids: dict[str, int] = {token.content: i for i, token in added.items()}
        self.stripping = {t.content: (t.lstrip, t.rstrip) for t in added.values() if t.lstrip or t.rstrip}
        spec = ordinary_spec(core.to_str())
        self._is_byte_level = is_byte_level(spec)
        at = {place: spec_at(place, spec) for place in Place}
        self.json = json.dumps(at[Place.AFTER_TOKEN], ensure_ascii=False)
        self._json_at = {
            place: json.dumps(at[place], ensure_ascii=False) for place in Place if at[place] != at[Place.AFTER_TOKEN]
        }

    @functools.cached_property
    def _core(self) -> Any:
        from tokenizers import Tokenizer as Core

        return Core.from_str(self.json)

    @functools.cached_property
    def _core_at(self) -> dict[Place, Any]:
        from tokenizers import Tokenizer as Core

        return {place: Core.from_str(spec) for place, spec in self._json_at.items()}

    @functools.cached_property
    def _real_ids(self) -> dict[int, int]:
        """The ids that `_core` gives to blank added tokens, and their real ids; empty if all are equal.

        `_core` lacks the other added tokens, so a blank one outside a Unigram vocabulary gets the id of one of them.
        """
        given = {self._core.token_to_id(token): self._ids[token] for token in self.blank_tokens}
        return {} if all(i == real for i, real in given.items()) else given

    @functools.cached_property
    def _bytes(self) -> TokenBytes:
        bytes_of = bytes_of_byte_level if self._is_byte_level else bytes_of_sentencepiece
        names = {i: token for token, i in self._ids.items()}
        literal = {i: token for i, token in names.items() if not is_blank(token)}
        return TokenBytes(lambda i: names.get(i) or self._core.id_to_token(i), literal, bytes_of)

    @property
    def blank_tokens(self) -> tuple[str, ...]:
        """The added tokens that consist only of white space, which are ordinary text."""
        return tuple(filter(is_blank, self._ids))

    @functools.cached_property
    def spaced(self) -> frozenset[int]:
        """The ids of the tokens after which the tokenizer writes a space before a text: all added tokens, or none."""
        return frozenset(self._ids.values() if Place.INSIDE in self._json_at else ())

    @property
    def encode_at(self) -> EncodeAt | None:
        """The function that encodes a text at a place; None if the ids do not depend on the place."""
        return self._encode_at if self._json_at else None

    def _encode_at(self, place: Place, text: str) -> list[int]:
        return self._with_real_ids(self._core_at.get(place, self._core).encode(text, add_special_tokens=False).ids)

    def _with_real_ids(self, ids: list[int]) -> list[int]:
        real_ids = self._real_ids
        return [real_ids.get(i, i) for i in ids] if real_ids else ids

    def __getstate__(self) -> dict[str, Any]:
        computed = ("_core", "_core_at", "_bytes", "_real_ids", "spaced")
        return {k: v for k, v in vars(self).items() if k not in computed}

    def encode(self, text: str) -> list[int]:
        return self._with_real_ids(self._core.encode(text, add_special_tokens=False).ids)

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        spelled = list(map(self._bytes.__getitem__, ids))
        spaced = self.spaced
        if spaced:
            for i in range(1, len(spelled)):
                if ids[i - 1] in spaced and ids[i] not in spaced:
                    spelled[i] = spelled[i].removeprefix(b" ")
        return b"".join(spelled)

    def some_tokens(self, count: int) -> list[str]:
        """Return the texts of about `count` tokens, at regular steps through the whole vocabulary."""
        size = self._core.get_vocab_size()
        spelled = (self._bytes[i].decode("utf-8", "ignore") for i in range(0, size, max(1, size // count)))
        return [text for text in spelled if text]

    def id_of(self, token: str) -> int | None:
        token_id = self._ids.get(token)
        return self._core.token_to_id(token) if token_id is None else token_id

    def check_decoding(self) -> None:
        """Raise an error if the tokens of some texts do not spell these texts, or what the tokenizer itself decodes.

        The tokenizer may normalise a text, write a space before it, and lack tokens for some of its characters.

        Raises:
            TinkerloopError: the vocabulary has an unknown notation, such as WordPiece.
        """
        normalizer = self._core.normalizer
        for text in ("a b", "The café is open.\n\nIt is 12 °C.", "\tx = {1: [2, 3]}  # 日本語 👩🏽"):
            ids = self.encode(text)
            decoded = self.decode_bytes(ids).decode("utf-8", "replace")
            normal = normalizer.normalize_str(text) if normalizer else text
            normal = normal.replace(SPACE_MARK, " ")
            if decoded in (normal, f" {normal}"):
                continue
            official = self._core.decode(ids, skip_special_tokens=False)
            if decoded.lstrip(" ") != official.lstrip(" "):
                raise TinkerloopError(
                    f"this tokenizer cannot be used, because its tokens for {text!r} would be decoded as {decoded!r} "
                    f"(the tokenizer itself decodes {official!r}); use a tokenizer with a byte-level or a "
                    "SentencePiece vocabulary"
                )


def _core_of(tokenizer: PreTrainedTokenizerBase | Tokenizer) -> Any:
    """Return the `tokenizers.Tokenizer` inside a tokenizer of transformers, or the argument if it is one."""
    is_core = hasattr(tokenizer, "get_added_tokens_decoder")
    core: Any = tokenizer if is_core else getattr(tokenizer, "backend_tokenizer", None)
    if core is None:
        raise TinkerloopError(
            f"{type(tokenizer).__name__} is not supported: it has no `backend_tokenizer`; "
            "load a fast tokenizer (PreTrainedTokenizerFast)"
        )
    return core


def _added_tokens(core: Any) -> frozenset[tuple[int, str]]:
    """Return the ids of the added tokens with their names and settings, as text.

    The objects themselves are equal if their names are, whatever their settings are.
    """
    return frozenset((i, repr(token)) for i, token in core.get_added_tokens_decoder().items())


def ordinary_spec(tokenizer_json: str) -> dict[str, Any]:
    """Return the contents of a `tokenizer.json` without its added tokens, post-processor, truncation and padding.

    Added tokens that consist only of whitespace are kept. Some vocabularies store runs of newlines or spaces as added
    tokens, and these are ordinary text. In a Unigram vocabulary, their ids may become others.
    """
    spec = json.loads(tokenizer_json)
    spec["added_tokens"] = [t for t in spec.get("added_tokens", ()) if is_blank(t["content"])]
    spec["post_processor"] = spec["truncation"] = spec["padding"] = None
    vocab = spec["model"].get("vocab")
    if isinstance(vocab, dict):  # an added token that the vocabulary lacks gets the next free id, whatever its own is
        vocab |= {token["content"]: token["id"] for token in spec["added_tokens"]}
    return spec


class FastEncoder:
    """Encoder whose `encode` uses the engine `name` of `ENGINES`. All else is the reference's."""

    def __init__(self, reference: HuggingFaceEncoder, name: str):
        self.name, self._reference = name, reference
        self.encode = ENGINES[name](reference.json)
        self.decode_bytes = reference.decode_bytes
        self.id_of = reference.id_of
        self.encode_at, self.spaced, self.stripping = reference.encode_at, reference.spaced, reference.stripping

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
        loaded = self._load()
        self._added = _added_tokens(_core_of(loaded))
        return loaded

    def changed(self) -> Any:
        """Return the loaded tokenizer if tokens were added to it, so that `encoder` is not its encoder; or None."""
        loaded = vars(self).get("_loaded")
        return loaded if loaded is not None and _added_tokens(_core_of(loaded)) != self._added else None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # pickle looks for special methods
            raise AttributeError(name)
        return getattr(self._loaded, name)

    def decode(self, *arguments: Any, **options: Any) -> Any:  # so that a check for a tokenizer does not load it
        return self._loaded.decode(*arguments, **options)


_ENCODERS: weakref.WeakKeyDictionary[Any, tuple[frozenset[tuple[int, str]], Encoder]] = weakref.WeakKeyDictionary()
_BUILDING = threading.Lock()


def encoder_of(tokenizer: PreTrainedTokenizerBase | LazyTokenizer) -> Encoder:
    """Return the fastest encoder that gives the same ids as `tokenizer`.

    The choice is cached per tokenizer object, until tokens are added to the tokenizer.
    """
    if isinstance(tokenizer, LazyTokenizer):
        changed = tokenizer.changed()
        return tokenizer.encoder if changed is None else encoder_of(changed)
    with _BUILDING:
        added = _added_tokens(_core_of(tokenizer))
        known, encoder = _ENCODERS.get(tokenizer, (None, None))
        if encoder is None or known != added:
            encoder = fastest(HuggingFaceEncoder(tokenizer))
            _ENCODERS[tokenizer] = added, encoder
    return encoder


def fastest(reference: HuggingFaceEncoder) -> Encoder:
    """Return the first encoder that gives the same ids as the reference.

    Raises:
        TinkerloopError: the tokens cannot be decoded.
    """
    reference.check_decoding()
    blank = [text for token in reference.blank_tokens for text in (token, f"a{token}b", f" {token}\n")]
    strings = (*probes(), *blank, *reference.some_tokens(200))
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

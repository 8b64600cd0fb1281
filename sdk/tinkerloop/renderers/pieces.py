"""Pieces: the text of a conversation before encoding, each piece with its origin and its part of the message.

Each chat format writes pieces; token ids, weights, spans and images are derived from them. Two fields of a piece decide
how its text is encoded and weighted:

* `trusted`: True if the format itself wrote the text. Only in trusted text does the name of a control token (such as
  `<|im_end|>`) become this token. Text from messages is never trusted, so a message cannot inject a control token.
* `part`: the part of the message that the text belongs to. Scaffold (role headers, separators, prefilled text) carries
  weight only with `TrainOnWhat.ALL_TOKENS`, because a model never samples scaffold.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from functools import lru_cache, partial
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import tinker


class Part(IntEnum):
    """The part of a message that a token belongs to."""

    SCAFFOLD = 0
    TEXT = 1
    REASONING = 2
    TOOL_CALL = 3
    STOP = 4
    """The token or text that ends a turn. The model samples it, and it belongs to the message that it ends."""
    IMAGE = 5
    """A position of an image. It never carries weight."""


class Piece(NamedTuple):
    """A text with one origin and one part, or an image."""

    text: str
    part: Part
    trusted: bool = False
    image: tinker.types.ImageChunk | None = None
    """The image of the piece, or None. A piece with an image has no text."""


Pieces = Iterable[Piece]

SEAM = Piece("", Part.SCAFFOLD)
"""Marker between two texts that must be encoded separately, e.g. a prompt and the reply to it."""


_piece = partial(tuple.__new__, Piece)  # takes half the time of a NamedTuple's own constructor

_cached = lru_cache(maxsize=4096)  # a format writes the same few pieces many times


@_cached
def scaffold(text: str) -> Piece:
    """Return a piece of the format's own text that the model does not sample, such as a role header."""
    return Piece(text, Part.SCAFFOLD, trusted=True)


def text(content: str, part: Part = Part.TEXT) -> Piece:
    """Return a piece of text from a message. Names of control tokens in it are encoded as ordinary text."""
    return _piece((content, part, False, None))


@_cached
def markup(text: str, part: Part) -> Piece:
    """Return a piece of the format's own text that the model samples, such as the tags around reasoning."""
    return Piece(text, part, trusted=True)


@_cached
def stop(text: str) -> Piece:
    """Return the piece that ends a turn, such as `<|im_end|>`."""
    return Piece(text, Part.STOP, trusted=True)

"""The grammar-side of rendering: a conversation as a sequence of pieces, before any of it is a token.

A family writes pieces; everything else (ids, weights, chunks, attribution) is derived from them. Two properties of a
piece carry the promises of this package:

* `trusted`: the family itself wrote the text, so control tokens spelled in it are control tokens. Text from messages
  is never trusted, so nothing in a message can become one.
* `part`: what the text is. Scaffold (role headers, separators, prefilled text) is never trained, because a model
  that is asked for a reply never samples it.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from functools import lru_cache, partial
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import tinker


class Part(IntEnum):
    """What a token is, within its message."""

    SCAFFOLD = 0
    TEXT = 1
    REASONING = 2
    TOOL_CALL = 3
    STOP = 4
    """The token that ends a turn: sampled by the model and owned by the message it ends."""
    IMAGE = 5
    """A position of an image: never trained, nor is any other that no model samples."""


class Piece(NamedTuple):
    text: str
    part: Part
    trusted: bool = False
    image: tinker.types.ImageChunk | None = None
    """Set for an image, which stands in place of text."""


Pieces = Iterable[Piece]

SEAM = Piece("", Part.SCAFFOLD)
"""A token boundary: text before and after it is encoded separately, because it is sampled separately."""


_piece = partial(tuple.__new__, Piece)  # in half the time of the constructor that a NamedTuple has

_kept = lru_cache(maxsize=4096)  # a format writes the same few pieces all the time


@_kept
def scaffold(text: str) -> Piece:
    """Text of the format itself, never trained."""
    return Piece(text, Part.SCAFFOLD, trusted=True)


def text(content: str, part: Part = Part.TEXT) -> Piece:
    """Text of a message, in which nothing is a control token."""
    return _piece((content, part, False, None))


@_kept
def marked(text: str, part: Part) -> Piece:
    """Text of the format that the model writes itself: the tags of a reasoning block or of a tool call."""
    return Piece(text, part, trusted=True)


@_kept
def stop(text: str) -> Piece:
    """What ends a turn."""
    return Piece(text, Part.STOP, trusted=True)

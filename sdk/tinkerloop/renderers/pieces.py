"""Pieces: a conversation as text whose origin and role in training are known, before any of it is encoded.

A family writes pieces; everything else (ids, weights, spans, images) is derived from them. Two fields of a piece keep
the promises of this package:

* `trusted`: the family itself wrote the text, so control tokens spelled in it are control tokens. Text from messages
  is never trusted, so nothing in a message can become a control token.
* `part`: which part of a message the text is. Scaffold (role headers, separators, prefilled text) carries no weight
  except in `TrainOnWhat.ALL_TOKENS`, because a model that is asked for a reply never samples it.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from functools import lru_cache, partial
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import tinker


class Part(IntEnum):
    """The part of its message that a token belongs to."""

    SCAFFOLD = 0
    TEXT = 1
    REASONING = 2
    TOOL_CALL = 3
    STOP = 4
    """The token that ends a turn: sampled by the model and owned by the message it ends."""
    IMAGE = 5
    """A position of an image; it never carries weight."""


class Piece(NamedTuple):
    """Text of one origin and one part, or an image."""

    text: str
    part: Part
    trusted: bool = False
    image: tinker.types.ImageChunk | None = None
    """Set for an image, which stands in place of text."""


Pieces = Iterable[Piece]

SEAM = Piece("", Part.SCAFFOLD)
"""A token boundary. The text before it and the text after it are encoded separately, e.g. a prompt and its reply."""


_piece = partial(tuple.__new__, Piece)  # takes half the time of a NamedTuple's own constructor

_cached = lru_cache(maxsize=4096)  # a format writes the same few pieces again and again


@_cached
def scaffold(text: str) -> Piece:
    """Return text that the format itself writes and no model samples, such as a role header."""
    return Piece(text, Part.SCAFFOLD, trusted=True)


def text(content: str, part: Part = Part.TEXT) -> Piece:
    """Return text of a message, in which nothing is a control token."""
    return _piece((content, part, False, None))


@_cached
def markup(text: str, part: Part) -> Piece:
    """Return text of the format that the model samples, such as the tags of a reasoning block or of a tool call."""
    return Piece(text, part, trusted=True)


@_cached
def stop(text: str) -> Piece:
    """Return the text that ends a turn."""
    return Piece(text, Part.STOP, trusted=True)

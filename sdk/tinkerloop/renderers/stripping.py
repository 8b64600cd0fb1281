"""White space beside control tokens: some tokenizers strip it, e.g. the newline after `<|user|>` in Phi-3's format.

A tokenizer strips the white space on one side of an added token with the flag `lstrip` or `rstrip`, also if a message
contains it. This white space gets no token. A reply is sampled after its prompt was encoded, so white space at a `SEAM`
is not stripped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from tinkerloop.renderers.pieces import SEAM, Piece

_SPACES = "".join(map(chr, (*range(9, 14), 32, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), *range(0x2028, 0x202A))))
_SPACES += "\u202f\u205f\u3000"
"""White space of Unicode, which the tokenizers library strips. `str.strip` would remove four more characters."""
_MANY = f"[{_SPACES}]+"

_Written = Iterable[tuple[int, Piece]]
"""(message index, piece) pairs."""


class _Side(NamedTuple):
    """One side of the tokens that strip white space on it."""

    beside: re.Pattern[str]
    """Such a token, with white space on this side."""
    edge: re.Pattern[str]
    """Such a token at the end of a text that the next piece continues on this side."""
    strip: Callable[[str, str], str]


class Stripper:
    """Removes the white space that the tokenizer strips beside the control tokens of a format.

    Args:
        stripping: for each control token with a flag, whether it strips on its left and on its right side.
    """

    def __init__(self, stripping: Mapping[str, tuple[bool, bool]]):
        lefts, rights = (
            "|".join(re.escape(token) for token, flags in stripping.items() if flags[side]) for side in (0, 1)
        )
        self._left = self._right = None
        if lefts:
            self._left = _Side(re.compile(f"{_MANY}({lefts})"), re.compile(rf"\A(?:{lefts})"), str.rstrip)
        if rights:
            self._right = _Side(re.compile(f"({rights}){_MANY}"), re.compile(rf"(?:{rights})\Z"), str.lstrip)

    def __call__(self, pieces: _Written) -> _Written:
        """Return the pieces without this white space."""
        if self._right:
            pieces = _stripped(pieces, self._right)
        if self._left:
            pieces = reversed(_stripped(reversed(list(pieces)), self._left))
        return pieces


def _stripped(pieces: _Written, side: _Side) -> list[tuple[int, Piece]]:
    """Return the pieces without the white space on one side of its tokens. The pieces come from the other side."""
    stripped: list[tuple[int, Piece]] = []
    at_token = False  # True while only white space is between the last such token and the next piece
    for message, piece in pieces:
        text = side.strip(piece.text, _SPACES) if at_token else piece.text
        if text:
            if piece.trusted:
                text = side.beside.sub(r"\1", text)
            at_token = piece.trusted and side.edge.search(text) is not None
        elif piece is SEAM or piece.image is not None:
            at_token = False
        stripped.append((message, piece if text == piece.text else piece._replace(text=text)))
    return stripped

"""Text of models, data and file names made safe to print: control characters are shown and not sent to the terminal.

An escape sequence in such a text could otherwise move the cursor, hide what was printed, or write to the clipboard.
"""

from __future__ import annotations

import re

_DIRECTION = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_UNSAFE = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029{_DIRECTION}\ud800-\udfff]")
"""Control characters other than tab and line feed, those that change the order of others, and lone surrogates."""


def printable(text: object) -> str:
    """Return `str(text)` with control characters shown as symbols; tabs and line ends stay.

    >>> printable("a\\x1b[2J\\r\\x9b")
    'a␛[2J␍[U+009B]'
    """
    return _UNSAFE.sub(_shown, str(text))


def one_line(text: object) -> str:
    """Return `str(text)` like `printable`, with tabs and line ends as symbols too: for names, which need one line."""
    return printable(text).replace("\t", "␉").replace("\n", "⏎")


def _shown(match: re.Match[str]) -> str:
    code = ord(match[0])
    return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else f"[U+{code:04X}]"

"""`TextBuffer`: removes the fixed text that a chat format writes around content, while the content is decoded."""

from __future__ import annotations

from collections.abc import Callable


class TextBuffer:
    """Buffers decoded text and holds back an end that may have to be removed, so that no delta is ever retracted.

    For example, with `hold="\\n"`, `push("Yo\\n")` returns `"Yo"`. If more text follows, `push("!")` returns `"\\n!"`.
    If the text ends here, `close(suffix="\\n")` returns `""`.

    Args:
        drop: characters to remove at the start of the text.
        head: a fixed text to remove at the start of the text, if it is there.
        hold: characters to hold back at the end of the text until more text follows.
        stop_texts: texts that end the reply. An end of the text that may be the start of one of them is held back.
        find_call: returns the index from which on a text may be a tool call. The text from there on, and white space
            before it, is held back until `close`.
    """

    def __init__(
        self,
        drop: str = "",
        head: str = "",
        hold: str = "",
        stop_texts: tuple[str, ...] = (),
        find_call: Callable[[str], int] | None = None,
    ):
        self._drop, self._head, self._hold, self._stop_texts = drop, head, hold, stop_texts
        self._find_call = find_call
        self._at_start = True  # True until text is released
        self.pending = ""

    def push(self, text: str) -> str:
        """Add text to the buffer and return the text that can be released."""
        if self.pending:
            text = self.pending + text
        if self._at_start:
            if self._head and text != self._head and self._head.startswith(text):
                self.pending = text
                return ""
            text, self._head = text.removeprefix(self._head), ""
            if self._drop:
                text = text.lstrip(self._drop)
            self._at_start = not text
        may_release = text if self._find_call is None else text[: self._find_call(text)]
        released = len(may_release.rstrip(self._hold))
        for stop_text in self._stop_texts:
            position = text.find(stop_text)
            released = min(released, position if position >= 0 else len(text) - _overlap(text, stop_text))
        if released == len(text):
            self.pending = ""
            return text
        self.pending = text[released:]
        return text[:released]

    def expect_no_head(self) -> None:
        """Do not remove `head` from the text, because the prompt already contains it."""
        self._head = ""

    def close(self, suffix: str = "", trim: str = "") -> str:
        """Return the held-back text, after removing the characters of `trim` from its end and then `suffix` once."""
        rest = self.pending.rstrip(trim) if trim else self.pending
        self.pending = ""
        return rest.removesuffix(suffix)


def _overlap(text: str, stop_text: str) -> int:
    """Return the length of the longest end of `text` with which `stop_text` begins."""
    longest = min(len(stop_text), len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(stop_text[:n])), 0)

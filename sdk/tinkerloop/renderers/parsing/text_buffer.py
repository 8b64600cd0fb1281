"""`TextBuffer`: decoded text on its way to a message, without the fixed text that a format writes around it."""

from __future__ import annotations


class TextBuffer:
    """Holds back the end of a text while it may still turn out to be removed, so that no delta is ever retracted.

    With `hold="\\n"`, `push("Yo\\n")` returns `"Yo"`; then `push("!")` returns `"\\n!"`, or `close(suffix="\\n")` `""`.

    Args:
        drop: characters removed at the start of the text.
        head: one exact beginning, removed if it is there.
        hold: characters held back at the end.
        stop_texts: texts that end the reply; their beginnings are held back at the end.
        may_be_call: hold back a text that begins like a JSON object until its end.
    """

    def __init__(
        self,
        drop: str = "",
        head: str = "",
        hold: str = "",
        stop_texts: tuple[str, ...] = (),
        may_be_call: bool = False,
    ):
        self._drop, self._head, self._hold, self._stop_texts = drop, head, hold, stop_texts
        self._may_be_call = may_be_call
        self._at_start = True  # no text has been released
        self.pending = ""

    def push(self, text: str) -> str:
        """Take text in and return the text that can be released."""
        if self.pending:
            text = self.pending + text
        if self._at_start:
            if self._head and text != self._head and self._head.startswith(text):
                self.pending = text
                return ""
            text, self._head = text.removeprefix(self._head), ""
            if self._drop:
                text = text.lstrip(self._drop)
            if self._may_be_call and text.lstrip()[:1] in ("", "{"):
                self.pending = text
                return ""
            self._at_start = not text
        released = len(text.rstrip(self._hold))
        for stop_text in self._stop_texts:
            position = text.find(stop_text)
            released = min(released, position if position >= 0 else len(text) - _overlap(text, stop_text))
        if released == len(text):
            self.pending = ""
            return text
        self.pending = text[released:]
        return text[:released]

    def expect_no_head(self) -> None:
        """Keep a beginning that equals `head`, because the prompt already holds the head."""
        self._head = ""

    def close(self, suffix: str = "", trim: str = "") -> str:
        """Return the rest, without trailing characters of `trim`, then without one exact `suffix`."""
        rest = self.pending.rstrip(trim) if trim else self.pending
        self.pending = ""
        return rest.removesuffix(suffix)


def _overlap(text: str, stop_text: str) -> int:
    """Return how many characters at the end of `text` are a beginning of `stop_text`."""
    longest = min(len(stop_text), len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(stop_text[:n])), 0)

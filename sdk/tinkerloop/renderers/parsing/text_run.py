"""Text on its way from a decoder to a message, less what a format writes around it."""

from __future__ import annotations


class TextRun:
    """A stretch of text on its way out. What may yet be trimmed is held back, so no delta is ever retracted."""

    def __init__(
        self,
        drop: str = "",
        head: str = "",
        hold: str = "",
        stop_texts: tuple[str, ...] = (),
        may_be_call: bool = False,
    ):
        self._drop = drop  # characters dropped until anything is let out
        self._head = head  # one exact beginning, dropped if it is there
        self._hold = hold  # characters held back at the end
        self._stops = stop_texts  # whose beginnings are held back at the end
        self._may_be_call = may_be_call  # what begins like a JSON object is held back to its end
        self._fresh = True
        self.pending = ""

    def push(self, text: str) -> str:
        """Takes text in, gives out what is certain."""
        if self.pending:
            text = self.pending + text
        if self._fresh:
            if self._head and text != self._head and self._head.startswith(text):
                self.pending = text
                return ""
            text, self._head = text.removeprefix(self._head), ""
            if self._drop:
                text = text.lstrip(self._drop)
            if self._may_be_call and text.lstrip()[:1] in ("", "{"):
                self.pending = text
                return ""
            self._fresh = not text
        sure = len(text.rstrip(self._hold))
        for end in self._stops:
            found = text.find(end)
            sure = min(sure, found if found >= 0 else len(text) - _overlap(text, end))
        if sure == len(text):
            self.pending = ""
            return text
        self.pending = text[sure:]
        return text[:sure]

    def expect_no_head(self) -> None:
        """What would be dropped once has been written already."""
        self._head = ""

    def close(self, suffix: str = "", trim: str = "") -> str:
        """Gives out the rest, without trailing characters of `trim` and one exact `suffix`."""
        rest = self.pending.rstrip(trim) if trim else self.pending
        self.pending = ""
        return rest.removesuffix(suffix)


def _overlap(text: str, end: str) -> int:
    """How many characters at the end of `text` begin `end`."""
    return next((n for n in range(min(len(end), len(text)), 0, -1) if text.endswith(end[:n])), 0)

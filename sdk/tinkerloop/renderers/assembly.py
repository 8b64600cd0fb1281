"""Pieces -> tokens. The one place where text of a conversation becomes ids.

Text between two control tokens is encoded in one call, whatever pieces it came from, because that is what encoding
the finished string of an official template does: a role header's newline may merge with the newlines that follow it.
Where a weight or a message changes inside such a run, the boundary is found by comparing with the ids of the known
end pieces. A token that straddles it is scaffold, and never trained, if one side is; between two parts that the author
wrote it belongs to the first. `SEAM` ends a run on purpose.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from tinkerloop.encoders import Encoder
from tinkerloop.errors import RenderError
from tinkerloop.renderers.rendered import Rendered, Span
from tinkerloop.renderers.segments import SEAM, Part, Piece
from tinkerloop.renderers.weights import Weights

Kind = tuple[int, Part]
"""What tokens are: of which message (-1 for none), and which part of it. Adjacent tokens of one kind make a span."""

Group = tuple[str, Kind, bool]
"""Adjacent text of a run that is of one kind; and whether it is the family's own, whose ids are worth keeping."""


class Assembler:
    """Encodes pieces with one encoder and one family's control tokens."""

    def __init__(self, encoder: Encoder, control: Iterable[str], family: str):
        self.encoder = encoder
        self.ids: dict[str, int] = {}
        for token in control:
            token_id = encoder.id_of(token)
            if token_id is None:
                raise RenderError(f"the tokenizer has no token {token!r}, which the {family!r} format is written with")
            self.ids[token] = token_id
        names = sorted(self.ids, key=len, reverse=True)  # the longest first, should one begin another
        self._control = re.compile("(" + "|".join(map(re.escape, names)) + ")") if names else None
        self._split: dict[str, list[int | str]] = {}
        self._constants: dict[str, list[int]] = {}

    def assemble(
        self,
        pieces: Iterable[tuple[int, Piece]],
        weights: Weights | None = None,
        max_length: int | None = None,
        encoded: dict[str, list[int]] | None = None,
    ) -> Rendered:
        """Tokens, spans and images of the pieces of messages, in order.

        Args:
            weights: what the tokens weigh; nothing by default.
            encoded: keeps the ids of texts between calls that share them.
        """
        tokens: list[int] = []
        marks: list[tuple[int, Kind]] = []  # where tokens of a kind begin
        images = []
        run: list[Group] = []
        for message, piece in pieces:
            text, part, trusted, image = piece
            if text:
                kind = (message, part)
                for item in self._items(text) if trusted else (text,):
                    if isinstance(item, int):
                        if run:
                            self._write(run, tokens, marks, encoded)
                        marks.append((len(tokens), kind))
                        tokens.append(item)
                    elif run and run[-1][1] == kind:
                        before, _, constant = run[-1]
                        run[-1] = (before + item, kind, constant and trusted)
                    else:
                        run.append((item, kind, trusted))
            elif image is not None or piece is SEAM:
                if run:
                    self._write(run, tokens, marks, encoded)
                if image is not None:
                    marks.append((len(tokens), (message, part)))
                    images.append((len(tokens), image))
                    tokens.extend([0] * (image.expected_tokens or 0))
        if run:
            self._write(run, tokens, marks, encoded)
        return Rendered(tokens, _spans(marks, len(tokens), weights), tuple(images), max_length)

    def _items(self, text: str) -> list[int | str]:
        """Trusted text as control ids and the text between them."""
        items = self._split.get(text)
        if items is None:
            parts = [text] if self._control is None else self._control.split(text)
            items = self._split[text] = [self.ids.get(part, part) for part in parts if part]
        return items

    def _write(
        self,
        run: list[Group],
        tokens: list[int],
        marks: list[tuple[int, Kind]],
        encoded: dict[str, list[int]] | None,
    ) -> None:
        """Appends a run's ids and where each kind of them begins; empties the run."""
        at = len(tokens)
        if len(run) == 1:
            text, kind, constant = run.pop()
            tokens += self._ids(text, self._constants if constant else encoded)
            marks.append((at, kind))
            return
        text, constant = _joined(run)
        ids = self._ids(text, self._constants if constant else encoded)
        tokens += ids
        start = 0
        for i in range(1, len(run)):
            kind, following = run[i - 1][1], run[i][1]
            end, resume = self._boundary(ids, run, i)
            if end > start:
                marks.append((at + start, kind))
                start = end
            if resume > start:  # tokens that straddle
                both = (kind[1], following[1])
                marks.append((at + start, (kind[0], Part.SCAFFOLD) if Part.SCAFFOLD in both else kind))
                start = resume
        if len(ids) > start:
            marks.append((at + start, run[-1][1]))
        run.clear()

    def _boundary(self, joint: list[int], run: list[Group], i: int) -> tuple[int, int]:
        """(tokens that spell only what is before group `i`, first token that spells only what is from there on).

        Ids that begin with those of the text before spell it with exactly that many tokens, and likewise at the end;
        so one comparison settles all but the rare case of a token that spans both.
        """
        n = len(joint)
        before, constant = _joined(run[:i])
        if constant:
            head = self._ids(before, self._constants)
            if joint[: len(head)] == head:
                return len(head), len(head)
        after, constant = _joined(run[i:])
        if constant:
            tail = self._ids(after, self._constants)
            if joint[n - len(tail) :] == tail:
                return n - len(tail), n - len(tail)
        end = _common(joint, self._ids(before))
        return end, max(end, n - _common(joint[::-1], self._ids(after)[::-1]))

    def _ids(self, text: str, kept: dict[str, list[int]] | None = None) -> list[int]:
        """The ids of some text, looked up and kept in `kept`, if given."""
        if kept is None:
            return self.encoder.encode(text)
        ids = kept.get(text)
        if ids is None:
            ids = kept[text] = self.encoder.encode(text)
        return ids


def _joined(groups: list[Group]) -> tuple[str, bool]:
    """The text of adjacent groups, and whether all of it is the family's own."""
    return "".join([text for text, _, _ in groups]), all(constant for _, _, constant in groups)


_new = tuple.__new__  # in half the time of the constructor that a NamedTuple has


def _spans(marks: list[tuple[int, Kind]], end: int, weights: Weights | None) -> tuple[Span, ...]:
    """What begins where -> spans, those of one kind joined."""
    spans: list[Span] = []
    start, kind = 0, None
    for at, new in (*marks, (end, None)):
        if new != kind:
            if at > start and kind is not None:
                message, part = kind
                weight = weights.of(message, part) if weights else 0.0
                spans.append(_new(Span, (start, at, message, part, weight)))
            start, kind = at, new
    return tuple(spans)


def _common(a: list[int], b: list[int]) -> int:
    """The length of the longest common prefix."""
    low, high = 0, min(len(a), len(b))
    while low < high:  # by halves, since slices are compared much faster than elements
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low

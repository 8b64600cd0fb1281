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
from typing import NamedTuple

from tinkerloop.encoders import Encoder
from tinkerloop.errors import RenderError
from tinkerloop.renderers.rendered import Rendered, Span
from tinkerloop.renderers.segments import SEAM, Part, Piece


class Weighed(NamedTuple):
    piece: Piece
    message: int
    weight: float


class _Group(NamedTuple):
    """Adjacent text of a run that is one part of one message, with one weight."""

    text: str
    kind: tuple[int, Part, float]
    """Message, part, weight."""
    constant: bool
    """The family's own text: its ids are worth keeping."""


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
        self, pieces: Iterable[Weighed], max_length: int | None = None, encoded: dict[str, list[int]] | None = None
    ) -> Rendered:
        """Tokens, spans and images of the pieces, in order. `encoded` keeps the ids of texts between calls."""
        tokens: list[int] = []
        spans: list[Span] = []
        images = []
        run: list[_Group] = []
        start = 0  # of the span that is being filled
        kind: tuple[int, Part, float] | None = None

        def begin(new: tuple[int, Part, float]) -> None:
            """What is appended to `tokens` from here on is of this message, part and weight."""
            nonlocal start, kind
            if new != kind:
                if kind is not None and len(tokens) > start:
                    spans.append(Span(start, len(tokens), *kind))
                start, kind = len(tokens), new

        def flush() -> None:
            for ids, group in self._encode_run(run, encoded):
                if ids:
                    begin(group.kind)
                    tokens.extend(ids)
            run.clear()

        for piece, message, weight in pieces:
            text, part, trusted, image = piece
            if piece is SEAM:
                if run:
                    flush()
            elif image is not None:
                if run:
                    flush()
                begin((message, part, 0.0))
                images.append((len(tokens), image))
                tokens.extend([0] * (image.expected_tokens or 0))
            elif text:
                new = (message, part, weight)
                for item in self._items(text) if trusted else (text,):
                    if isinstance(item, int):
                        if run:
                            flush()
                        begin(new)
                        tokens.append(item)
                    elif run and run[-1].kind == new:
                        last = run[-1]
                        run[-1] = _Group(last.text + item, new, last.constant and trusted)
                    else:
                        run.append(_Group(item, new, trusted))
        if run:
            flush()
        begin((-2, Part.SCAFFOLD, 0.0))  # no such message: ends the last span
        return Rendered(tokens, tuple(spans), tuple(images), max_length)

    def _items(self, text: str) -> list[int | str]:
        """Trusted text as control ids and the text between them."""
        items = self._split.get(text)
        if items is None:
            parts = [text] if self._control is None else self._control.split(text)
            items = self._split[text] = [self.ids.get(part, part) for part in parts if part]
        return items

    def _encode_run(
        self, run: list[_Group], encoded: dict[str, list[int]] | None
    ) -> Iterable[tuple[list[int], _Group]]:
        """A run's ids, divided among its groups."""
        if len(run) == 1:
            return [(self._ids(run, encoded), run[0])]
        joint = self._ids(run, encoded)
        divided = []
        start = 0
        for i, group in enumerate(run[:-1]):
            end, resume = self._boundary(joint, run[: i + 1], run[i + 1 :])
            end = max(start, end)
            divided.append((joint[start:end], group))
            start = max(end, resume)
            message, part, weight = group.kind
            if Part.SCAFFOLD in (part, run[i + 1].kind[1]):
                weight = weight if weight == run[i + 1].kind[2] else 0.0
                group = group._replace(kind=(message, Part.SCAFFOLD, weight))
            divided.append((joint[end:start], group))
        divided.append((joint[start:], run[-1]))
        return divided

    def _boundary(self, joint: list[int], before: list[_Group], after: list[_Group]) -> tuple[int, int]:
        """(tokens that spell only `before`, first token that spells only `after`).

        Ids that begin with those of `before` spell it with exactly that many tokens, and likewise at the end; so one
        comparison settles all but the rare case of a token that spans both.
        """
        n = len(joint)
        if all(group.constant for group in before):
            head = self._ids(before)
            if joint[: len(head)] == head:
                return len(head), len(head)
        if all(group.constant for group in after):
            tail = self._ids(after)
            if joint[n - len(tail) :] == tail:
                return n - len(tail), n - len(tail)
        end = _common(joint, self._ids(before))
        return end, max(end, n - _common(joint[::-1], self._ids(after)[::-1]))

    def _ids(self, groups: list[_Group], encoded: dict[str, list[int]] | None = None) -> list[int]:
        """The ids of some adjacent text: the format's own are kept for good, others in `encoded`, if given."""
        text = "".join(group.text for group in groups)
        kept = self._constants if all(group.constant for group in groups) else encoded
        if kept is None:
            return self.encoder.encode(text)
        if text not in kept:
            kept[text] = self.encoder.encode(text)
        return kept[text]


def _common(a: list[int], b: list[int]) -> int:
    """The length of the longest common prefix."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))

"""Pieces -> tokens. The one place where text of a conversation becomes ids.

Text between two control tokens is encoded in one call, whatever pieces it came from, because that is what encoding
the finished string of an official template does: a role header's newline may merge with the newlines that follow it.
Where a weight or a message changes inside such a run, the boundary is found by comparing with the ids of the known
end pieces. A token that straddles it is scaffold, and never trained, if one side is; between two parts that the author
wrote it belongs to the first. `SEAM` ends a run on purpose.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from tinkerloop.encoders import Encoder
from tinkerloop.errors import RenderError
from tinkerloop.renderers.rendered import Rendered, Span
from tinkerloop.renderers.segments import SEAM, Part, Piece
from tinkerloop.renderers.weights import Weights

Kind = tuple[int, Part]
"""What tokens are: of which message (-1 for none), and which part of it. Adjacent tokens of one kind make a span."""

Mark = tuple[int, Kind]
"""Where tokens of a kind begin."""

Group = tuple[str, Kind, bool]
"""Adjacent text of a run that is of one kind; and whether it is the family's own, whose ids are worth keeping."""

Encode = Callable[[str], list[int]]


class Kept(dict[str, list[int]]):
    """Text -> ids, encoded on first use."""

    def __init__(self, encode: Encode):
        super().__init__()
        self._encode = encode

    def __missing__(self, text: str) -> list[int]:
        ids = self[text] = self._encode(text)
        return ids


class _Items(dict[str, list[int | str]]):
    """Trusted text -> control ids and the text between them, worked out on first use."""

    def __init__(self, ids: Mapping[str, int]):
        super().__init__()
        self._ids = ids
        names = sorted(ids, key=len, reverse=True)  # the longest first, should one begin another
        self._control = re.compile("(" + "|".join(map(re.escape, names)) + ")") if names else None

    def __missing__(self, text: str) -> list[int | str]:
        parts = self._control.split(text) if self._control else [text]
        items = self[text] = [self._ids.get(part, part) for part in parts if part]
        return items


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
        self._items = _Items(self.ids)
        self._constants = Kept(encoder.encode)

    def assemble(
        self,
        pieces: Iterable[tuple[int, Piece]],
        weights: Weights | None = None,
        max_length: int | None = None,
        encode: Encode | None = None,
    ) -> Rendered:
        """Tokens, spans and images of the pieces of messages, in order.

        Args:
            weights: what the tokens weigh; nothing by default.
            encode: the encoder's `encode` unless given: a `Kept` one, for calls that share texts.
        """
        encode = encode or self.encoder.encode
        tokens: list[int] = []
        marks: list[Mark] = []
        images = []
        run: list[Group] = []
        items = self._items
        for message, piece in pieces:
            text, part, trusted, image = piece
            kind = (message, part)
            if not text:
                if run and (image is not None or piece is SEAM):
                    self._write(run, tokens, marks, encode)
                if image is not None:
                    images.append((len(tokens), image))
                    if image.expected_tokens:
                        marks.append((len(tokens), kind))
                        tokens += [0] * image.expected_tokens
                continue
            for item in items[text] if trusted else (text,):
                if isinstance(item, int):
                    if run:
                        self._write(run, tokens, marks, encode)
                    marks.append((len(tokens), kind))
                    tokens.append(item)
                elif run and run[-1][1] == kind:
                    before, _, constant = run[-1]
                    run[-1] = (before + item, kind, constant and trusted)
                else:
                    run.append((item, kind, trusted))
        if run:
            self._write(run, tokens, marks, encode)
        return Rendered(tokens, _spans(marks, len(tokens), weights), tuple(images), max_length)

    def _write(self, run: list[Group], tokens: list[int], marks: list[Mark], encode: Encode) -> None:
        """Appends a run's ids and where each kind of them begins; empties the run."""
        at = len(tokens)
        before, kind, constant = run[0]
        if len(run) == 1:
            ids = self._constants[before] if constant else encode(before)
            tokens += ids
            if ids:
                marks.append((at, kind))
            run.clear()
            return
        text = "".join([text for text, _, _ in run])
        ids = self._constants[text] if run[-1][2] and all(own for _, _, own in run) else encode(text)
        tokens += ids
        start = 0
        for i in range(1, len(run)):
            more, following, own = run[i]
            head = self._constants[before] if constant else None
            if head is not None and ids[: len(head)] == head:
                end = resume = len(head)
            else:
                end, resume = self._boundary(ids, before, run[i:])
            if end > start:
                marks.append((at + start, kind))
                start = end
            if resume > start:  # tokens that straddle
                scaffold = Part.SCAFFOLD in (kind[1], following[1])
                marks.append((at + start, (kind[0], Part.SCAFFOLD) if scaffold else kind))
                start = resume
            kind, before, constant = following, before + more, constant and own
        if len(ids) > start:
            marks.append((at + start, kind))
        run.clear()

    def _boundary(self, joint: list[int], before: str, rest: list[Group]) -> tuple[int, int]:
        """(tokens that spell only text `before`, first token that spells only the `rest`).

        Ids that end with those of the rest spell it with exactly that many tokens, as ids that begin with those of the
        text before do; so one comparison settles all but the rare case of a token that spans both.
        """
        n = len(joint)
        after = "".join([text for text, _, _ in rest])
        constant = all(own for _, _, own in rest)
        tail = self._constants[after] if constant else self.encoder.encode(after)
        if constant and joint[n - len(tail) :] == tail:
            return n - len(tail), n - len(tail)
        end = _common(joint, self.encoder.encode(before))
        return end, max(end, n - _common(joint[::-1], tail[::-1]))


_span = partial(tuple.__new__, Span)  # in half the time of the constructor that a NamedTuple has


def _spans(marks: list[Mark], end: int, weights: Weights | None) -> tuple[Span, ...]:
    """What begins where -> spans, those of one kind joined."""
    starts: list[int] = []
    kinds: list[Kind] = []
    last: Kind | None = None
    for at, kind in marks:
        if kind != last:
            starts.append(at)
            kinds.append(kind)
            last = kind
    if not kinds:
        return ()
    messages, parts = zip(*kinds, strict=True)
    weighed = [0.0] * len(kinds) if weights is None else weights.of(kinds)
    return tuple(map(_span, zip(starts, (*starts[1:], end), messages, parts, weighed, strict=True)))


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

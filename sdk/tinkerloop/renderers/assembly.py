"""Pieces -> tokens. The one place where text of a conversation becomes ids.

Text between two control tokens is encoded in one call, whatever pieces it came from, because that is what encoding
the finished string of an official template does: a role header's newline may merge with the newlines that follow it.
Where a weight or a message changes inside such a run, the boundary is found among its ids. A token that straddles it
is scaffold, and never trained, if one side is; between two parts that the author wrote it belongs to the first. `SEAM`
ends a run on purpose.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from tinkerloop.errors import RenderError
from tinkerloop.renderers.pieces import SEAM, Part, Piece
from tinkerloop.renderers.rendered import Kind, Marks, Rendered
from tinkerloop.renderers.train_on_what import TokenWeights
from tinkerloop.tokenizers.encoders import Encoder

if TYPE_CHECKING:
    from tinker.types import ImageChunk

Encode = Callable[[str], list[int]]


class Kept(dict[str, list[int]]):
    """Text -> ids, encoded on first use."""

    def __init__(self, encode: Encode):
        super().__init__()
        self._encode = encode

    def __missing__(self, text: str) -> list[int]:
        ids = self[text] = self._encode(text)
        return ids


Run = tuple[str, list[int] | None]
"""Text, and its ids where they are known: of control tokens, images, and what the family wrote alone."""
Split = tuple[str, tuple[Run, ...], str]
"""Text before the first control token, the runs from there to the last one, text after it."""


class _Splits(dict[str, Split]):
    """Trusted text -> what it consists of, worked out on first use."""

    def __init__(self, ids: Mapping[str, int], constants: Mapping[str, list[int]]):
        super().__init__()
        self._ids, self._constants = ids, constants
        names = sorted(ids, key=len, reverse=True)  # the longest first, should one begin another
        self._control = re.compile("(" + "|".join(map(re.escape, names)) + ")") if names else None

    def __missing__(self, text: str) -> Split:
        before, *parts = self._control.split(text) if self._control else [text]
        after = parts.pop() if parts else ""
        runs: list[Run] = [("", [self._ids[p]]) if p in self._ids else (p, self._constants[p]) for p in parts if p]
        split = self[text] = (before, tuple(runs), after)
        return split


class Layout(NamedTuple):
    """Pieces, cut into what is encoded in one call each."""

    runs: list[Run]
    kinds: list[Kind]
    """What the tokens are, in order; adjacent ones differ."""
    begins: list[int]
    """The run in which each kind begins."""
    inside: list[tuple[int, int, bool]]
    """The kinds that do not begin with their run: which, at which character, and if the family wrote all before it."""
    images: list[tuple[int, ImageChunk]]
    """Images, and the run that each is."""


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
        self._constants = Kept(encoder.encode)
        self._splits = _Splits(self.ids, self._constants)

    def assemble(
        self,
        pieces: Iterable[tuple[int, Piece]],
        weights: TokenWeights | None = None,
        max_length: int | None = None,
        encode: Encode | None = None,
    ) -> Rendered:
        """Tokens, spans and images of the pieces of messages, in order.

        Args:
            weights: what the tokens weigh; nothing by default.
            encode: the encoder's `encode` unless given: a `Kept` one, for calls that share texts.
        """
        encode = encode or self.encoder.encode
        layout = self._lay_out(pieces)
        # All in a row, since an engine's tables and this code displace each other from the processor's caches.
        encoded = [encode(text) if ids is None else ids for text, ids in layout.runs]
        tokens: list[int] = []
        at: list[int] = []
        for ids in encoded:
            at.append(len(tokens))
            tokens += ids
        at.append(len(tokens))
        starts, kinds = self._starts(layout, encoded, at)
        marks = Marks(starts, kinds, [0.0] * len(kinds) if weights is None else weights.of(kinds))
        return Rendered(tokens, marks, tuple([(at[run], image) for run, image in layout.images]), max_length)

    def _lay_out(self, pieces: Iterable[tuple[int, Piece]]) -> Layout:
        layout = runs, kinds, begins, inside, images = Layout([], [], [], [], [])
        splits, constants = self._splits, self._constants
        open_run, own = "", True
        last: Kind | None = None
        for message, piece in chain(pieces, _END):
            text, part, trusted, image = piece
            if text:
                before, known, after = splits[text] if trusted else (text, (), "")
            elif image is not None:
                before, known, after = "", (("", [0] * (image.expected_tokens or 0)),), ""
            elif piece is SEAM:
                before, known, after = _BREAK
            else:
                continue
            if open_run and known and not before:
                runs.append((open_run, constants[open_run] if own else None))
                open_run, own = "", True
            if (kind := (message, part)) != last and piece is not SEAM:
                if open_run:
                    inside.append((len(kinds), len(open_run), own))
                kinds.append(kind)
                begins.append(len(runs))
                last = kind
            if before:
                open_run += before
                own = own and trusted
            if known:
                if open_run:
                    runs.append((open_run, constants[open_run] if own else None))
                    own = True
                if image is not None:
                    images.append((len(runs), image))
                runs += known
                open_run = after
        return layout

    def _starts(self, layout: Layout, encoded: list[list[int]], at: list[int]) -> tuple[list[int], list[Kind]]:
        """The token that each span begins with, and what the span is. `at` are the tokens that the runs begin with."""
        kinds, constants = layout.kinds, self._constants
        starts = [at[run] for run in layout.begins]
        crossed = False
        for i, character, own in layout.inside:
            run = layout.begins[i]
            text, ids = layout.runs[run][0], encoded[run]
            if own and ids[: len(head := constants[text[:character]])] == head:  # nearly always
                starts[i] += len(head)
                continue
            end, resume = self._boundary(text, character, ids)
            starts[i] += end if kinds[i][1] is _SCAFFOLD is not kinds[i - 1][1] else resume
            crossed = crossed or starts[i] < starts[i - 1]
        if crossed or len({*starts, at[-1]}) <= len(starts):
            return _without_empty(starts, kinds, at[-1])
        return starts, kinds

    def _boundary(self, text: str, at: int, ids: list[int]) -> tuple[int, int]:
        """(tokens that spell only what is before character `at`, first token that spells only the rest).

        Bytes are counted from the nearer end of the text. Where they are not those of the text, because the tokenizer
        normalises it, what both sides encode to by themselves decides.
        """
        before, after = text[:at], text[at:]
        decode = self.encoder.decode_bytes
        backwards = len(after) < len(before)
        wanted = (after if backwards else before).encode()
        n = size = 0
        for token_id in reversed(ids) if backwards else ids:
            size += len(decode([token_id]))
            n += 1
            if size >= len(wanted):
                break
        straddles = int(size > len(wanted))
        if backwards and decode(ids[len(ids) - n :]).endswith(wanted):
            return len(ids) - n, len(ids) - n + straddles
        if not backwards and decode(ids[:n]).startswith(wanted):
            return n - straddles, n
        end = _common(ids, self.encoder.encode(before))
        return end, max(end, len(ids) - _common(ids[::-1], self.encoder.encode(after)[::-1]))


_END = ((-1, SEAM),)
_BREAK: Split = ("", (("", []),), "")  # a run without tokens, which ends the text before it
_SCAFFOLD = Part.SCAFFOLD  # members of an enumeration are slow to look up


def _without_empty(starts: list[int], kinds: list[Kind], size: int) -> tuple[list[int], list[Kind]]:
    """The spans that hold a token, adjacent ones of one kind joined; what two claim is the later one's."""
    kept: list[tuple[int, Kind]] = []
    for start, kind in zip(starts, kinds, strict=True):
        while kept and kept[-1][0] >= start:
            kept.pop()
        if start < size and not (kept and kept[-1][1] == kind):
            kept.append((start, kind))
    return [start for start, _ in kept], [kind for _, kind in kept]


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

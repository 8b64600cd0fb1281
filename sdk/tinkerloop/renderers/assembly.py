"""Conversion of pieces to tokens. This is the only module that encodes the text of a conversation to token ids.

The text between two control tokens (such as `<|im_end|>`) is encoded in one call, even if it comes from several pieces.
Official templates are encoded as one string too, in which the newline of a role header may merge with the newlines
after it. If the message or the part changes within such a text, the place of the change is found among the ids. A token
that spans this place counts as scaffold if one side is scaffold, so it carries no weight; otherwise it belongs to the
first side. A `SEAM` between two pieces forces them to be encoded separately.

Two properties of some tokenizers are followed: the spaces that they write before texts (see `tokenizers.places`), and
the white space that they strip beside control tokens (see `stripping`).

    "<|im_start|>user\\n" (scaffold), "Hi" (text), "<|im_end|>" (stop), with Qwen's tokenizer:
    encode("user\\nHi") == [872, 198, 13048], so the tokens are 151644 872 198 | 13048 | 151645
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from tinkerloop.errors import RenderError
from tinkerloop.renderers.pieces import SEAM, Part, Piece
from tinkerloop.renderers.rendered import Rendered, SpanLabel, SpanTable
from tinkerloop.renderers.stripping import Stripper
from tinkerloop.renderers.train_on_what import TokenWeights
from tinkerloop.tokenizers.encoders import Encoder
from tinkerloop.tokenizers.places import EncodeAt, Place

if TYPE_CHECKING:
    from tinker.types import ImageChunk

Encode = Callable[[str], list[int]]


class EncodeCache(dict[str, list[int]]):
    """Mapping from text to token ids. A text is encoded when it is first looked up, then cached."""

    def __init__(self, encode: Encode):
        super().__init__()
        self._encode = encode

    def __missing__(self, text: str) -> list[int]:
        ids = self[text] = self._encode(text)
        return ids


_Fragment = tuple[str, list[int] | None]
"""A text that is encoded in one call, and its ids if they are already known, else None.

The ids are known for control tokens, for images and for text that the format alone wrote.
"""
_SplitText = tuple[str, tuple[_Fragment, ...], str]
"""A text split in three: before the first control token, from the first to the last, and after the last."""


class _SplitTexts(dict[str, _SplitText]):
    """Mapping from trusted text to the same text split at its control tokens, computed when it is first looked up.

    A lookup raises `RenderError` if the tokenizer lacks one of these tokens.
    """

    def __init__(self, control: Iterable[str], id_of: Callable[[str], int], constant_ids: Mapping[str, list[int]]):
        super().__init__()
        self._id_of, self._constant_ids = id_of, constant_ids
        names = sorted(control, key=len, reverse=True)  # longest first, in case one begins another
        self._control = re.compile("(" + "|".join(map(re.escape, names)) + ")") if names else None

    def __missing__(self, text: str) -> _SplitText:
        before, *parts = self._control.split(text) if self._control else [text]
        after = parts.pop() if parts else ""
        fragments: list[_Fragment] = [
            ("", [self._id_of(part)]) if i % 2 == 0 else (part, self._constant_ids[part])  # tokens and texts in turn
            for i, part in enumerate(parts)
            if part
        ]
        split = self[text] = (before, tuple(fragments), after)
        return split


class _CutPieces(NamedTuple):
    """Pieces after they were cut into fragments. Each fragment is encoded in one call."""

    fragments: list[_Fragment]
    labels: list[SpanLabel]
    """Message and part of each span, in order; adjacent labels differ."""
    begins: list[int]
    """For each label, the index of the fragment in which its span begins."""
    inside: list[tuple[int, int, bool]]
    """The spans that begin inside a fragment: (index of the label, index of the first character in the fragment,
    whether the format wrote all text of the fragment before that character)."""
    images: list[tuple[int, ImageChunk]]
    """Images as (index of the fragment, image)."""


class Assembler:
    """Encodes pieces with one encoder and the control tokens of one chat format.

    The tokenizer may lack control tokens: many conversations need no token for tools, reasoning or images. A piece that
    contains a missing token raises `RenderError`.
    """

    def __init__(self, encoder: Encoder, control: Iterable[str], family: str):
        self.encoder = encoder
        self._family = family
        found = {token: encoder.id_of(token) for token in control}
        self.ids: dict[str, int] = {token: token_id for token, token_id in found.items() if token_id is not None}
        self._constant_ids = EncodeCache(encoder.encode)
        self._split_texts = _SplitTexts(found, self.id_of, self._constant_ids)
        self._encode_at = getattr(encoder, "encode_at", None)
        stripping = getattr(encoder, "stripping", {})
        self._strip = Stripper({token: stripping[token] for token in self.ids if token in stripping})

    def id_of(self, token: str) -> int:
        """Return the id of a control token.

        Raises:
            RenderError: the tokenizer lacks the token.
        """
        if token not in self.ids:
            raise RenderError(
                f"the tokenizer has no token {token!r}, which the chat format {self._family!r} needs here; use the "
                "tokenizer of a model with this format, or the renderer of the tokenizer's model"
            )
        return self.ids[token]

    def assemble(
        self,
        pieces: Iterable[tuple[int, Piece]],
        weights: TokenWeights | None = None,
        max_length: int | None = None,
        encode: Encode | None = None,
        place: Place = Place.AFTER_TOKEN,
    ) -> Rendered:
        """Convert the pieces of a conversation to tokens with spans, weights and images.

        Args:
            pieces: (message index, piece) pairs, in order.
            weights: the weights of messages and parts; by default every token has weight 0.
            max_length: the default `max_length` of the result's `to_datum`.
            encode: function to use instead of the encoder's `encode`, e.g. an `EncodeCache` that several calls share.
            place: the place of the first text.
        """
        encode = encode or self.encoder.encode
        cut = self._cut(self._strip(pieces))
        if self._encode_at is not None:
            cut = cut._replace(fragments=list(_placed(cut.fragments, self._encode_at, place)))
        # Encode all fragments in one pass; alternating with other code would evict the encoder from the CPU's caches.
        encoded = [encode(text) if ids is None else ids for text, ids in cut.fragments]
        tokens: list[int] = []
        offsets: list[int] = []
        for ids in encoded:
            offsets.append(len(tokens))
            tokens += ids
        offsets.append(len(tokens))
        starts, labels = self._span_starts(cut, encoded, offsets)
        span_table = SpanTable(starts, labels, [0.0] * len(labels) if weights is None else weights.for_labels(labels))
        images = tuple([(offsets[i], image) for i, image in cut.images])
        return Rendered(tokens, span_table, images, max_length, self.decode)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token ids. Control tokens appear by name, e.g. `<|im_end|>`. No ids make this raise."""
        return self.encoder.decode_bytes(list(ids)).decode("utf-8", "replace")

    def _cut(self, pieces: Iterable[tuple[int, Piece]]) -> _CutPieces:
        cut = fragments, labels, begins, inside, images = _CutPieces([], [], [], [], [])
        split_texts, constant_ids = self._split_texts, self._constant_ids
        open_text, is_constant = "", True  # the unfinished fragment, and whether the format wrote all of it
        last: SpanLabel | None = None
        for message, piece in chain(pieces, _END):
            text, part, trusted, image = piece
            if text:
                before, known, after = split_texts[text] if trusted else (text, (), "")
            elif image is not None:
                before, known, after = "", (("", [0] * (image.expected_tokens or 0)),), ""
            elif piece is SEAM:
                before, known, after = _BREAK
            else:
                continue
            if open_text and known and not before:
                fragments.append((open_text, constant_ids[open_text] if is_constant else None))
                open_text, is_constant = "", True
            if (label := (message, part)) != last and piece is not SEAM:
                if open_text:
                    inside.append((len(labels), len(open_text), is_constant))
                labels.append(label)
                begins.append(len(fragments))
                last = label
            if before:
                open_text += before
                is_constant = is_constant and trusted
            if known:
                if open_text:
                    fragments.append((open_text, constant_ids[open_text] if is_constant else None))
                    is_constant = True
                if image is not None:
                    images.append((len(fragments), image))
                fragments += known
                open_text = after
        return cut

    def _span_starts(
        self, cut: _CutPieces, encoded: list[list[int]], offsets: list[int]
    ) -> tuple[list[int], list[SpanLabel]]:
        """Return the index of the first token of each span, and the label of each span.

        `offsets` are the indices of the first token of each fragment.
        """
        labels, constant_ids = cut.labels, self._constant_ids
        starts = [offsets[fragment] for fragment in cut.begins]
        crossed = False
        for i, character, is_constant in cut.inside:
            fragment = cut.begins[i]
            text, ids = cut.fragments[fragment][0], encoded[fragment]
            if is_constant and ids[: len(head := constant_ids[text[:character]])] == head:  # nearly always
                starts[i] += len(head)
                continue
            end, resume = self._boundary(text, character, ids)
            starts[i] += end if labels[i][1] is _SCAFFOLD is not labels[i - 1][1] else resume
            crossed = crossed or starts[i] < starts[i - 1]
        if crossed or len({*starts, offsets[-1]}) <= len(starts):
            return _without_empty(starts, labels, offsets[-1])
        return starts, labels

    def _boundary(self, text: str, character: int, ids: list[int]) -> tuple[int, int]:
        """Split the ids of `text` at `character`.

        Returns:
            The number of tokens that end before `character`, and the index of the first token that begins at or after
            it. The two differ if a token contains text from both sides.

        Bytes are counted from the nearer end of the text. The tokenizer may have written a space before the text. A
        tokenizer that normalizes text may give tokens that spell other bytes. In this case each side is encoded
        separately and compared with `ids`.
        """
        before, after = text[:character], text[character:]
        decode = self.encoder.decode_bytes
        backwards = len(after) < len(before)
        side = (after if backwards else before).encode()
        if not backwards and self._encode_at is not None:
            side = b" " * (len(decode(ids)) - len(text.encode())) + side
        n = size = 0
        for token_id in reversed(ids) if backwards else ids:
            size += len(decode([token_id]))
            n += 1
            if size >= len(side):
                break
        is_across = int(size > len(side))
        if backwards and decode(ids[len(ids) - n :]).endswith(side):
            return len(ids) - n, len(ids) - n + is_across
        if not backwards and decode(ids[:n]).startswith(side):
            return n - is_across, n
        end = _common(ids, self.encoder.encode(before))
        rest = self._encode_at(Place.INSIDE, after) if self._encode_at else self.encoder.encode(after)
        return end, max(end, len(ids) - _common(ids[::-1], rest[::-1]))


_END = ((-1, SEAM),)
_BREAK: _SplitText = ("", (("", []),), "")  # an empty fragment, which ends the fragment before it
_SCAFFOLD = Part.SCAFFOLD  # looking up an enum member is slow


def _placed(fragments: Iterable[_Fragment], encode_at: EncodeAt, place: Place) -> Iterator[_Fragment]:
    """Yield fragments with the ids of each text that does not follow a control token. `place` is that of the first."""
    for text, ids in fragments:
        yield text, encode_at(place, text) if text and place is not Place.AFTER_TOKEN else ids
        if text or ids:  # not the empty fragment of a `SEAM`
            place = Place.INSIDE if text else Place.AFTER_TOKEN


def _without_empty(starts: list[int], labels: list[SpanLabel], size: int) -> tuple[list[int], list[SpanLabel]]:
    """Remove spans without tokens and join adjacent spans with the same label. Of overlapping spans the later wins."""
    spans: list[tuple[int, SpanLabel]] = []
    for start, label in zip(starts, labels, strict=True):
        while spans and spans[-1][0] >= start:
            spans.pop()
        if start < size and not (spans and spans[-1][1] == label):
            spans.append((start, label))
    return [start for start, _ in spans], [label for _, label in spans]


def _common(a: list[int], b: list[int]) -> int:
    """Return the length of the longest common prefix of two lists."""
    shared, limit = 0, min(len(a), len(b))
    while shared < limit:  # binary search, because comparing slices is much faster than comparing elements
        middle = (shared + limit + 1) // 2
        if a[shared:middle] == b[shared:middle]:
            shared = middle
        else:
            limit = middle - 1
    return shared

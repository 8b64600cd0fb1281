"""`Rendered`: the tokens of a conversation, with the message, the part and the weight of each token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinkerloop import datum
from tinkerloop._lazy import tinker
from tinkerloop.errors import RenderError
from tinkerloop.renderers.pieces import Part
from tinkerloop.renderers.token_html import Token, shown_tokens, styled, token_totals, tokens_html

if TYPE_CHECKING:
    from tinker.types import ModelInputChunk


SHOWN = 5000
"""The largest number of tokens that a notebook shows; a page with many more is slow."""

SpanLabel = tuple[int, Part]
"""The index of a message (-1 for tokens that belong to no message), and the part of the message."""


class SpanTable(NamedTuple):
    """The spans of a token sequence as three lists of equal length, which are faster to create than `Span` objects.

    Each span ends where the next one begins. The last span ends at the end of the sequence.
    """

    starts: list[int]
    labels: list[SpanLabel]
    weights: list[float]

    def copy(self) -> SpanTable:
        """Return a copy of the table that shares no list with it."""
        return SpanTable(*map(list.copy, self))


class Span(NamedTuple):
    """The tokens `start` to `stop - 1`, which are one part of one message and have the same weight.

    `message` is the index of the message, or -1 for tokens that belong to no message.
    """

    start: int
    stop: int
    message: int
    part: Part
    weight: float


@dataclass(frozen=True)
class Rendered:
    """A conversation as N tokens with N weights, not shifted: `weights[i]` is the weight of predicting token i.

    It can be unpacked as `model_input, weights`. At the positions of images, `tokens` holds 0.
    """

    tokens: list[int]
    span_table: SpanTable
    images: tuple[tuple[int, tinker.types.ImageChunk], ...] = ()
    """The images in order, each as (position of its first token, chunk)."""
    max_length: int | None = None
    """The default `max_length` of `to_datum`."""
    decode: Callable[[list[int]], str] | None = field(default=None, repr=False, compare=False)
    """Function from token ids to their text, to show them. A pickled or copied object does not have it."""

    def __getstate__(self) -> dict[str, Any]:
        # The function belongs to a renderer, which is much larger than the tokens.
        return {name: value for name, value in self.__dict__.items() if name != "decode"}

    def __len__(self) -> int:
        return len(self.tokens)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model_input, self.weights))

    @cached_property
    def weights(self) -> NDArray[np.float32]:
        """The weights of the tokens, (N,) float32."""
        return self._spread(self.span_table.weights, np.float32)

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """The spans in order. Every token is in exactly one span."""
        starts, labels, weights = self.span_table
        rows = zip(starts, self._stops, labels, weights, strict=True)
        return tuple([Span(start, stop, *kind, weight) for start, stop, kind, weight in rows])

    @property
    def _stops(self) -> list[int]:
        return [*self.span_table.starts, len(self.tokens)][1:]

    @cached_property
    def message_index(self) -> NDArray[np.int32]:
        """The index of the message of each token, (N,) int32; -1 for tokens that belong to no message."""
        return self._spread([message for message, _ in self.span_table.labels], np.int32)

    @cached_property
    def parts(self) -> NDArray[np.uint8]:
        """The `Part` of each token as a number, (N,) uint8."""
        return self._spread([part for _, part in self.span_table.labels], np.uint8)

    def _spread(self, values: list[Any], dtype: Any) -> NDArray[Any]:
        lengths = np.array(self._stops, np.int64) - np.array(self.span_table.starts, np.int64)
        return np.repeat(np.array(values, dtype), lengths)

    def shown_tokens(self, max_length: int | None = None) -> list[Token]:
        """Return the tokens with their text, or with their ids as text if `decode` is None.

        Args:
            max_length: tokens from this position on are marked as cut off; None: `self.max_length` is the limit.
        """
        limit = self.max_length if max_length is None else max_length
        limit = len(self) if limit is None else limit
        return shown_tokens(self.tokens, self.spans, dict(self.images), self.decode or _ids_as_text, limit)

    def _repr_html_(self) -> str:
        """Return the tokens as HTML, which a notebook shows for this object."""
        tokens = self.shown_tokens()
        more = f"<p>… and {len(tokens) - SHOWN:,} more tokens</p>" if len(tokens) > SHOWN else ""
        return styled(f"<p>{token_totals(tokens)}</p>", tokens_html(tokens[:SHOWN]), more)

    @property
    def model_input(self) -> tinker.ModelInput:
        """All N tokens as a `tinker.ModelInput`. Without images, its only chunk refers to the list `tokens` itself."""
        return model_input(self.tokens, self.images)

    @property
    def chunk(self) -> tinker.EncodedTextChunk:
        """The N - 1 input tokens as one chunk, aligned with `target_tokens`. Not available if there are images."""
        if self.images:
            raise RenderError(
                "an example with images has several chunks, so .chunk is not available; use .to_datum() or .model_input"
            )
        return tinker.EncodedTextChunk(tokens=self.tokens[:-1])

    @property
    def input(self) -> tinker.ModelInput:
        """The N - 1 input tokens: all tokens except the last."""
        return self.to_datum().model_input if self.images else tinker.ModelInput(chunks=[self.chunk])

    @property
    def target_tokens(self) -> list[int]:
        """The N - 1 target tokens: position i of `input` predicts `target_tokens[i]`."""
        return self.tokens[1:]

    @property
    def target_weights(self) -> NDArray[np.float32]:
        """The weights of `target_tokens`, (N - 1,) float32."""
        return self.weights[1:]

    def to_datum(self, max_length: int | None = None) -> tinker.Datum:
        """Return the checked datum, of at most `max_length` tokens; by default `self.max_length` is the limit.

        The rules and errors are those of `tinkerloop.make_datum`.
        """
        limit = self._limit(max_length)
        if self.images:
            return datum.make_datum(self.model_input, self.weights, max_length=limit)
        return datum.datum_from_tokens(self.tokens, self.weights, max_length=limit)

    def cut_tokens(self, max_length: int | None = None) -> tuple[list[int], NDArray[np.float32]]:
        """Return the tokens and weights of the datum that `to_datum` returns, not shifted.

        The errors are those of `to_datum`. Not available if there are images. tinker is not imported.
        """
        if self.images:
            raise RenderError("an example with images has several chunks; use .to_datum()")
        return datum.cut_tokens(self.tokens, self.weights, max_length=self._limit(max_length))

    def _limit(self, max_length: int | None) -> int | None:
        return self.max_length if max_length is None else max_length


def _ids_as_text(ids: list[int]) -> str:
    return "".join(f"{token_id} " for token_id in ids)


def model_input(tokens: list[int], images: Sequence[tuple[int, tinker.types.ImageChunk]] = ()) -> tinker.ModelInput:
    """Return tokens and the images among them as a `tinker.ModelInput`.

    The ids are not validated, because they come from this package.
    """
    if not images:
        return tinker.ModelInput(chunks=[tinker.EncodedTextChunk.model_construct(tokens=tokens)] if tokens else [])
    chunks: list[ModelInputChunk] = []
    at = 0
    for position, image in (*images, (len(tokens), None)):
        if position > at:
            chunks.append(tinker.EncodedTextChunk.model_construct(tokens=tokens[at:position]))
        if image is not None:
            chunks.append(image)
            at = position + (image.expected_tokens or 0)
    return tinker.ModelInput(chunks=chunks)

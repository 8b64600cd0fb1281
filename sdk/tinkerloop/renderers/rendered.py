"""`Rendered`: the tokens of a conversation, the message and part that each belongs to, and its weight."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinkerloop import datum
from tinkerloop._lazy import tinker
from tinkerloop.errors import RenderError
from tinkerloop.renderers.pieces import Part

if TYPE_CHECKING:
    from tinker.types import ModelInputChunk


SpanLabel = tuple[int, Part]
"""The message that tokens belong to, by its index (-1 for none), and the part of it."""


class SpanTable(NamedTuple):
    """The spans of a sequence as three lists of equal length, which are faster to make than `Span`s.

    Each span ends where the next begins, the last at the end of the sequence.
    """

    starts: list[int]
    labels: list[SpanLabel]
    weights: list[float]

    def copy(self) -> SpanTable:
        """Return a table with lists of its own."""
        return SpanTable(*map(list.copy, self))


class Span(NamedTuple):
    """The tokens [start, stop): one part of one message, with one weight; `message` is -1 for none."""

    start: int
    stop: int
    message: int
    part: Part
    weight: float


@dataclass(frozen=True)
class Rendered:
    """A conversation as N tokens with N weights, not shifted: `weights[i]` is the weight of predicting token i.

    Unpacks as `model_input, weights`. With images, `tokens` holds a 0 for each position of an image.
    """

    tokens: list[int]
    span_table: SpanTable
    images: tuple[tuple[int, tinker.types.ImageChunk], ...] = ()
    """(position of the image's first token, chunk), in order."""
    max_length: int | None = None
    """The default of `to_datum`."""

    def __len__(self) -> int:
        return len(self.tokens)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model_input, self.weights))

    @cached_property
    def weights(self) -> NDArray[np.float32]:
        """The (N,) float32 weights of the tokens."""
        weights = np.zeros(len(self.tokens), np.float32)
        stops = self._stops
        for i, weight in enumerate(self.span_table.weights):
            if weight:
                weights[self.span_table.starts[i] : stops[i]] = weight
        return weights

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """The spans, in order; together they hold every token once."""
        starts, labels, weights = self.span_table
        rows = zip(starts, self._stops, labels, weights, strict=True)
        return tuple([Span(start, stop, *kind, weight) for start, stop, kind, weight in rows])

    @property
    def _stops(self) -> list[int]:
        return [*self.span_table.starts, len(self.tokens)][1:]

    @cached_property
    def message_index(self) -> NDArray[np.int32]:
        """The (N,) indices of the messages that the tokens belong to, -1 for none."""
        return self._spread([message for message, _ in self.span_table.labels], np.int32)

    @cached_property
    def parts(self) -> NDArray[np.uint8]:
        """The (N,) parts that the tokens belong to, as the numbers of `Part`."""
        return self._spread([part for _, part in self.span_table.labels], np.uint8)

    def _spread(self, values: list[int], dtype: Any) -> NDArray[Any]:
        return np.repeat(np.array(values, dtype), np.subtract(self._stops, self.span_table.starts))

    @property
    def model_input(self) -> tinker.ModelInput:
        """All N tokens as Tinker takes them; without images its one chunk holds `tokens` itself."""
        return model_input(self.tokens, self.images)

    @property
    def chunk(self) -> tinker.EncodedTextChunk:
        """The N - 1 input tokens as one chunk, aligned with `target_tokens`; only where there are no images."""
        if self.images:
            raise RenderError("an example with images is several chunks; use .to_datum() or .model_input")
        return tinker.EncodedTextChunk(tokens=self.tokens[:-1])

    @property
    def input(self) -> tinker.ModelInput:
        """The N - 1 inputs: every token but the last."""
        return self.to_datum().model_input if self.images else tinker.ModelInput(chunks=[self.chunk])

    @property
    def target_tokens(self) -> list[int]:
        """The N - 1 targets: position i of `input` predicts `target_tokens[i]`."""
        return self.tokens[1:]

    @property
    def target_weights(self) -> NDArray[np.float32]:
        """The (N - 1,) weights of `target_tokens`."""
        return self.weights[1:]

    def to_datum(self, max_length: int | None = None) -> tinker.Datum:
        """The checked datum; see `tinkerloop.make_datum` for the rules and errors."""
        limit = self.max_length if max_length is None else max_length
        if self.images:
            return datum.make_datum(self.model_input, self.weights, max_length=limit)
        return datum.datum_from_tokens(self.tokens, self.weights, max_length=limit)


def model_input(tokens: list[int], images: Sequence[tuple[int, tinker.types.ImageChunk]] = ()) -> tinker.ModelInput:
    """Tokens and the images among them as Tinker takes them; the ids are not validated again, for all are our own."""
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

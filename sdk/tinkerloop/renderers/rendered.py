"""The result of rendering: tokens, what each of them is, and how much it weighs."""

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


Kind = tuple[int, Part]
"""What tokens are: of which message (-1 for none), and which part of it."""


class Marks(NamedTuple):
    """The spans of a sequence as three lists of one length; each span ends where the next begins."""

    starts: list[int]
    kinds: list[Kind]
    weights: list[float]

    def copy(self) -> Marks:
        """Lists of its own."""
        return Marks(*map(list.copy, self))


class Span(NamedTuple):
    """The tokens [start, stop): one part of one message, with one weight; `message` is -1 for none."""

    start: int
    stop: int
    message: int
    part: Part
    weight: float


@dataclass(frozen=True)
class Rendered:
    """A conversation as N tokens with N weights, not shifted: `weights[i]` says how much token i is learned.

    Unpacks as `model_input, weights`. With images, `tokens` holds a 0 for each position of an image.
    """

    tokens: list[int]
    marks: Marks
    images: tuple[tuple[int, tinker.types.ImageChunk], ...] = ()
    """(position of the first of its tokens, chunk), in order."""
    max_length: int | None = None
    """What `to_datum` truncates to unless told otherwise."""

    def __len__(self) -> int:
        return len(self.tokens)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model_input, self.weights))

    @cached_property
    def weights(self) -> NDArray[np.float32]:
        """(N,) float32."""
        weights = np.zeros(len(self.tokens), np.float32)
        stops = self._stops
        for i, weight in enumerate(self.marks.weights):
            if weight:
                weights[self.marks.starts[i] : stops[i]] = weight
        return weights

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """The spans, in order; together they hold every token once."""
        starts, kinds, weights = self.marks
        rows = zip(starts, self._stops, kinds, weights, strict=True)
        return tuple([Span(start, stop, *kind, weight) for start, stop, kind, weight in rows])

    @property
    def _stops(self) -> list[int]:
        return [*self.marks.starts, len(self.tokens)][1:]

    @cached_property
    def message_index(self) -> NDArray[np.int32]:
        """(N,) the message each token belongs to, -1 for what belongs to none."""
        return self._spread([message for message, _ in self.marks.kinds], np.int32)

    @cached_property
    def parts(self) -> NDArray[np.uint8]:
        """(N,) what each token is, as the numbers of `Part`."""
        return self._spread([part for _, part in self.marks.kinds], np.uint8)

    def _spread(self, values: list[int], dtype: Any) -> NDArray[Any]:
        return np.repeat(np.array(values, dtype), np.subtract(self._stops, self.marks.starts))

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
        """(N - 1,) the weights of `target_tokens`."""
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

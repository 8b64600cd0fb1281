"""Datums: checked training examples.

A `tinker.Datum` pairs a model input of N positions with loss inputs, such as the target token of each position.
`make_datum` builds a datum from unshifted tokens and weights, and raises if it could not be trained on.
`datum_checks.check_datum` applies the same rules to a datum that was built elsewhere. The convention is Tinker's:
position i of the input predicts `target_tokens[i]`, so tokens t[0..N] become inputs t[0..N-1] and targets t[1..N].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tinkerloop._lazy import tinker
from tinkerloop.datum_values import check_finite, check_ids, int_array, read_chunks, real_array
from tinkerloop.errors import DatumError, ZeroWeightError
from tinkerloop.number_checks import is_whole

if TYPE_CHECKING:
    from tinker.types import ModelInputChunk


def make_datum(
    model_input: tinker.ModelInput | Sequence[int] | NDArray[np.integer],
    weights: ArrayLike,
    *,
    targets: ArrayLike | None = None,
    max_length: int | None = None,
    vocab_size: int | None = None,
) -> tinker.Datum:
    """Build a cross-entropy datum: token t[i], i >= 1, is predicted from the tokens before it, with weight w[i].

    Args:
        model_input: the N tokens of the example, not shifted. An image takes `expected_tokens` positions.
        weights: (N,) any finite numbers; they must be 0 at image positions. The first weight has no effect, because
            no token precedes the first token.
        targets: (N, K) alternative target tokens, not shifted, for (N, K) weights, e.g. for distillation. Row i holds
            the targets that replace token i. By default the targets are the tokens themselves.
        max_length: keep at most this many tokens and drop the rest. An image is never split: if it does not fit, it is
            dropped together with everything after it. An image that alone has more tokens is an error.
        vocab_size: if given, every token id must be less than this.

    Returns:
        A cross-entropy datum with N - 1 positions: `target_tokens` int64 and `weights` float32, each (N - 1,) or
        (N - 1, K). The target at an image position is token id 0 with weight 0.

    Raises:
        ZeroWeightError: all weights of the targets are zero, or only zero weights are left after truncation.
        DatumError: the input breaks another rule. The message gives the field, the index, the expected and the given
            value.
    """
    # Plain tokens are kept as one array. Only a ModelInput is processed chunk by chunk, because it may contain images.
    if isinstance(model_input, tinker.ModelInput):
        chunks, tokens, is_text = read_chunks(model_input)
    else:
        chunks, is_text = None, None
        tokens = int_array("model_input", model_input)
        if tokens.ndim != 1:
            raise DatumError(
                "tokens must be one flat sequence", field="model_input", expected="(N,)", given=tokens.shape
            )
    length = len(tokens)
    weight = real_array("weights", weights)
    if weight.shape[:1] != (length,):
        raise DatumError(
            "must have one weight per token",
            field="weights",
            expected=length,
            given=len(weight) if weight.ndim else 0,
        )
    if targets is not None:
        target = int_array("targets", targets)
        if target.ndim != 2 or target.shape != weight.shape or len(target) != length:
            raise DatumError(
                "targets and weights must both have the shape (N, K)",
                field="targets",
                expected=f"({length}, K) for both",
                given=f"targets {target.shape}, weights {weight.shape}",
            )
    elif weight.ndim != 1:
        raise DatumError(
            "2-D weights need 2-D targets; pass targets of the same shape, or 1-D weights",
            field="weights",
            expected=f"({length},)",
            given=weight.shape,
        )
    else:
        target = None

    had_weight = bool(np.any(weight[1:]))
    _check_max_length(max_length)
    if max_length is not None and length > max_length:
        if chunks is None:
            length = max_length
        else:
            chunks, length = _truncate(chunks, max_length)
        tokens, is_text, weight = tokens[:length], None if is_text is None else is_text[:length], weight[:length]
    _check_length(length)
    if chunks is not None and not isinstance(chunks[-1], tinker.EncodedTextChunk):
        raise DatumError(
            "the last chunk must be text, because no token is predicted after it; remove a final image or append text",
            field="model_input",
            index=len(chunks) - 1,
            expected="encoded_text",
            given=chunks[-1].type,
        )
    check_ids("model_input", tokens, vocab_size)
    if is_text is not None:
        on_image = np.flatnonzero(~is_text & (weight != 0 if weight.ndim == 1 else (weight != 0).any(axis=1)))
        if len(on_image):
            raise DatumError(
                "an image position cannot be a training target; set its weight to 0",
                field="weights",
                index=int(on_image[0]),
                expected=0,
                given=weight[on_image[0]],
            )
    if target is None:
        target = tokens
    else:
        target = target[:length] if is_text is None else np.where(is_text[:, None], target[:length], 0)
        check_ids("targets", target, vocab_size)
    if chunks is None:
        inputs: list[ModelInputChunk] = [_text_chunk(tokens[:-1].tolist())]
    else:
        *inputs, last = chunks
        assert isinstance(last, tinker.EncodedTextChunk)
        if len(last.tokens) > 1:
            inputs.append(_text_chunk(list(last.tokens[:-1])))
    _check_any_weight(weight[1:], max_length if had_weight else None)
    return _supervised_datum(inputs, target[1:], weight[1:])


def datum_from_tokens(
    tokens: list[int], weights: NDArray[np.float32], *, max_length: int | None = None
) -> tinker.Datum:
    """Like `make_datum`, for ids that come directly from a tokenizer: skips the checks and converts the ids only once.

    Args:
        tokens: the N token ids of the example, not shifted; Python integers in the vocabulary.
        weights: (N,) float32.
        max_length: keep at most this many tokens.

    Raises:
        ZeroWeightError: all weights of the targets are zero, or only zero weights are left after truncation.
        DatumError: fewer than two tokens, or a weight that is not finite.
    """
    tokens, weights = cut_tokens(tokens, weights, max_length=max_length)
    ids = np.fromiter(tokens, np.int64, len(tokens))
    return _supervised_datum([_text_chunk(tokens[:-1])], ids[1:], weights[1:].copy())


def cut_tokens(
    tokens: list[int], weights: NDArray[np.float32], *, max_length: int | None = None
) -> tuple[list[int], NDArray[np.float32]]:
    """Return the tokens and the weights of `datum_from_tokens`, not shifted. Arguments and errors are the same."""
    check_finite("weights", weights)
    _check_max_length(max_length)
    had_weight = weights[1:].any()
    if max_length is not None and len(tokens) > max_length:
        tokens, weights = tokens[:max_length], weights[:max_length]
    _check_length(len(tokens))
    _check_any_weight(weights[1:], max_length if had_weight else None)
    return tokens, weights


def _check_max_length(max_length: int | None) -> None:
    if max_length is not None and (not is_whole(max_length) or max_length < 1):
        raise DatumError("must be a whole number of at least 1, or None", field="max_length", given=max_length)


def _check_length(length: int) -> None:
    if length < 2:
        raise DatumError(
            "too short: a datum needs a token to predict and a token before it", expected=">= 2 tokens", given=length
        )


def _check_any_weight(weight: NDArray[np.float32], cut_to: int | None) -> None:
    """Raise if all weights of the targets are zero.

    `cut_to` is the `max_length` to name in the error; None if truncation is not the cause.
    """
    if not weight.any():
        raise ZeroWeightError(
            "all weights are zero, so nothing would be learned"
            if cut_to is None
            else f"truncating to max_length={cut_to} leaves no trained token",
            field="weights",
        )


def _supervised_datum(
    inputs: list[ModelInputChunk], target: NDArray[np.int64], weight: NDArray[np.float32]
) -> tinker.Datum:
    """Build a datum from inputs and from the targets and weights of their positions, (N,) or (N, K)."""
    return tinker.Datum(
        model_input=tinker.ModelInput(chunks=inputs),
        loss_fn_inputs={
            "target_tokens": tinker.TensorData.from_numpy(np.ascontiguousarray(target)),
            "weights": tinker.TensorData.from_numpy(np.ascontiguousarray(weight, dtype=np.float32)),
        },
    )


def _text_chunk(tokens: list[int]) -> tinker.EncodedTextChunk:
    """Return a text chunk without validating the ids, which the caller guarantees to be Python integers.

    Validation would take most of the time.
    """
    return tinker.EncodedTextChunk.model_construct(tokens=tokens)


def _truncate(chunks: Sequence[ModelInputChunk], max_length: int) -> tuple[list[ModelInputChunk], int]:
    """Return the longest prefix of at most `max_length` tokens that ends in text and splits no image, and its size."""
    kept: list[ModelInputChunk] = []
    room = max_length
    for index, chunk in enumerate(chunks):
        if chunk.length <= room:
            kept.append(chunk)
            room -= chunk.length
            continue
        if isinstance(chunk, tinker.EncodedTextChunk):
            if room > 0:
                kept.append(tinker.EncodedTextChunk(tokens=list(chunk.tokens[:room])))
        elif chunk.length > max_length:
            raise DatumError(
                "a single image is longer than max_length; increase max_length or shrink the image",
                field="model_input",
                index=index,
                expected=f"<= {max_length} tokens",
                given=chunk.length,
            )
        break
    while kept and not isinstance(kept[-1], tinker.EncodedTextChunk):
        kept.pop()
    return kept, sum(chunk.length for chunk in kept)

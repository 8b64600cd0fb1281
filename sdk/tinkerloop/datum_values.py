"""Arrays from the values of a datum: each is read, and raises if it holds something else than the field may have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tinkerloop._lazy import tinker
from tinkerloop.errors import DatumError
from tinkerloop.number_checks import check_whole

if TYPE_CHECKING:
    from tinker.types import ModelInputChunk


def read_chunks(
    model_input: tinker.ModelInput,
) -> tuple[list[ModelInputChunk], NDArray[np.int64], NDArray[np.bool_] | None]:
    """Check the chunks of a model input and concatenate their token ids.

    Returns:
        The chunks; the token ids (N,), 0 at image positions; and an (N,) array that is True at text positions, or None
        if all positions are text.
    """
    chunks = list(model_input.chunks)
    check_chunks(chunks)
    if len(chunks) == 1 and isinstance(chunks[0], tinker.EncodedTextChunk):
        return chunks, chunk_ids(chunks[0], 0), None
    length = sum(chunk.length for chunk in chunks)
    tokens, is_text = np.zeros(length, dtype=np.int64), np.zeros(length, dtype=bool)
    start = 0
    for index, chunk in enumerate(chunks):
        stop = start + chunk.length
        if isinstance(chunk, tinker.EncodedTextChunk):
            tokens[start:stop] = chunk_ids(chunk, index)
            is_text[start:stop] = True
        start = stop
    return chunks, tokens, None if is_text.all() else is_text


def check_chunks(chunks: Sequence[ModelInputChunk]) -> None:
    """Raise `DatumError` for a text chunk without tokens, or an image chunk whose `expected_tokens` is not positive."""
    for index, chunk in enumerate(chunks):
        if isinstance(chunk, tinker.EncodedTextChunk):
            if not len(chunk.tokens):
                raise DatumError(
                    "a text chunk has no tokens", field="model_input", index=index, expected=">= 1 token", given=0
                )
        elif getattr(chunk, "expected_tokens", 1) is None:
            raise DatumError(
                "expected_tokens of the image chunk is not set; build the chunk with tinkerloop.image_chunk",
                field="model_input",
                index=index,
            )
        elif getattr(chunk, "expected_tokens", 1) < 1:
            raise DatumError("an image needs tokens", field="model_input", index=index, expected=1, given=chunk.length)


def chunk_ids(chunk: tinker.EncodedTextChunk, index: int) -> NDArray[np.int64]:
    """Return the ids of a text chunk. `index` is its place in the model input.

    Raises:
        DatumError: an id is not an integer, or is too large for int64.
    """
    ids = _array("model_input", chunk.tokens)
    if ids.dtype.kind in "iu" and ids.ndim == 1:
        return ids.astype(np.int64, copy=False)
    for position, token in enumerate(chunk.tokens):
        if not isinstance(token, Integral) or isinstance(token, bool) or not -(2**63) <= token < 2**63:
            raise DatumError(
                f"token ids must be int64 integers; chunk {index} has another value at {position}",
                field="model_input",
                index=index,
                expected="integers",
                given=repr(token)[:40],
            )
    return np.array([int(token) for token in chunk.tokens], np.int64)


def read_tensor(field: str, data: tinker.TensorData) -> NDArray[Any]:
    """Return a loss input as an array. Indices that do not fit a sparse tensor never end the process.

    Raises:
        DatumError: `data` cannot be read as an array.
    """
    try:
        if data.sparse_crow_indices is None:
            return data.to_numpy()
        import torch

        # tinker < 0.30.4 does not check the indices, and a wrong one then ends the process.
        with torch.sparse.check_sparse_tensor_invariants():
            return data.to_numpy()
    except (ValueError, TypeError, OverflowError, RuntimeError, AssertionError) as error:
        raise DatumError(f"cannot be read as an array: {error}", field=field) from error


def trained_positions(datum: tinker.Datum) -> int:
    """Return the number of positions with a weight that is not 0; all positions of a datum without weights.

    Raises:
        DatumError: the weights cannot be read as an array.
    """
    if "weights" not in datum.loss_fn_inputs:
        return datum.model_input.length
    weights = read_tensor("weights", datum.loss_fn_inputs["weights"])  # (N,), or (N, K) for K targets per position
    return int(np.count_nonzero(weights if weights.ndim == 1 else np.any(weights != 0, axis=1)))


def _array(field: str, values: Any) -> NDArray[Any]:
    try:
        return np.asarray(values)
    except ValueError:
        raise DatumError("must be a rectangular array of numbers", field=field, given="ragged rows") from None
    except (TypeError, RuntimeError) as error:  # e.g. a tensor on a GPU, in bfloat16, or one that requires a gradient
        raise DatumError(f"cannot be read as an array: {error}", field=field, given=type(values).__name__) from error


def int_array(field: str, values: Any) -> NDArray[np.int64]:
    array = _array(field, values)
    if array.size and array.dtype.kind not in "iu":
        raise DatumError("token ids must be integers", field=field, expected="integers", given=array.dtype)
    return array.astype(np.int64)


def real_array(field: str, values: Any) -> NDArray[np.float32]:
    """Return `values` as a float32 array.

    Raises:
        DatumError: they are not an array of real numbers, or a value is not finite in float32.
    """
    array = _array(field, values)
    if array.size and array.dtype.kind not in "biuf":
        raise DatumError("must be real numbers", field=field, expected="real numbers", given=array.dtype)
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    check_finite(field, array)
    return array


def check_finite(field: str, values: NDArray[np.float32]) -> None:
    if not math.isfinite(values.sum(dtype=np.float64)):  # float32 values cannot overflow a float64 sum
        index = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
        first = index[0] if index else None
        raise DatumError("must be finite in float32", field=field, index=first, given=values[index])


def check_ids(field: str, ids: NDArray[np.int64], vocab_size: int | None) -> None:
    if vocab_size is not None:
        check_whole("vocab_size", vocab_size, 1, error=DatumError)
    wrong = ids < 0 if vocab_size is None else (ids < 0) | (ids >= vocab_size)
    if wrong.any():
        index = tuple(int(i) for i in np.argwhere(wrong)[0])
        expected = ">= 0" if vocab_size is None else f"0 <= id < {vocab_size}"
        raise DatumError("token id out of range", field=field, index=index[0], expected=expected, given=ids[index])

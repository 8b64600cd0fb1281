"""Datums: checked training examples.

A `tinker.Datum` pairs a model input of N positions with loss inputs, such as the target token of each position.
`make_datum` builds a datum from unshifted tokens and weights, and raises if it could not be trained on. `check_datum`
applies the same rules to a datum that was built elsewhere. The convention is Tinker's: position i of the input predicts
`target_tokens[i]`, so tokens t[0..N] become inputs t[0..N-1] and targets t[1..N].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tinkerloop._lazy import tinker
from tinkerloop.errors import DatumError, ZeroWeightError

if TYPE_CHECKING:
    from tinker.types import ModelInputChunk

_POLICY_INPUTS = ("target_tokens", "logprobs", "advantages")
LOSS_INPUTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "cross_entropy": ("target_tokens", "weights"),
        "importance_sampling": _POLICY_INPUTS,
        "ppo": _POLICY_INPUTS,
        "cispo": _POLICY_INPUTS,
        "dro": _POLICY_INPUTS,
        "gspo": (*_POLICY_INPUTS, "sequence_ratio_mask"),
        "stable_reinforce": _POLICY_INPUTS,
    }
)
"""Mapping from the name of a built-in loss to the names of its loss inputs. The service accepts exactly these inputs.

`stable_reinforce`, a loss of the hosted service, also needs the provenance of each datum (`Datum.with_provenance`).
"""
POLICY_LOSSES = tuple(name for name in LOSS_INPUTS if "advantages" in LOSS_INPUTS[name])
"""The built-in losses with advantages. Until the loop queues a step, their datums may also have `weights`."""


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
            dropped together with everything after it.
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
        chunks, tokens, is_text = _read_chunks(model_input)
    else:
        chunks, is_text = None, None
        tokens = _int_array("model_input", model_input)
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
        target = _int_array("targets", targets)
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
    if max_length is not None and length > max_length:
        if chunks is None:
            length = max(max_length, 0)
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
    _check_ids("model_input", tokens, vocab_size)
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
        _check_ids("targets", target, vocab_size)
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
    _check_finite("weights", weights)
    had_weight = weights[1:].any()
    if max_length is not None and len(tokens) > max_length:
        tokens, weights = tokens[: max(max_length, 0)], weights[: max(max_length, 0)]
    _check_length(len(tokens))
    _check_any_weight(weights[1:], max_length if had_weight else None)
    return tokens, weights


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


def check_datum(
    datum: tinker.Datum,
    *,
    loss_fn: str = "cross_entropy",
    vocab_size: int | None = None,
    allow_zero_weight: bool = False,
) -> None:
    """Raise unless `datum` can be trained on with `loss_fn`.

    A valid datum has exactly the loss inputs of `LOSS_INPUTS[loss_fn]`, each as long as the model input. Token ids are
    in range, numbers are finite, weights at image positions are 0, and at least one weight is not zero. For a policy
    loss, it may also have `weights`, as described at `fold_weights`. With `loss_fn="custom"`, only `target_tokens` of
    the loss inputs is required and checked.

    Raises:
        ZeroWeightError: all `weights` are zero and `allow_zero_weight` is false.
        DatumError: the datum breaks another rule. The message gives the field, the index, the expected and the given
            value.
    """
    if not isinstance(datum, tinker.Datum):
        raise DatumError("not a datum", expected="a tinker.Datum", given=type(datum).__name__)
    _, tokens, is_text = _read_chunks(datum.model_input)
    if loss_fn in POLICY_LOSSES and "advantages" in datum.loss_fn_inputs:
        datum = fold_weights(datum)
    check_positions(datum, tokens, is_text, loss_fn, vocab_size, allow_zero_weight)


def check_positions(
    datum: tinker.Datum,
    tokens: NDArray[np.int64],
    is_text: NDArray[np.bool_] | None,
    loss_fn: str,
    vocab_size: int | None,
    allow_zero_weight: bool,
) -> None:
    """Like `check_datum`, for a datum whose model input has already been read into arrays.

    Args:
        tokens: (N,) token ids of the model input; at image positions any valid id.
        is_text: (N,) True at text positions, False at image positions; None if all positions are text.
    """
    length = len(tokens)
    if length < 1:
        raise DatumError("the model input is empty", field="model_input", expected=">= 1 token", given=0)
    _check_ids("model_input", tokens, vocab_size)

    inputs = datum.loss_fn_inputs
    if loss_fn != "custom":
        if not isinstance(loss_fn, str) or loss_fn not in LOSS_INPUTS:
            raise DatumError(
                "unknown loss function", field="loss_fn", expected=" | ".join([*LOSS_INPUTS, "custom"]), given=loss_fn
            )
        if set(inputs) != set(LOSS_INPUTS[loss_fn]):
            policy = loss_fn == "cross_entropy" and "advantages" in inputs
            raise DatumError(
                f"wrong loss inputs for {loss_fn}"
                + '; datums of rollouts need their own loss: pass loss_fn="importance_sampling" (the loss_fn of the '
                "rollouts)" * policy,
                field="loss_fn_inputs",
                expected=sorted(LOSS_INPUTS[loss_fn]),
                given=sorted(inputs),
            )
    elif "target_tokens" not in inputs:
        raise DatumError("a custom loss needs target_tokens", field="loss_fn_inputs", given=sorted(inputs))

    target = read_tensor("target_tokens", inputs["target_tokens"])
    if target.dtype != np.int64:
        raise DatumError("token ids have the wrong dtype", field="target_tokens", expected="int64", given=target.dtype)
    if target.ndim not in (1, 2) or len(target) != length or target.size == 0:
        unshifted = target.ndim in (1, 2) and len(target) == length - 1
        raise DatumError(
            "must have one target (or K targets) per input position"
            + ("; the input is one token longer: beside .target_tokens of an example, use its .input" * unshifted),
            field="target_tokens",
            expected=f"({length},) or ({length}, K)",
            given=target.shape,
        )
    _check_ids("target_tokens", target, vocab_size)
    if loss_fn == "custom":
        return
    if target.ndim == 2 and loss_fn != "cross_entropy":
        raise DatumError(
            f"must be 1-D for {loss_fn}; only cross_entropy allows several targets per position",
            field="target_tokens",
            given=target.shape,
        )
    for name in LOSS_INPUTS[loss_fn][1:]:
        values = read_tensor(name, inputs[name])
        if values.dtype != np.float32:
            raise DatumError("must be float32", field=name, expected="float32", given=values.dtype)
        if values.shape != target.shape:
            unshifted = name == "weights" and values.shape == (length + 1,)
            raise DatumError(
                "must have the shape of target_tokens"
                + ("; beside .target_tokens of an example, use its .target_weights, which are shifted too" * unshifted),
                field=name,
                expected=target.shape,
                given=values.shape,
            )
        _check_finite(name, values)
    if loss_fn == "cross_entropy":
        weight = inputs["weights"].to_numpy()
        if not allow_zero_weight and not np.any(weight):
            raise ZeroWeightError("all weights are zero, so nothing would be learned", field="weights")
        predicts_image = [] if is_text is None else np.flatnonzero(~is_text[1:])
        if len(predicts_image) and np.any(weight[predicts_image]):
            index = next(int(i) for i in predicts_image if np.any(weight[i]))
            raise DatumError(
                "an image position cannot be a training target; set its weight to 0",
                field="weights",
                index=index,
                expected=0,
                given=weight[index],
            )


def scale_weights(datum: tinker.Datum, factor: float) -> tinker.Datum:
    """Return a copy of a datum with every weight multiplied by `factor`."""
    weights = read_tensor("weights", datum.loss_fn_inputs["weights"])
    scaled = np.multiply(weights, factor, dtype=np.float64).astype(np.float32)
    inputs = {**datum.loss_fn_inputs, "weights": tinker.TensorData.from_numpy(scaled)}
    return replace(datum, loss_fn_inputs=inputs)


def fold_weights(datum: tinker.Datum) -> tinker.Datum:
    """Return a copy of a policy datum whose weights are multiplied into its advantages, and are then left out.

    Policy losses have no weights on the service. The weights of a policy datum are greater than 0 exactly where the
    target was sampled, so that the loop can normalise over these positions. A datum without weights is returned as it
    is.

    Raises:
        DatumError: the advantages are missing, or do not have the shape of the weights; or a weight is negative or not
            finite.
    """
    inputs = dict(datum.loss_fn_inputs)
    if "weights" not in inputs:
        return datum
    weights = real_array("weights", read_tensor("weights", inputs.pop("weights")))
    if "advantages" not in inputs:
        raise DatumError("a policy datum needs advantages", field="loss_fn_inputs", given=sorted(datum.loss_fn_inputs))
    advantages = real_array("advantages", read_tensor("advantages", inputs["advantages"]))
    if advantages.shape != weights.shape:
        raise DatumError(
            "must have the shape of weights", field="advantages", expected=weights.shape, given=advantages.shape
        )
    if (weights < 0).any():
        index = int(np.argwhere(weights < 0)[0][0])
        raise DatumError(
            "a weight of a policy datum must not be negative, because a policy loss is not linear in the advantage; "
            "change the sign of the advantage",
            field="weights",
            index=index,
            expected=">= 0",
            given=weights[index],
        )
    inputs["advantages"] = tinker.TensorData.from_numpy(advantages * weights)
    return replace(datum, loss_fn_inputs=inputs)


def _read_chunks(
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


def _array(field: str, values: Any) -> NDArray[Any]:
    try:
        return np.asarray(values)
    except ValueError:
        raise DatumError("must be a rectangular array of numbers", field=field, given="ragged rows") from None
    except (TypeError, RuntimeError) as error:  # e.g. a tensor on a GPU, in bfloat16, or one that requires a gradient
        raise DatumError(f"cannot be read as an array: {error}", field=field, given=type(values).__name__) from error


def _int_array(field: str, values: Any) -> NDArray[np.int64]:
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
    _check_finite(field, array)
    return array


def _check_finite(field: str, values: NDArray[np.float32]) -> None:
    if not math.isfinite(values.sum(dtype=np.float64)):  # float32 values cannot overflow a float64 sum
        index = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
        first = index[0] if index else None
        raise DatumError("must be finite in float32", field=field, index=first, given=values[index])


def _check_ids(field: str, ids: NDArray[np.int64], vocab_size: int | None) -> None:
    wrong = ids < 0 if vocab_size is None else (ids < 0) | (ids >= vocab_size)
    if wrong.any():
        index = tuple(int(i) for i in np.argwhere(wrong)[0])
        expected = ">= 0" if vocab_size is None else f"0 <= id < {vocab_size}"
        raise DatumError("token id out of range", field=field, index=index[0], expected=expected, given=ids[index])

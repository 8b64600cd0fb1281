"""The binary messages of Tinker's HTTP API: forward_backward requests, their outputs, and samples.

The message classes are those that the `tinker` package ships. Arrays are little-endian bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import numpy as np
import tinker
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from tinker.proto import tinker_public_pb2 as messages
from tinker.types import ImageChunk, SampleResponse
from tinker.types.topk_logprobs import TopkLogprobs

from tinkerloop.local.request_errors import bad_request
from tinkerloop.local.unsupported import unsupported_error
from tinkerloop.server.answers import Answer

MEDIA_TYPE = "application/x-protobuf"
MAX_ELEMENTS = 2**26
"""The largest number of elements in all tensors of one request. A sparse tensor of few bytes can be huge when dense."""
MAX_PARTS = 2**15
"""The largest number of datums and of their chunks in one request. The client sends at most 1024 datums at once."""
_DTYPES: dict[int, tuple[type[np.generic], Literal["float32", "int64"]]] = {
    messages.DTYPE_FLOAT32: (np.float32, "float32"),
    messages.DTYPE_INT64: (np.int64, "int64"),
}
_STOP_REASONS = {"stop": messages.STOP_REASON_STOP, "length": messages.STOP_REASON_LENGTH}


@dataclass(frozen=True)
class ForwardBackwardCall:
    """A decoded forward_backward request: to which model, its number, and the arguments of the client's method."""

    model_id: str
    number: int
    message: Any

    def arguments(self) -> tuple[list[tinker.Datum], str, dict[str, float | str] | None]:
        """Return the datums, the name of the loss and its configuration.

        Raises:
            tinker.BadRequestError: a tensor has an unknown dtype, or a size that does not fit its shape.
            NotImplementedError: a datum contains a chunk that the engine does not support.
        """
        message = self.message
        parts = len(message.data) + sum(len(datum.model_input) for datum in message.data)
        if parts > MAX_PARTS:
            raise bad_request(f"the request has {parts} datums and chunks; the largest number is {MAX_PARTS}")
        size = sum(_elements(tensor) for datum in message.data for tensor in datum.loss_fn_inputs.values())
        if size > MAX_ELEMENTS:
            raise bad_request(f"the tensors of the request have {size} elements; the largest number is {MAX_ELEMENTS}")
        config: dict[str, float | str] = {
            name: getattr(value, value.WhichOneof("value") or "number")
            for name, value in message.loss_fn_config_v2.items()
        }
        return [_datum(d) for d in message.data], message.loss_fn, config or dict(message.loss_fn_config) or None

    @property
    def forward_only(self) -> bool:
        return self.message.forward_only


def read_forward_backward(body: bytes) -> ForwardBackwardCall:
    """Decode the body of a forward_backward request.

    Raises:
        tinker.BadRequestError: the body is not such a message.
    """
    message = messages.ForwardBackwardRequest()
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise bad_request(f"the body is not a ForwardBackwardRequest: {error}") from error
    if not message.model_id or message.seq_id < 1:
        raise bad_request("the body is not a ForwardBackwardRequest: it needs model_id, and seq_id >= 1")
    return ForwardBackwardCall(message.model_id, message.seq_id, message)


def read_head(beginning: bytes) -> tuple[str, int] | None:
    """Return the model and the number of a forward_backward request from the first bytes of its body.

    They are its first two fields. So a request that is too large to be read can be answered in its place.
    """
    try:
        if beginning[0] != 0x0A:  # field 1, a length and bytes
            return None
        length, start = _varint(beginning, 1)
        if beginning[start + length] != 0x10:  # field 2, an integer
            return None
        number = _varint(beginning, start + length + 1)[0]
        return (beginning[start : start + length].decode(), number) if number else None
    except (IndexError, UnicodeDecodeError):
        return None


def encode_output(output: tinker.ForwardBackwardOutput) -> Answer:
    """Encode the output of forward or forward_backward.

    Each record holds datums that follow one another and whose tensors have the same dtypes and the same shapes after
    the first dimension.
    """
    message = messages.ForwardBackwardOutput(loss_fn_output_type=output.loss_fn_output_type, metrics=output.metrics)
    arrays = [{name: data.to_numpy() for name, data in fields.items()} for fields in output.loss_fn_outputs]
    for layout, group in groupby(arrays, key=_layout):
        datums = list(group)
        record = message.loss_fn_outputs.add(type_tag=output.loss_fn_output_type, num_datums=len(datums))
        for name, dtype, trailing in layout:
            columns = [datum[name] for datum in datums]
            offsets = np.cumsum([0, *(column.nbytes for column in columns)], dtype=np.int64)
            record.fields[name].CopyFrom(
                messages.BatchedTensor(
                    data=b"".join(np.ascontiguousarray(column).tobytes() for column in columns),
                    offsets=offsets.tobytes(),
                    dtype=messages.DTYPE_FLOAT32 if dtype == "float32" else messages.DTYPE_INT64,
                    trailing_shape=trailing,
                )
            )
    return Answer(message.SerializeToString(), MEDIA_TYPE)


def encode_samples(response: SampleResponse) -> Answer:
    """Encode the result of a sampling call."""
    message = messages.SampleResponse()
    for sequence in response.sequences:
        assert sequence.tokens_np is not None
        assert sequence.logprobs_np is not None
        sampled = message.sequences.add(
            stop_reason=_STOP_REASONS[sequence.stop_reason],
            tokens=_bytes(sequence.tokens_np, np.int32),
            logprobs=_bytes(sequence.logprobs_np, np.float32),
        )
        if (topk := getattr(sequence, "topk_logprobs_np", None)) is not None:
            sampled.topk_sampled_logprobs.CopyFrom(_topk(topk))
    if response.prompt_logprobs_np is not None:
        message.prompt_logprobs = _bytes(response.prompt_logprobs_np, np.float32)
    if response.topk_prompt_logprobs_np is not None:
        message.topk_prompt_logprobs.CopyFrom(_topk(response.topk_prompt_logprobs_np))
    if response.target_prompt_logprobs is not None:
        logprobs = response.target_prompt_logprobs.to_numpy()
        message.target_prompt_logprobs.CopyFrom(
            messages.Tensor(
                dense=_bytes(logprobs, np.float32), dtype=messages.DTYPE_FLOAT32, shape=list(logprobs.shape)
            )
        )
    return Answer(message.SerializeToString(), MEDIA_TYPE)


def _datum(message: Any) -> tinker.Datum:
    inputs = {name: _tensor(name, tensor) for name, tensor in message.loss_fn_inputs.items()}
    return tinker.Datum(
        model_input=tinker.ModelInput.model_construct(chunks=list(_chunks(message.model_input))), loss_fn_inputs=inputs
    )


def _chunks(chunks: Any) -> Iterator[Any]:
    for index, chunk in enumerate(chunks):
        kind = chunk.WhichOneof("chunk")
        if kind == "encoded_text":
            ids = _array(chunk.encoded_text.tokens, np.int32, f"model_input[{index}]")
            yield tinker.EncodedTextChunk.model_construct(
                tokens=ids
            )  # an array: validation would take most of the time
        elif kind == "image":
            image = chunk.image
            if any(field.name == "override_dimensions" for field, _ in image.ListFields()):
                raise bad_request("override_dimensions of an image is not supported; resize the image instead")
            expected = image.expected_tokens if image.HasField("expected_tokens") else None
            yield ImageChunk(data=image.data, format=image.format, expected_tokens=expected)
        else:
            raise unsupported_error("image pointer and audio chunks")


def _tensor(name: str, message: Any) -> tinker.TensorData:
    if message.dtype not in _DTYPES:
        raise bad_request(f"{name} has the dtype {message.dtype}; expected float32 or int64")
    dtype, dtype_name = _DTYPES[message.dtype]
    shape = list(message.shape) or None
    if message.WhichOneof("encoding") == "sparse_csr":
        csr = message.sparse_csr
        return tinker.TensorData(
            data=_array(csr.values, dtype, name),
            dtype=dtype_name,
            shape=shape,
            sparse_crow_indices=_array(csr.crow_indices, np.int64, name).tolist(),
            sparse_col_indices=_array(csr.col_indices, np.int64, name).tolist(),
        )
    data = _array(message.dense, dtype, name)
    if shape is not None and math.prod(shape) != len(data):
        raise bad_request(f"{name} has the shape {shape}, but {len(data)} elements")
    return tinker.TensorData(data=data, dtype=dtype_name, shape=shape)


def _elements(tensor: Any) -> int:
    shape = math.prod(max(side, 0) for side in tensor.shape) if tensor.shape else 0
    return max(shape, len(tensor.dense) // 4)


def _array(data: bytes, dtype: type[np.generic], name: str) -> NDArray[Any]:
    if len(data) % np.dtype(dtype).itemsize:
        raise bad_request(f"{name} has {len(data)} bytes, which is no whole number of {np.dtype(dtype).name} elements")
    return np.frombuffer(data, dtype)


def _varint(data: bytes, start: int) -> tuple[int, int]:
    """Return the variable-length integer at `start`, and the position after it."""
    value = shift = 0
    while True:
        byte = data[start]
        value, shift, start = value | (byte & 0x7F) << shift, shift + 7, start + 1
        if byte < 0x80:
            return value, start


def _layout(datum: Mapping[str, NDArray[Any]]) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(name, array.dtype.name, array.shape[1:]) for name, array in datum.items()]


def _topk(topk: TopkLogprobs) -> Any:
    length, k = topk.token_ids.shape
    return messages.TopkLogprobs(
        token_ids=_bytes(topk.token_ids, np.int32), logprobs=_bytes(topk.logprobs, np.float32), k=k, length=length
    )


def _bytes(array: NDArray[Any], dtype: type[np.generic]) -> bytes:
    return np.ascontiguousarray(array, dtype).tobytes()

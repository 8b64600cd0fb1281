"""The content of a row or a datum as text, to recognise equal ones in every process."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from tinkerloop.errors import DataError

if TYPE_CHECKING:
    import tinker


def content_text(row: Any) -> str:
    """Return a text that is equal for equal rows and differs for others: JSON, with a hash for each image and array.

    >>> content_text({"b": [1], "a": np.zeros(2)})
    '{"a": "float64 (2,) 5250a507f994740e", "b": [1]}'

    Raises:
        DataError: the row contains an object that shows only its address, which differs in each process.
    """
    return json.dumps(row, sort_keys=True, default=_stand_in)


def input_text(datum: tinker.Datum) -> str:
    """Return a text that is equal for datums with the same model input and differs for others."""
    has_images = any(chunk.type != "encoded_text" for chunk in datum.model_input.chunks)
    return datum.model_input.model_dump_json() if has_images else str(datum.model_input.to_ints())


def _stand_in(value: Any) -> Any:
    """Return what stands for a value that JSON cannot express."""
    if hasattr(value, "getpixel"):  # an image of PIL, which is not imported for this
        from tinkerloop.images.chunks import image_content

        return f"image {_hash(image_content(value))}"
    if hasattr(value, "__array__"):
        array = np.asarray(value)
        return array.tolist() if array.dtype.hasobject else f"{array.dtype} {array.shape} {_hash(array.tobytes())}"
    shown = repr(value)
    if f"at {id(value):#x}" in shown.lower():
        raise DataError(
            f"a row contains a {type(value).__name__}, which cannot be compared with those of other rows and processes",
            remedy="write its content as text, numbers, bytes or an array; for train_test_split, pass key=",
        )
    return shown


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()

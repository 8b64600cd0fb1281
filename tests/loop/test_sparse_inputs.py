"""Sparse loss inputs with wrong indices raise an error wherever the loop reads them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tinker

from tinkerloop.callbacks.evaluation import nll
from tinkerloop.errors import DatumError
from tinkerloop.loop.plan import MicroBatch, Plan, mean_loss
from tinkerloop.loop.positioned_batches import _Listed

WEIGHTS = tinker.TensorData(
    data=[1.0, 1.0, 1.0], dtype="float32", shape=[3, 2], sparse_crow_indices=[0, 1, 2, 3], sparse_col_indices=[0, 5, 1]
)
"""Column 5 of 2, which clients before 0.30.4 do not check."""
DATUM = tinker.Datum(model_input=tinker.ModelInput.from_ints([1, 2, 3]), loss_fn_inputs={"weights": WEIGHTS})


@pytest.mark.parametrize(
    "read",
    [
        lambda: nll([DATUM]),
        lambda: mean_loss(Plan(0, (MicroBatch((DATUM,)),), tinker.AdamParams(learning_rate=1.0), "none"), 1.0),
        lambda: _Listed([[DATUM]]).cursor,
    ],
    ids=["evaluation", "plan", "cursor"],
)
def test_wrong_sparse_indices_raise(read: Callable[[], object]):
    with pytest.raises(DatumError, match="cannot be read as an array"):
        read()

"""Every number that data take is checked where it is given, before a row is read."""

import json
from math import inf, nan

import numpy as np
import pytest

from tinkerloop.data import batches, mix, prefetch, render_files, stream, train_test_split
from tinkerloop.data.estimation import Estimate, Evaluations, Prices, evaluation_count, step_count
from tinkerloop.errors import DataError, PlanError
from tinkerloop.renderers import get_renderer
from tinkerloop.supervised.data import (
    InterleavedDataset,
    StreamingSupervisedDatasetFromHFDataset,
    SupervisedDatasetFromHFDataset,
)
from tinkerloop.supervised.types import SupervisedDataset
from tinkerloop.tokenizers import get_tokenizer

ROWS = list(range(8))


def rows():
    return SupervisedDatasetFromHFDataset(ROWS, 2, map_fn=lambda row: row)


def mixed(batch_size=2, weight=1.0, **options):
    return mix({"a": batches(ROWS, 1)}, {"a": weight}, batch_size, **options)


def interleaved(batch_size=2, epochs=1, weight=1.0, **options):
    return InterleavedDataset({"a": rows()}, {"a": weight}, batch_size, **options).batches(epochs=epochs)


def streamed_rows(batch_size=2, length=None, **options):
    dataset = StreamingSupervisedDatasetFromHFDataset(ROWS, batch_size, length, map_fn=lambda row: row, **options)
    return dataset.batches()


def own_rows(batch_size):
    return type("Own", (SupervisedDataset,), {"batch_size": batch_size, "__iter__": lambda self: iter(())})().batches()


def rendered(**options):
    return render_files("none.jsonl", get_renderer("qwen3", get_tokenizer("tiny")), cache="none", **options)


COUNTS = {  # each argument that must be a whole number of at least 1
    "batches": (lambda **options: batches(ROWS, **{"batch_size": 2, **options}), ("batch_size", "epochs")),
    "stream": (
        lambda **options: stream(ROWS, **{"batch_size": 2, **options}),
        ("batch_size", "epochs", "length", "buffer_size"),
    ),
    "mix": (mixed, ("batch_size", "length")),
    "prefetch": (lambda **options: prefetch(batches(ROWS, 2), **options), ("n",)),
    "InterleavedDataset": (interleaved, ("batch_size", "epochs", "length")),
    "Streaming": (streamed_rows, ("batch_size", "length")),
    "own rows": (own_rows, ("batch_size",)),
    "Estimate": (
        lambda **options: Estimate((1,), (1,), **{"batches": 1, **options}),
        ("batches", "epochs", "accumulate", "max_steps"),
    ),
    "evaluation_count": (lambda **options: evaluation_count(3, **options), ("every",)),
    "step_count": (lambda **options: step_count(3, **options), ("epochs", "accumulate", "max_steps")),
}


@pytest.mark.parametrize("value", [0, -3, 2.5, 2.0, nan, True, "2"])
@pytest.mark.parametrize(
    ("build", "name"),
    [pytest.param(build, name, id=f"{kind}-{name}") for kind, (build, names) in COUNTS.items() for name in names],
)
def test_a_count_that_is_none_is_refused(build, name, value):
    with pytest.raises((DataError, PlanError), match=rf"^{name}.* must be a whole number of at least 1, got "):
        build(**{name: value})


@pytest.mark.parametrize("value", [-7, 2.5, nan, True])
@pytest.mark.parametrize(
    ("build", "name"),
    [(streamed_rows, "buffer_size"), (rendered, "workers"), (Evaluations, "count"), (Evaluations, "prefill_tokens")],
)
def test_a_count_that_may_be_0_is_nothing_less(build, name, value):
    with pytest.raises((DataError, PlanError), match=f"^{name} must be a whole number of at least 0, got "):
        build(**{name: value})


@pytest.mark.parametrize("value", [0, -1.0, inf, nan, True, "1"])
@pytest.mark.parametrize("build", [mixed, interleaved])
def test_a_weight_that_gives_no_share_is_refused(build, value):
    with pytest.raises(DataError, match=r"^the weight of 'a' must be "):
        build(weight=value)


@pytest.mark.parametrize("value", [0, -1, nan, inf, True, 1.5, "3"])
def test_a_number_of_test_rows_that_is_none_is_refused(value):
    with pytest.raises(DataError, match=r"^test (must be a number of rows|as a fraction must be below 1)"):
        train_test_split(ROWS, value)


@pytest.mark.parametrize("value", [-1, nan, inf, "1"])
@pytest.mark.parametrize("name", ["train", "prefill", "sample"])
def test_a_price_that_is_none_is_refused(name, value):
    with pytest.raises(PlanError, match=f"^the price of {name} tokens must be a finite number of at least 0, got "):
        Prices(**{"train": 1, name: value})


@pytest.mark.parametrize(
    "build",
    [
        lambda two: batches(ROWS, two, epochs=two, shuffle=two),
        lambda two: stream(ROWS, two, epochs=two, shuffle=two, buffer_size=two, length=two),
        lambda two: mixed(two, length=two),
    ],
)
def test_a_number_of_numpy_is_that_of_python_in_the_cursor(build):
    of_numpy = build(np.int64(2))
    cursor = json.loads(json.dumps(of_numpy.cursor))
    plain = build(2)
    plain.seek(cursor)
    assert list(plain) == list(of_numpy) != []

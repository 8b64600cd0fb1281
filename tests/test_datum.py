import numpy as np
import pytest
import tinker
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinkerloop.client_versions import has_field
from tinkerloop.datum import datum_from_tokens, make_datum
from tinkerloop.datum_checks import check_datum, scale_weights
from tinkerloop.errors import DatumError, TinkerloopError, ZeroWeightError
from tinkerloop.renderers.pieces import Part
from tinkerloop.renderers.rendered import Rendered, SpanTable

VOCAB = 50
token = st.integers(0, VOCAB - 1)
weight = st.floats(-4, 4, width=32)


@st.composite
def examples(draw):
    """Chunks of text and images that end in text, and weights that are 0 on images and not all 0."""
    chunks, weights = [], []
    for size, image in draw(st.lists(st.tuples(st.integers(1, 6), st.booleans()), max_size=5)):
        if image:
            chunks.append(tinker.types.ImageChunk(data=b"png", format="png", expected_tokens=size))
            weights += [0.0] * size
        else:
            chunks.append(tinker.EncodedTextChunk(tokens=draw(st.lists(token, min_size=size, max_size=size))))
            weights += draw(st.lists(weight, min_size=size, max_size=size))
    tail = draw(st.lists(token, min_size=2, max_size=6))
    chunks.append(tinker.EncodedTextChunk(tokens=tail))
    weights += [0.0] * (len(tail) - 1) + [1.0]
    return tinker.ModelInput(chunks=chunks), np.array(weights, dtype=np.float32)


@pytest.mark.parametrize(
    ("tokens", "weights", "targets", "says"),
    [
        ([[1], [2, 3]], [1.0, 1.0], None, "model_input: must be a rectangular array"),
        ([1, 2], [[1.0], [1.0]], [[1], [2, 3]], "targets: must be a rectangular array"),
        ([1, 2], [[1.0], [1.0, 2.0]], None, "weights: must be a rectangular array"),
        ([1, 2], torch.ones(2, dtype=torch.bfloat16), None, "weights: cannot be read as an array.*BFloat16"),
        ([1, 2], torch.ones(2, requires_grad=True), None, "weights: cannot be read as an array.*detach"),
    ],
)
def test_what_is_no_array_is_refused(tokens, weights, targets, says):
    with pytest.raises(DatumError, match=says):
        make_datum(tokens, weights, targets=targets)


def flat(model_input):
    return [
        t
        for chunk in model_input.chunks
        for t in (list(chunk.tokens) if isinstance(chunk, tinker.EncodedTextChunk) else [0] * chunk.length)
    ]


def weights_of(datum):
    return datum.loss_fn_inputs["weights"].to_numpy()


def targets_of(datum):
    return datum.loss_fn_inputs["target_tokens"].to_numpy()


def test_text_is_shifted_by_one():
    datum = make_datum([5, 6, 7, 8], [0, 0, 1, 0.5])
    assert datum.model_input.to_ints() == [5, 6, 7]
    assert targets_of(datum).tolist() == [6, 7, 8]
    assert weights_of(datum).tolist() == [0, 1, 0.5]
    assert (targets_of(datum).dtype, weights_of(datum).dtype) == (np.int64, np.float32)


@given(examples())
def test_position_i_predicts_token_i_plus_one(example):
    model_input, weights = example
    datum = make_datum(model_input, weights)
    tokens = flat(model_input)
    assert flat(datum.model_input) == tokens[:-1]
    assert targets_of(datum).tolist() == tokens[1:]
    assert np.array_equal(weights_of(datum), weights[1:])


@given(examples())
def test_what_make_datum_returns_passes_the_check(example):
    check_datum(make_datum(*example, vocab_size=VOCAB), vocab_size=VOCAB)


@given(examples(), st.integers(1, 30))
def test_truncation_keeps_the_longest_prefix_that_ends_in_text(example, max_length):
    model_input, weights = example
    try:
        datum = make_datum(model_input, weights, max_length=max_length)
    except DatumError:
        return
    tokens = flat(model_input)
    kept = datum.model_input.length + 1
    assert kept <= max_length or len(tokens) <= max_length
    assert flat(datum.model_input) == tokens[: kept - 1]
    assert np.array_equal(weights_of(datum), weights[1:kept])
    sizes = [c.length for c in model_input.chunks]
    ends = np.cumsum(sizes)
    is_image = [not isinstance(c, tinker.EncodedTextChunk) for c in model_input.chunks]
    inside = [image and end - size < kept < end for size, end, image in zip(sizes, ends, is_image, strict=True)]
    assert not any(inside)


def test_truncation_drops_an_image_that_does_not_fit_and_what_follows():
    image = tinker.types.ImageChunk(data=b"png", format="png", expected_tokens=4)
    text = tinker.EncodedTextChunk(tokens=[1, 2, 3])
    model_input = tinker.ModelInput(chunks=[text, image, text])
    datum = make_datum(model_input, [1, 1, 1, 0, 0, 0, 0, 1, 1, 1], max_length=6)
    assert flat(datum.model_input) == [1, 2]


def test_truncation_leaves_no_trailing_image():
    image = tinker.types.ImageChunk(data=b"png", format="png", expected_tokens=4)
    text = tinker.EncodedTextChunk(tokens=[1, 2, 3])
    datum = make_datum(tinker.ModelInput(chunks=[text, image, text]), [1, 1, 1, 0, 0, 0, 0, 1, 1, 1], max_length=7)
    assert flat(datum.model_input) == [1, 2]


def test_two_dimensional_targets_carry_alternatives():
    datum = make_datum([1, 2, 3], np.full((3, 2), 0.5), targets=[[0, 0], [2, 9], [3, 8]])
    assert targets_of(datum).tolist() == [[2, 9], [3, 8]]
    assert weights_of(datum).shape == (2, 2)
    check_datum(datum)


@pytest.mark.parametrize("dtype", [bool, np.int32, np.float64])
def test_any_real_weights_become_float32(dtype):
    assert weights_of(make_datum([1, 2], np.array([0, 1], dtype=dtype))).dtype == np.float32


def test_torch_weights_are_accepted():
    torch = pytest.importorskip("torch")
    assert weights_of(make_datum([1, 2], torch.tensor([0.0, 1.0]))).tolist() == [1.0]


@pytest.mark.parametrize(
    ("tokens", "weights", "options", "says"),
    [
        ([1, 2, 3], [0, 1], {}, r"weights: must have one weight per token \(expected 3, got 2\)"),
        ([1], [1], {}, r"too short.*>= 2 tokens, got 1"),
        ([], [], {}, r"too short"),
        ([1, -2, 3], [1, 1, 1], {}, r"model_input\[1\]: token id out of range \(expected >= 0, got -2\)"),
        ([1, 50, 3], [1, 1, 1], {"vocab_size": 50}, r"model_input\[1\].*0 <= id < 50, got 50"),
        ([1, 2, 3], [1, float("nan"), 1], {}, r"weights\[1\]: must be finite"),
        ([1, 2, 3], [1, 1, float("inf")], {}, r"weights\[2\]: must be finite"),
        ([1, 2, 3], [1, 1e39, 1], {}, r"weights\[1\]: must be finite in float32"),
        ([1.5, 2], [1, 1], {}, r"token ids must be integers"),
        ([1, 2], ["a", "b"], {}, r"weights: must be real numbers"),
        ([1, 2], [[1], [1, 2]], {}, r"rectangular"),
        ([1, 2], [[1, 1], [1, 1]], {}, r"2-D weights need 2-D targets"),
        ([[1, 2]], [1], {}, r"flat sequence"),
    ],
)
def test_what_cannot_train_is_refused(tokens, weights, options, says):
    with pytest.raises(DatumError, match=says):
        make_datum(tokens, weights, **options)


def test_all_zero_weights_have_their_own_error():
    with pytest.raises(ZeroWeightError, match="all weights are zero"):
        make_datum([1, 2, 3], [0, 0, 0])


def test_weight_on_the_first_token_alone_trains_nothing():
    with pytest.raises(ZeroWeightError):
        make_datum([1, 2, 3], [1, 0, 0])


def test_losing_every_trained_token_to_truncation_says_so():
    with pytest.raises(ZeroWeightError, match="max_length=2"):
        make_datum([1, 2, 3], [0, 0, 1], max_length=2)


@pytest.mark.parametrize("max_length", [0, -1, True, 2.0, "3"])
def test_a_largest_length_that_is_no_number_of_tokens_is_refused(max_length):
    for make in (make_datum, datum_from_tokens):
        with pytest.raises(DatumError, match="max_length: must be a whole number of at least 1, or None"):
            make([1, 2, 3], np.ones(3, np.float32), max_length=max_length)


def test_an_image_larger_than_max_length_is_refused():
    image = tinker.types.ImageChunk(data=b"png", format="png", expected_tokens=9)
    model_input = tinker.ModelInput(chunks=[image, tinker.EncodedTextChunk(tokens=[1, 2])])
    with pytest.raises(DatumError, match=r"model_input\[0\].*longer than max_length"):
        make_datum(model_input, [0] * 9 + [1, 1], max_length=8)


def test_an_image_without_a_token_count_is_refused():
    image = tinker.types.ImageChunk(data=b"png", format="png")
    with pytest.raises(DatumError, match="expected_tokens"):
        make_datum(tinker.ModelInput(chunks=[image, tinker.EncodedTextChunk(tokens=[1, 2])]), [0, 1, 1])


def test_weight_on_an_image_is_refused():
    image = tinker.types.ImageChunk(data=b"png", format="png", expected_tokens=2)
    model_input = tinker.ModelInput(chunks=[image, tinker.EncodedTextChunk(tokens=[1, 2])])
    with pytest.raises(DatumError, match=r"weights\[1\]: an image position"):
        make_datum(model_input, [0, 1, 1, 1])


def test_ending_with_an_image_is_refused():
    image = tinker.types.ImageChunk(data=b"png", format="png", expected_tokens=2)
    model_input = tinker.ModelInput(chunks=[tinker.EncodedTextChunk(tokens=[1, 2]), image])
    with pytest.raises(DatumError, match="last chunk must be text"):
        make_datum(model_input, [0, 1, 0, 0])


def foreign(n=3, **inputs):
    """A datum as a script would build it by hand."""
    defaults = {"target_tokens": np.arange(n), "weights": np.ones(n, dtype=np.float32)}
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(list(range(1, n + 1))), loss_fn_inputs=defaults | inputs
    )


@pytest.mark.parametrize(
    ("datum", "loss_fn", "says"),
    [
        (foreign(weights=np.ones(2, np.float32)), "cross_entropy", r"weights: must have the shape.*\(3,\), got \(2,\)"),
        (foreign(target_tokens=np.arange(4)), "cross_entropy", r"target_tokens: must have one target.*got \(4,\)"),
        (foreign(target_tokens=np.array([1, -1, 2])), "cross_entropy", r"target_tokens\[1\]: token id out of range"),
        (foreign(target_tokens=np.array([1, 99, 2])), "cross_entropy", r"target_tokens\[1\].*id < 50, got 99"),
        (foreign(weights=np.array([1, np.nan, 1], np.float32)), "cross_entropy", r"weights\[1\]: must be finite"),
        (foreign(weights=np.ones(3, np.int64)), "cross_entropy", r"weights: must be float32"),
        (foreign(mask=np.ones(3, np.float32)), "cross_entropy", r"loss_fn_inputs: wrong loss inputs for cross_entropy"),
        (
            foreign(advantages=np.ones(3, np.float32)),
            "cross_entropy",
            r"wrong loss inputs for cross_entropy; datums of rollouts .* pass loss_fn=.importance_sampling",
        ),
        (foreign(), "ppo", r"wrong loss inputs for ppo"),
        (foreign(), "focal", r"loss_fn: unknown loss"),
    ],
)
def test_a_wrong_foreign_datum_is_refused(datum, loss_fn, says):
    with pytest.raises(DatumError, match=says):
        check_datum(datum, loss_fn=loss_fn, vocab_size=VOCAB)


@pytest.mark.parametrize("size", [2.5, float("nan"), True, 0])
def test_a_vocabulary_of_a_size_that_means_nothing_is_refused(size):
    with pytest.raises(DatumError, match="vocab_size must be a whole number of at least 1"):
        check_datum(foreign(), vocab_size=size)
    with pytest.raises(DatumError, match="vocab_size must be a whole number of at least 1"):
        make_datum([1, 2], [1, 1], vocab_size=size)


def text(*tokens):
    """A chunk that was not validated, as a script gets from `model_construct` or by changing a list in place."""
    return tinker.EncodedTextChunk.model_construct(tokens=list(tokens))


@pytest.mark.parametrize(
    ("chunks", "says"),
    [
        ([text(1, 2**70, 3)], r"model_input\[0\]: token ids must be int64.*chunk 0.*at 1.*got 1180591620717411303424"),
        ([text(1), text(2, 2**64)], r"model_input\[1\]: token ids must be int64.*chunk 1.*at 1"),
        ([text(1, 2.5, 3)], r"model_input\[0\]: token ids must be int64.*got 2.5"),
        ([text(1.0, 2.0, 3.0)], r"model_input\[0\]: token ids must be int64.*got 1.0"),
        ([text(1, None, 3)], r"model_input\[0\]: token ids must be int64.*got None"),
        ([text(1, "2", 3)], r"model_input\[0\]: token ids must be int64.*got '2'"),
        ([text([1], [2], [3])], r"model_input\[0\]: token ids must be int64.*got \[1\]"),
        ([text([1], [2, 3], 3)], r"model_input: must be a rectangular array"),
        ([text(True, False, True)], r"model_input\[0\]: token ids must be int64.*got True"),
        (
            [tinker.types.ImageChunk(data=b"x", format="png", expected_tokens=-2), text(1, 2, 3, 4, 5)],
            r"model_input\[0\]: an image needs tokens.*got -2",
        ),
    ],
)
def test_values_that_are_no_token_ids_are_refused_by_both_functions(chunks, says):
    datum = foreign()
    datum.model_input.chunks[:] = chunks
    with pytest.raises(DatumError, match=says):
        check_datum(datum)
    with pytest.raises(DatumError, match=says):
        make_datum(datum.model_input, [0.0, 1.0, 1.0])


@pytest.mark.parametrize("name", ["target_tokens", "weights"])
def test_a_sparse_input_with_wrong_indices_is_refused(name):
    broken = tinker.TensorData([1], "int64", [3, 1], sparse_crow_indices=[0, 9, 1, 1], sparse_col_indices=[0])
    with pytest.raises(DatumError, match=f"{name}: cannot be read as an array"):
        check_datum(foreign(**{name: broken}))


def test_what_is_no_datum_or_no_loss_is_refused():
    with pytest.raises(DatumError, match=r"not a datum \(expected a tinker.Datum, got dict\)"):
        check_datum({"model_input": [1, 2]})
    with pytest.raises(DatumError, match="unknown loss"):
        check_datum(foreign(), loss_fn=["cross_entropy"])


def test_zero_weight_in_a_foreign_datum_is_an_error_unless_allowed():
    datum = foreign(weights=np.zeros(3, np.float32))
    with pytest.raises(ZeroWeightError):
        check_datum(datum)
    check_datum(datum, allow_zero_weight=True)


def test_a_trained_image_target_in_a_foreign_datum_is_refused():
    image = tinker.types.ImageChunk(data=b"png", format="png", expected_tokens=2)
    model_input = tinker.ModelInput(chunks=[tinker.EncodedTextChunk(tokens=[1]), image])
    inputs = {"target_tokens": np.array([0, 0, 3]), "weights": np.array([0, 1, 1], np.float32)}
    with pytest.raises(DatumError, match=r"weights\[1\]: an image position"):
        check_datum(tinker.Datum(model_input=model_input, loss_fn_inputs=inputs))


@given(st.lists(weight, min_size=3, max_size=3), st.floats(0.01, 10))
def test_scaling_multiplies_every_weight(weights, factor):
    datum = foreign(weights=np.array(weights, np.float32))
    assert np.allclose(weights_of(scale_weights(datum, factor)), np.array(weights) * factor, rtol=1e-6)


@pytest.mark.skipif(not has_field(tinker.Datum, "model_input_spans"), reason="tinker < 0.26 has no provenance")
def test_scaling_keeps_where_the_tokens_came_from():
    span = tinker.types.SampledProvenanceSpan(sequence_id="a", length=3)
    datum = foreign().with_provenance(model_input=[span], loss_fn_inputs=[span])
    scaled = scale_weights(datum, 0.5)
    assert (scaled.model_input_spans, scaled.loss_fn_input_spans) == ([span], [span])


def test_every_error_is_a_tinkerloop_error_and_a_value_error():
    with pytest.raises(TinkerloopError) as caught:
        make_datum([1], [1])
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("model_input", "weights", "says"),
    [
        ("input", "weights", r"use its \.target_weights.*expected \(4,\), got \(5,\)"),
        ("model_input", "target_weights", r"use its \.input"),
    ],
)
def test_an_unshifted_part_of_an_example_beside_its_shifted_targets_names_the_shifted_part(model_input, weights, says):
    example = Rendered([5, 6, 7, 8, 9], SpanTable([0, 3], [(0, Part.SCAFFOLD), (1, Part.TEXT)], [0.0, 1.0]))
    inputs = {
        "target_tokens": tinker.TensorData.from_numpy(np.array(example.target_tokens, dtype=np.int64)),
        "weights": tinker.TensorData.from_numpy(np.array(getattr(example, weights), dtype=np.float32)),
    }
    with pytest.raises(DatumError, match=says):
        check_datum(tinker.Datum(model_input=getattr(example, model_input), loss_fn_inputs=inputs))

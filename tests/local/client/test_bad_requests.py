"""Bad input raises an error on the future of its request, changes nothing, and leaves the client usable."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import tinker
import torch

from tests.local.sampling import sample
from tinkerloop.client_versions import has_field
from tinkerloop.local import ServiceClient


def bad(inputs: dict, ids: list[int] | None = None) -> tinker.Datum:
    ids = [1, 2, 3] if ids is None else ids
    return tinker.Datum(model_input=tinker.ModelInput.from_ints(ids), loss_fn_inputs=inputs)


BAD = {
    "out of vocabulary": (bad({"target_tokens": [1, 2, 9999], "weights": [1.0, 1, 1]}), "cross_entropy", None),
    "empty": (bad({"target_tokens": [], "weights": []}, []), "cross_entropy", None),
    "ragged shapes": (bad({"target_tokens": np.ones((3, 2), int), "weights": [1.0, 1, 1]}), "cross_entropy", None),
    "negative id": (bad({"target_tokens": [1, 2, 3], "weights": [1.0, 1, 1]}, [1, -2, 3]), "cross_entropy", None),
    "wrong length": (bad({"target_tokens": [1, 2], "weights": [1.0, 1]}), "cross_entropy", None),
    "missing input": (bad({"target_tokens": [1, 2, 3]}), "cross_entropy", None),
    "nan": (bad({"target_tokens": [1, 2, 3], "weights": [1.0, float("nan"), 1]}), "cross_entropy", None),
    "wrong dtype": (bad({"target_tokens": np.ones(3), "weights": [1.0, 1, 1]}), "cross_entropy", None),
    "too long": (bad({"target_tokens": [1] * 40000, "weights": [1.0] * 40000}, [1] * 40000), "cross_entropy", None),
    "unknown loss": (bad({"target_tokens": [1, 2, 3], "weights": [1.0, 1, 1]}), "mse", None),
    "unknown config key": (bad({"target_tokens": [1, 2, 3], "weights": [1.0, 1, 1]}), "cross_entropy", {"beta": 1.0}),
    "id of 2**70": (bad({"target_tokens": [1, 2, 3], "weights": [1.0, 1, 1]}, [1, 2, 2**70]), "cross_entropy", None),
    "sparse column out of range": (
        bad(
            {
                "target_tokens": tinker.TensorData(
                    data=[1, 2, 3],
                    dtype="int64",
                    shape=[3, 2],
                    sparse_crow_indices=[0, 1, 2, 3],
                    sparse_col_indices=[0, 5, 1],
                ),
                "weights": np.ones((3, 2)),
            }
        ),
        "cross_entropy",
        None,
    ),
    "config value of no number": (
        bad({"target_tokens": [1, 2, 3], "logprobs": [-1.0] * 3, "advantages": [1.0] * 3}),
        "ppo",
        {"clip_low_threshold": None},
    ),
    **{
        f"config value {config!r:.20}": (
            bad({"target_tokens": [1, 2, 3], "logprobs": [-1.0] * 3, "advantages": [1.0] * 3}),
            "dro",
            config,
        )
        for config in ({"beta": 10**400}, {"beta": True}, [("beta", 1.0)])
    },
    "no datum": ({"target_tokens": [1]}, "cross_entropy", None),
    "loss without a name": (bad({"target_tokens": [1, 2, 3], "weights": [1.0, 1, 1]}), ["cross_entropy"], None),
    "overflowing ratio": (
        bad({"target_tokens": [1, 2, 3], "logprobs": [-1e30] * 3, "advantages": [1.0] * 3}),
        "importance_sampling",
        None,
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_fails_on_the_future_and_the_gradient_and_client_survive(client, datum, adam, case: str):
    data, loss_fn, config = BAD[case]
    client.forward_backward([datum(0)], "cross_entropy").result()
    before = client.apply(lambda s: s.gradient.clone()).result()
    future = client.forward_backward([data], loss_fn, config)
    with pytest.raises(tinker.RequestFailedError) as error:
        future.result()
    assert error.value.category == tinker.types.RequestErrorCategory.User
    assert torch.equal(client.apply(lambda s: s.gradient.clone()).result(), before)
    client.optim_step(adam()).result()


def test_what_a_caller_changes_after_the_call_changes_nothing(client):
    weights, released = np.ones(3, np.float32), threading.Event()
    data = [bad({"target_tokens": [1, 2, 3], "weights": weights})]
    expected = client.forward(data, "cross_entropy").result().metrics
    client.apply(lambda _: released.wait())
    plain = client.forward(data, "cross_entropy")
    custom = client.forward_backward_custom(data, lambda given, lps: (sum(lp.sum() for lp in lps), {"n": len(given)}))
    weights[:] = 0
    data.clear()
    released.set()
    assert plain.result().metrics == expected
    assert custom.result().metrics["n"] == 1


def test_a_failed_first_request_leaves_no_gradient(client, datum):
    client.forward_backward([datum(0)], "cross_entropy").result()
    client.apply(lambda s: s.clear_gradient()).result()
    data, loss_fn, config = BAD["overflowing ratio"]
    with pytest.raises(tinker.RequestFailedError):
        client.forward_backward([data], loss_fn, config).result()
    assert not client.apply(lambda s: s.gradient.any()).result()


def test_programming_errors_are_raised_at_the_call(client):
    with pytest.raises(ValueError, match="No data"):
        client.forward([], "cross_entropy")
    with pytest.raises(TypeError):
        client.optim_step({"learning_rate": 1e-4})


@pytest.mark.parametrize("given", ["cross_entropy", None])
def test_what_is_no_function_is_named_at_the_call_and_the_client_survives(client, datum, given):
    with pytest.raises(TypeError, match="loss_fn must be a function"):
        client.forward_backward_custom([datum(0)], given)
    with pytest.raises(TypeError, match="function must be a function"):
        client.apply(given)
    client.forward([datum(0)], "cross_entropy").result()


@pytest.mark.parametrize(
    "params", [{"beta2": 2.0}, {"learning_rate": 1e39}, {"learning_rate": float("nan")}, {"eps": 0.0}, {"eps": 1e-46}]
)
def test_bad_adam_parameters_fail_on_the_future_and_change_nothing(client, params):
    before = client.apply(lambda s: s.weights.flat.clone()).result()
    with pytest.raises(tinker.RequestFailedError, match=next(iter(params))):
        client.optim_step(tinker.AdamParams(**params)).result()
    assert client.apply(lambda s: s.weights.flat.equal(before)).result()


@pytest.mark.parametrize("odd", [1.5, None, b"x", [1], True])
def test_a_stop_that_is_neither_an_id_nor_a_string_is_refused(sampler, odd):
    params = tinker.SamplingParams(max_tokens=1)
    object.__setattr__(params, "stop", [3, odd])  # past the type's own check, as an unvalidated object is
    with pytest.raises(tinker.RequestFailedError, match=f"got {type(odd).__name__}"):
        sampler.sample(tinker.ModelInput.from_ints([1]), 1, params).result()


def test_the_limit_of_the_top_k_in_the_error_is_the_vocabulary_where_that_is_smaller(sampler, monkeypatch):
    monkeypatch.setattr(sampler._sampler.model, "vocab_size", 7)
    params = tinker.SamplingParams(max_tokens=1)
    with pytest.raises(tinker.RequestFailedError, match="from 0 to 7, got 8"):
        sampler.sample(tinker.ModelInput.from_ints([1]), 1, params, topk_prompt_logprobs=8).result()


def test_an_optimizer_of_another_type_is_named(service):
    with pytest.raises(TypeError, match="AdamOptimizerConfig or None, got AdamParams"):
        service.create_lora_training_client("tiny", rank=4, optimizer=tinker.AdamParams())


@pytest.mark.skipif(not hasattr(tinker, "DimuonOptimizerConfig"), reason="tinker < 0.29 has one optimizer")
def test_an_optimizer_that_is_not_supported_is_named(service):
    with pytest.raises(NotImplementedError, match="Dimuon"):
        service.create_lora_training_client("tiny", rank=4, optimizer=tinker.DimuonOptimizerConfig(version=1))


@pytest.mark.parametrize("token", [2**70, 2.5, None, "1"])
def test_ids_that_are_no_integers_fail_on_the_future_of_every_call(client, sampler, token):
    odd = tinker.EncodedTextChunk.model_construct(tokens=[1, token, 3])
    inputs = {"target_tokens": np.array([2, 3, 4]), "weights": np.ones(3, np.float32)}
    datum = tinker.Datum(model_input=tinker.ModelInput.from_ints([1, 2, 3]), loss_fn_inputs=inputs)
    datum.model_input.chunks[:] = [odd]
    for future in (
        client.forward_backward([datum], "cross_entropy"),
        sampler.compute_logprobs(datum.model_input),
        sampler.sample(datum.model_input, 1, tinker.SamplingParams(max_tokens=1)),
    ):
        with pytest.raises(tinker.RequestFailedError, match="token ids must be int64 integers"):
            future.result()


@pytest.mark.parametrize(
    "params", [{"max_tokens": 0}, {"max_tokens": 40000}, {"temperature": -1}, {"top_p": 0}, {"stop": [99999]}]
)
def test_bad_sampling_parameters_fail_on_the_future(sampler, params):
    with pytest.raises(tinker.RequestFailedError):
        sample(sampler, [1, 2], **{"max_tokens": 1, **params})
    assert sample(sampler, [1, 2], max_tokens=1)


SAMPLE_TOPK = pytest.param(
    1,
    {"topk_sample_logprobs": 1.5},
    marks=pytest.mark.skipif(
        not has_field(tinker.SampledSequence, "topk_logprobs_np"), reason="tinker < 0.29 has no field for the result"
    ),
)


@pytest.mark.parametrize(
    ("n", "options"),
    [
        *((2.5, {}), ("2", {}), (True, {}), (1, {"topk_prompt_logprobs": 1.5}), (1, {"topk_prompt_logprobs": True})),
        SAMPLE_TOPK,
    ],
)
def test_a_count_that_is_no_integer_fails_on_the_future(sampler, n, options):
    prompt, params = tinker.ModelInput.from_ints([1, 2]), tinker.SamplingParams(max_tokens=1)
    with pytest.raises(tinker.RequestFailedError) as error:
        sampler.sample(prompt, n, params, **options).result()
    assert error.value.category == tinker.types.RequestErrorCategory.User
    for last in (1.5, True, 0):
        with pytest.raises(ValueError, match="last_n"):
            sampler.compute_logprobs(prompt, prompt_logprobs_last_n=last)


@pytest.mark.parametrize(
    "option",
    [
        {"token_budget": 0},
        {"token_budget": 1.5},
        {"token_budget": True},
        {"dtype": "float23"},
        {"dtype": "int8"},
        {"gradient_checkpointing": "no"},
        {"skip_zero_weight": 1},
    ],
)
def test_an_engine_is_not_made_with_options_that_mean_nothing(tmp_path, option):
    with pytest.raises(ValueError, match=next(iter(option))):
        ServiceClient(root=tmp_path, **option)


def test_an_unknown_base_model_says_so(service, tmp_path):
    for no_text in (None, tmp_path):  # a Path could be loaded, but would fail at the first save
        with pytest.raises(tinker.BadRequestError, match="must be a str"):
            service.create_lora_training_client(no_text)
    with pytest.raises(tinker.BadRequestError, match="base_model=''"):
        service.create_lora_training_client("")
    with pytest.raises(tinker.BadRequestError, match="no such folder"):
        service.create_lora_training_client("no/such/model/here")


def test_a_base_model_without_a_slash_is_not_searched_on_the_hub(service, asked_hosts):
    with pytest.raises(tinker.BadRequestError, match=r"'tinyy': .*built-in model \(these are tiny and tiny-vl\)"):
        service.create_lora_training_client("tinyy")
    assert asked_hosts == []


PARAMS = tinker.SamplingParams(max_tokens=1)
PROMPT = tinker.ModelInput.from_ints([1, 2])
GAP = tinker.ModelInput(chunks=[tinker.EncodedTextChunk(tokens=ids) for ids in ([], [1])])


@pytest.mark.parametrize(
    ("prompt", "params", "options", "wrong"),
    [
        ([1, 2], PARAMS, {}, "tinker.ModelInput, got list"),
        (PROMPT, None, {}, "tinker.SamplingParams, got NoneType"),
        (GAP, PARAMS, {}, "text chunk has no tokens"),
        (PROMPT, PARAMS, {"include_prompt_logprobs": "no"}, "include_prompt_logprobs must be True or False"),
    ],
)
def test_a_sampling_argument_of_another_kind_fails_on_the_future(sampler, prompt, params, options, wrong):
    with pytest.raises(tinker.RequestFailedError, match=wrong) as error:
        sampler.sample(prompt, 1, params, **options).result()
    assert error.value.category == tinker.types.RequestErrorCategory.User


@pytest.mark.parametrize("k", [-1, True, 1.5])
def test_a_count_of_alternatives_that_means_nothing_is_refused(sampler, k):
    with pytest.raises(ValueError, match="prompt_alt_tokens_k must be an integer >= 0"):
        sampler.sample(PROMPT, 1, PARAMS, prompt_alt_tokens_k=k)


def test_targets_that_are_no_tensor_are_refused(sampler):
    with pytest.raises(ValueError, match=r"tinker\.TensorData or None, got list"):
        sampler.sample(PROMPT, 1, PARAMS, target_prompt_logprobs=[[1]])


def test_a_stream_checks_its_arguments_at_the_call(sampler):
    with pytest.raises(tinker.RequestFailedError, match="outside the vocabulary"):
        sampler.stream(tinker.ModelInput.from_ints([99999]), PARAMS)


def test_losses_of_both_infinities_are_named(client):
    data = [bad({"target_tokens": [1, 2, 3], "weights": [w, 0.0, 0.0]}) for w in (3e38, -3e38)]
    with pytest.raises(tinker.RequestFailedError, match="NonFiniteInTensor: the cross_entropy loss of datum 0"):
        client.forward(data, "cross_entropy").result()


def test_whether_to_overwrite_is_a_bool(client):
    client.save_state("a").result()
    with pytest.raises(tinker.BadRequestError, match="overwrite must be True or False, got 'no'"):
        client.save_state("a", overwrite="no").result()


def test_a_list_is_not_asked_for_in_a_scope_or_a_length_that_means_nothing(service, client):
    client.save_state("a").result()
    rest = service.create_rest_client()
    for answer in (
        lambda: rest.list_training_runs(access_scope="nonsense"),
        lambda: rest.get_training_run(client.model_id, access_scope="nonsense"),
        lambda: rest.get_training_run_by_tinker_path(f"tinker://{client.model_id}/weights/a", access_scope="nonsense"),
        lambda: rest.list_training_runs(limit=True),
        lambda: rest.list_user_checkpoints(offset=2.5),
    ):
        with pytest.raises(tinker.BadRequestError, match=r"access_scope must be one of|must be an integer >= 0"):
            answer().result()
    rest.list_training_runs(access_scope="accessible").result()

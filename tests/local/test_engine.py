"""Sampling, checkpoints, bad input and architectures on the embedded engine."""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tinker
import torch

from tinkerloop.local import ServiceClient, TrainingClient
from tinkerloop.local.nn.layers.head import CHUNK_ELEMENTS
from tinkerloop.local.runtime.checkpoint_export import export_checkpoint

sys.path.insert(0, str(Path(__file__).parent))
from tiny_models import CONFIGS, write_model


def sample(sampler, prompt: list[int], n: int = 1, **params):
    return sampler.sample(tinker.ModelInput.from_ints(prompt), n, tinker.SamplingParams(**params)).result().sequences


@pytest.fixture
def sampler(service: ServiceClient):
    return service.create_sampling_client(base_model="tiny")


# -- sampling -------------------------------------------------------------------------------------------------------


def test_equal_seeds_repeat_and_the_samples_of_one_call_differ(sampler, tokens):
    first, again, other = (sample(sampler, tokens(0, 5), 3, max_tokens=12, seed=s, stop=[]) for s in (1, 1, 2))
    assert [s.tokens for s in first] == [s.tokens for s in again]
    assert len({tuple(s.tokens) for s in [*first, *other]}) == 6


def test_lengths_stops_and_reasons(sampler, tokens):
    prompt = tokens(0, 5)
    free = sample(sampler, prompt, max_tokens=20, temperature=0, stop=[])[0]
    assert (len(free.tokens), free.stop_reason) == (20, "length")
    by_id = sample(sampler, prompt, max_tokens=20, temperature=0, stop=[free.tokens[3]])[0]
    end = free.tokens.index(free.tokens[3]) + 1
    assert (by_id.tokens, by_id.stop_reason) == (free.tokens[:end], "stop")
    assert len(by_id.logprobs) == len(by_id.tokens)


def test_a_stop_text_ends_with_the_token_that_completes_it_and_an_empty_list_never_stops(sampler, tokens):
    prompt = tokens(0, 5)
    free = sample(sampler, prompt, max_tokens=40, temperature=0, stop=[])[0]
    decode = sampler.get_tokenizer().decode
    text = decode(free.tokens)
    stop = next(text[i : i + 2] for i in range(3, len(text) - 2) if text[i : i + 2].isascii())
    for given in (stop, ["never there", stop]):
        stopped = sample(sampler, prompt, max_tokens=40, temperature=0, stop=given)[0]
        assert stopped.stop_reason == "stop"
        assert free.tokens[: len(stopped.tokens)] == stopped.tokens
        assert stop in decode(stopped.tokens)
        assert stop not in decode(stopped.tokens[:-1])
    end = sampler.get_tokenizer().eos_token_id
    biased = sample(sampler, [*prompt, end], max_tokens=2, temperature=0, stop=[])[0]
    assert (len(biased.tokens), biased.stop_reason) == (2, "length")


def test_sampled_logprobs_are_those_of_temperature_1_whatever_was_drawn_from(sampler, tokens):
    prompt = tokens(0, 7)
    for params in ({"temperature": 0}, {"temperature": 0.3, "top_k": 5}, {"temperature": 2.0, "top_p": 0.5}):
        drawn = sample(sampler, prompt, max_tokens=8, seed=3, stop=[], **params)[0]
        scored = sampler.compute_logprobs(tinker.ModelInput.from_ints(prompt + drawn.tokens)).result()
        np.testing.assert_allclose(drawn.logprobs, scored[len(prompt) :], atol=1e-4)


def test_top_k_beyond_the_vocabulary_takes_all(sampler, tokens):
    every = {"max_tokens": 8, "seed": 1, "stop": []}
    assert (
        sample(sampler, tokens(0, 5), top_k=2**70, **every)[0].tokens
        == sample(sampler, tokens(0, 5), **every)[0].tokens
    )


@pytest.mark.parametrize("temperature", [1e-20, 1e-45, 1e-60])
def test_temperatures_near_0_are_greedy(sampler, tokens, temperature):
    drawn, greedy = (sample(sampler, tokens(0, 5), max_tokens=8, stop=[], temperature=t) for t in (temperature, 0))
    assert drawn[0].tokens == greedy[0].tokens


def test_top_k_1_is_greedy(sampler, tokens):
    greedy, narrow = (
        sample(sampler, tokens(0, 5), max_tokens=9, stop=[], **p)[0] for p in ({"temperature": 0}, {"top_k": 1})
    )
    assert greedy.tokens == narrow.tokens


def test_concurrent_calls_give_what_single_calls_give(sampler, tokens):
    prompts = [tokens(i, 3 + 5 * i) for i in range(6)]
    alone = [sample(sampler, p, max_tokens=10, temperature=0, stop=[])[0].tokens for p in prompts]
    params = tinker.SamplingParams(max_tokens=10, temperature=0, stop=[])

    async def together():
        calls = [sampler.sample_async(tinker.ModelInput.from_ints(p), 1, params) for p in prompts]
        return [response.sequences[0].tokens for response in await asyncio.gather(*calls)]

    assert asyncio.run(together()) == alone


def test_prompt_scores_of_every_kind_agree(sampler, tokens):
    ids = tokens(0, 6)
    prompt = tinker.ModelInput.from_ints(ids)
    scored = sampler.compute_logprobs(prompt).result()
    targets = np.array([[t, -1] for t in ids[1:]])
    response = sampler.sample(
        prompt,
        1,
        tinker.SamplingParams(max_tokens=2, seed=0),
        include_prompt_logprobs=True,
        topk_prompt_logprobs=3,
        topk_sample_logprobs=2,
        target_prompt_logprobs=tinker.TensorData.from_numpy(targets),
    ).result()
    assert scored[0] is None
    assert len(scored) == 6
    assert response.prompt_logprobs == scored
    found = response.target_prompt_logprobs.to_numpy()
    np.testing.assert_allclose(found[:, 0], scored[1:], rtol=1e-6)
    assert (found[:, 1] == 0).all()
    assert [len(row) for row in response.topk_prompt_logprobs[1:]] == [3] * 5
    assert [len(row) for row in response.sequences[0].topk_logprobs] == [2] * len(response.sequences[0].tokens)
    assert sampler.compute_logprobs(prompt, prompt_logprobs_last_n=2).result() == scored[-2:]


def test_a_snapshot_does_not_follow_later_training(client: TrainingClient, datum, adam, tokens):
    prompt = tinker.ModelInput.from_ints(tokens(0, 9))
    snapshot = client.save_weights_and_get_sampling_client()
    before = snapshot.compute_logprobs(prompt).result()
    client.forward_backward([datum(0)], "cross_entropy")
    client.optim_step(adam(1e-2)).result()
    assert snapshot.compute_logprobs(prompt).result() == before
    assert client.save_weights_and_get_sampling_client().compute_logprobs(prompt).result() != before


@pytest.mark.parametrize("kind", ["every weight", "not folded", "large vocabulary"])
def test_a_snapshot_taken_after_a_forward_does_not_follow_either(kind, tmp_path, datum, adam, tokens, monkeypatch):
    if kind == "not folded":
        monkeypatch.setattr("tinkerloop.local.nn.model.FOLD_LIMIT", 0)
    if kind == "large vocabulary":
        monkeypatch.setitem(CHUNK_ELEMENTS, "cpu", 4096)
    service = ServiceClient(root=tmp_path, device="cpu")
    client = service.create_lora_training_client("tiny", rank=0 if kind == "every weight" else 8)
    prompt = tinker.ModelInput.from_ints(tokens(0, 6))
    client.forward_backward([datum(0)], "cross_entropy")
    client.optim_step(adam(1e-2))
    client.forward_backward([datum(0)], "cross_entropy")
    client.forward([datum(0)], "cross_entropy")
    sampler = client.save_weights_and_get_sampling_client()
    client.optim_step(adam(1e-1))
    found = sampler.compute_logprobs(prompt).result()
    trained = client.save_weights_and_get_sampling_client().compute_logprobs(prompt).result()
    assert found == sampler.compute_logprobs(prompt).result() != trained


def test_a_request_is_answered_even_when_its_clients_are_gone(tmp_path, tokens):
    prompt = tinker.ModelInput.from_ints(tokens(0, 5))
    future = (
        ServiceClient(root=tmp_path, device="cpu").create_sampling_client(base_model="tiny").compute_logprobs(prompt)
    )
    assert len(future.result(timeout=60)) == 5


# -- checkpoints ----------------------------------------------------------------------------------------------------


def test_names_are_unique_unless_overwritten_and_kinds_do_not_collide(service, client, datum, adam):
    client.save_state("a", user_metadata={"k": "v"}).result()
    with pytest.raises(tinker.ConflictError):
        client.save_state("a").result()
    client.save_state("a", overwrite=True, user_metadata={"k": "w"}).result()
    client.save_weights_for_sampler("a").result()
    found = service.create_rest_client().list_checkpoints(client.model_id).result().checkpoints
    assert [(c.checkpoint_id, c.checkpoint_type, c.user_metadata) for c in found] == [
        ("weights/a", "training", {"k": "w"}),
        ("sampler_weights/a", "sampler", None),
    ]


def test_checkpoints_are_listed_described_expired_copied_and_deleted(service, client):
    rest = service.create_rest_client()
    path = client.save_state("a", ttl_seconds=3600).result().path
    assert rest.get_weights_info_by_tinker_path(path).result().lora_rank == 8
    assert rest.list_user_checkpoints().result().checkpoints[0].expires_at is not None
    rest.set_checkpoint_ttl_from_tinker_path(path, None).result()
    copied = rest.copy_weights(path).result()
    assert rest.list_training_runs().result().cursor.total_count == 2
    rest.delete_checkpoint_from_tinker_path(path).result()
    with pytest.raises(tinker.NotFoundError):
        service.create_training_client_from_state(path)
    service.create_training_client_from_state_with_optimizer(copied)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """As a full disk: no file can grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_save_that_fails_leaves_the_previous_one_whole(service, client, datum, adam, tmp_path):
    path = client.save_state("a").result().path
    client.forward_backward([datum(0)], "cross_entropy")
    client.optim_step(adam(1e-2)).result()

    with file_size_limit(1000), pytest.raises(tinker.RequestFailedError, match="cannot save"):
        client.save_state("a", overwrite=True).result()
    rest = service.create_rest_client()
    with file_size_limit(1000), pytest.raises(tinker.RequestFailedError, match="cannot save"):
        rest.copy_weights(path).result()
    with file_size_limit(0), pytest.raises(tinker.RequestFailedError, match="cannot save"):
        rest.set_checkpoint_ttl_from_tinker_path(path, 3600).result()
    assert not list(tmp_path.glob(".writing-*"))
    again = service.create_training_client_from_state_with_optimizer(path)
    assert again.apply(lambda s: s.step).result() == 0
    client.save_state("a", overwrite=True).result()


def test_a_save_killed_between_its_two_renames_is_still_listed_and_loads(service, client, tmp_path):
    path = client.save_state("a").result().path
    folder = tmp_path / path.removeprefix("tinker://").replace(":", "_")
    folder.rename(folder.with_name(".previous-a"))
    rest = service.create_rest_client()
    assert [c.tinker_path for c in rest.list_user_checkpoints().result().checkpoints] == [path]
    service.create_training_client_from_state_with_optimizer(path)
    assert folder.exists()


def test_what_killed_saves_and_deletions_left_is_swept_after_a_day(client, tmp_path):
    old, new = [tmp_path / ".writing-old", tmp_path / ".deleting-old"], tmp_path / ".writing-new"
    for left in (*old, new):
        left.mkdir(parents=True)
    for left in old:
        os.utime(left, (0, 0))
    client.save_state("a").result()
    assert ([left.exists() for left in old], new.exists()) == ([False, False], True)


def test_an_unknown_path_fails_and_the_client_goes_on(service, client, datum):
    for path in ("tinker://nobody:train:0/weights/a", "tinker://x", "file:///etc/passwd"):
        with pytest.raises((tinker.NotFoundError, tinker.BadRequestError)):
            service.create_training_client_from_state(path)
    with pytest.raises(tinker.NotFoundError):
        service.create_sampling_client("tinker://nobody:train:0/sampler_weights/a")
    client.forward([datum(0)], "cross_entropy").result()


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "x\0", None])
def test_no_name_leaves_the_root(client, name):
    with pytest.raises(tinker.BadRequestError):
        client.save_state(name).result()


def test_load_state_must_come_first(service, client, datum):
    path = client.save_state("a").result().path
    fresh = service.create_lora_training_client("tiny", rank=8)
    assert fresh.load_state_with_optimizer(path).result().path == path
    used = service.create_lora_training_client("tiny", rank=8)
    used.forward([datum(0)], "cross_entropy").result()
    with pytest.raises(tinker.BadRequestError, match="not permitted with seq_id"):
        used.load_state(path).result()


def test_kinds_of_checkpoints_are_not_confused(service, client):
    training, sampling = client.save_state("a").result().path, client.save_weights_for_sampler("a").result().path
    with pytest.raises(tinker.BadRequestError):
        service.create_training_client_from_state(sampling)
    with pytest.raises(tinker.BadRequestError, match="must point to a sampler"):
        service.create_sampling_client(training)


# -- bad input ------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    "params", [{"beta2": 2.0}, {"learning_rate": 1e39}, {"learning_rate": float("nan")}, {"eps": 0.0}]
)
def test_bad_adam_parameters_fail_on_the_future_and_change_nothing(client, params):
    before = client.apply(lambda s: s.weights.flat.clone()).result()
    with pytest.raises(tinker.RequestFailedError, match=next(iter(params))):
        client.optim_step(tinker.AdamParams(**params)).result()
    assert client.apply(lambda s: s.weights.flat.equal(before)).result()


@pytest.mark.parametrize(
    "params", [{"max_tokens": 0}, {"max_tokens": 40000}, {"temperature": -1}, {"top_p": 0}, {"stop": [99999]}]
)
def test_bad_sampling_parameters_fail_on_the_future(sampler, params):
    with pytest.raises(tinker.RequestFailedError):
        sample(sampler, [1, 2], **{"max_tokens": 1, **params})
    assert sample(sampler, [1, 2], max_tokens=1)


@pytest.mark.parametrize(
    ("n", "options"), [(2.5, {}), ("2", {}), (1, {"topk_sample_logprobs": 1.5}), (1, {"topk_prompt_logprobs": 1.5})]
)
def test_a_count_that_is_no_integer_fails_on_the_future(sampler, n, options):
    prompt, params = tinker.ModelInput.from_ints([1, 2]), tinker.SamplingParams(max_tokens=1)
    with pytest.raises(tinker.RequestFailedError) as error:
        sampler.sample(prompt, n, params, **options).result()
    assert error.value.category == tinker.types.RequestErrorCategory.User
    with pytest.raises(ValueError, match="last_n"):
        sampler.compute_logprobs(prompt, prompt_logprobs_last_n=1.5)


@pytest.mark.parametrize(
    "option", [{"token_budget": 0}, {"token_budget": 1.5}, {"dtype": "float23"}, {"dtype": "int8"}]
)
def test_an_engine_is_not_made_with_options_that_mean_nothing(tmp_path, option):
    with pytest.raises(ValueError, match=next(iter(option))):
        ServiceClient(root=tmp_path, **option)


def test_an_unknown_base_model_says_so(service, tmp_path):
    for no_text in (None, tmp_path):  # a Path would load, and fail at the first save
        with pytest.raises(tinker.BadRequestError, match="as a text"):
            service.create_lora_training_client(no_text)
    with pytest.raises(tinker.BadRequestError, match="no such folder"):
        service.create_lora_training_client("no/such/model/here")


# -- architectures --------------------------------------------------------------------------------------------------

PEFT_CANNOT_LOAD = {"deepseek_v3"}
"""PEFT 0.19 renames every adapted gate_proj to a stacked expert, also those of dense layers; export these merged."""


@pytest.mark.slow
@pytest.mark.parametrize("architecture", CONFIGS)
def test_trainer_sampler_and_peft_agree_on(architecture: str, service, datum, adam, tokens, tmp_path):
    folder = write_model(architecture, tmp_path / "base")
    client = service.create_lora_training_client(str(folder), rank=4)
    data = [datum(i, 5 + 3 * i) for i in range(3)]
    for _ in range(3):
        client.forward_backward(data, "cross_entropy")
        client.optim_step(adam(1e-2))
    trained = [o["logprobs"].to_numpy() for o in client.forward(data, "cross_entropy").result().loss_fn_outputs]
    sampler = client.save_weights_and_get_sampling_client()
    full = [tokens(i, 6 + 3 * i) for i in range(3)]
    for ids, lp in zip(full, trained, strict=True):
        scored = sampler.compute_logprobs(tinker.ModelInput.from_ints(ids)).result()[1:]
        np.testing.assert_allclose(scored, lp, atol=1e-5)
    drawn = sample(sampler, full[0], 2, max_tokens=8, seed=0, stop=[])[1]
    scored = sampler.compute_logprobs(tinker.ModelInput.from_ints(full[0] + drawn.tokens)).result()[-8:]
    np.testing.assert_allclose(drawn.logprobs, scored, atol=1e-4)
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from tinkerloop.local.runtime.checkpoint_store import CheckpointStore

    path = client.save_weights_for_sampler("a").result().path
    if architecture in PEFT_CANNOT_LOAD:
        export_checkpoint(tmp_path, path, tmp_path / "merged", merged=True)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    else:
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        model = PeftModel.from_pretrained(base, str(CheckpointStore(tmp_path).folder(path))).eval()
    for ids, lp in zip(full, trained, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
        theirs = logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        np.testing.assert_allclose(theirs.numpy(), lp, atol=1e-4)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_leaving_out_idle_positions_leaves_the_gradient(tmp_path, datum, adam, architecture):
    folder = write_model(architecture, tmp_path / "model")
    weights = [0.0] * 90 + [1.0] * 10 + [0.0] * 30 + [1.0] * 3 + [0.0] * 7
    data = [datum(0, 140, weights), datum(1, 24, [0.0] * 14 + [1.0] * 10)]
    gradients = []
    for skip in (False, True):
        service = ServiceClient(root=tmp_path, device="cpu", skip_zero_weight=skip)
        client = service.create_lora_training_client(str(folder), rank=4)
        client.forward_backward(data, "cross_entropy")
        client.optim_step(adam(1e-2))  # B is zero before, and A's gradient with it
        client.forward_backward(data, "cross_entropy")
        gradients.append(client.apply(lambda state: state.gradient.clone()).result())
        run = client._run
        assert run.model.replicas[0]._on_active
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-4 * float(gradients[0].abs().max()))

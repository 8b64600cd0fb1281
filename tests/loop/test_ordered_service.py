"""What the ordered service offers beyond what the loop's tests use."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest
import tinker

from tinkerloop.datum_checks import fold_weights
from tinkerloop.errors import DatumError
from tinkerloop.rollouts import policy_datum
from tinkerloop.testing import MissingCheckpointError, OrderedService
from tinkerloop.testing._policy_losses import DEFAULTS


def trained(service, batches):
    client = service.create_lora_training_client()
    client.forward_backward(list(batches[0]), "cross_entropy").result()
    client.optim_step(tinker.AdamParams(learning_rate=0.1)).result()
    return client


def test_its_checkpoints_are_listed_newest_first_and_deleted(service, batches):
    client, rest = trained(service, batches), service.create_rest_client()
    paths = [client.save_state(name).result().path for name in ("a", "b")]
    listed = rest.list_checkpoints(client.model_id).result().checkpoints
    assert [(one.tinker_path, one.checkpoint_id) for one in listed] == [
        (paths[1], "weights/b"),
        (paths[0], "weights/a"),
    ]
    rest.delete_checkpoint(client.model_id, "weights/a").result()
    rest.set_checkpoint_ttl_from_tinker_path(paths[1], 3600).result()
    assert [one.tinker_path for one in rest.list_user_checkpoints().result().checkpoints] == paths[1:]
    with pytest.raises(MissingCheckpointError):
        rest.delete_checkpoint_from_tinker_path(paths[0]).result()


def test_a_state_is_loaded_with_or_without_its_optimizer(service, batches):
    client = trained(service, batches)
    path = client.save_state("a").result().path
    whole, weights = service.create_lora_training_client(), service.create_lora_training_client()
    whole.load_state_with_optimizer(path).result()
    weights.load_state(path).result()
    assert (whole.state.updates, weights.state.updates) == (1, 0)
    assert (whole.state.logits == client.state.logits).all()
    assert (weights.state.logits == client.state.logits).all()


def test_its_samplers_score_with_the_saved_weights(service, batches):
    client, prompt = trained(service, batches), tinker.ModelInput.from_ints([1, 2, 3])
    saved = client.create_sampling_client(client.save_weights_for_sampler("a").result().path)
    live = client.save_weights_and_get_sampling_client()
    fresh = service.create_sampling_client(base_model="unigram")
    scores = [asyncio.run(one.compute_logprobs(prompt).result_async()) for one in (saved, live, fresh)]
    assert scores[0] == scores[1] != scores[2]
    assert [score[0] for score in scores] == [None] * 3


def sampled_datum(loss_fn, seed=0):
    random = np.random.default_rng(seed)
    sampled = np.arange(9) % 4 > 0
    logprobs, advantages = random.normal(-3, 0.4, sampled.sum()), random.normal(size=sampled.sum())
    return policy_datum(random.integers(0, 20, 9), sampled, logprobs, advantages, loss_fn=loss_fn)


@pytest.mark.parametrize("loss_fn", [name for name in DEFAULTS if name != "cross_entropy"])
def test_its_policy_losses_equal_autograd_of_the_formulas(service, batches, loss_fn):
    pytest.importorskip("torch")
    from tests.local.references import reference_loss

    def loss(datums, logprobs):
        parts = zip(logprobs, datums, strict=True)
        return sum(reference_loss(loss_fn, DEFAULTS[loss_fn], lp.double(), datum) for lp, datum in parts), {}

    native, custom = trained(service, batches), trained(service, batches)
    data = [fold_weights(sampled_datum(loss_fn, seed)) for seed in range(4)]
    output = native.forward_backward(data, loss_fn).result()
    expected = custom.forward_backward_custom(data, loss).result()
    assert output.metrics["loss:sum"] == pytest.approx(expected.metrics["loss:sum"], rel=1e-6)
    assert native.state.gradient == pytest.approx(custom.state.gradient, rel=1e-5, abs=1e-6)
    assert native.forward(data, loss_fn).result().metrics == output.metrics


def test_it_refuses_inputs_and_options_that_the_service_does_not_know(service):
    client = service.create_lora_training_client()
    with pytest.raises(DatumError, match=r"wrong loss inputs for ppo \(got \['weights'\]\)"):
        client.forward_backward([sampled_datum("ppo")], "ppo").result()
    with pytest.raises(ValueError, match="unknown loss_fn_config keys"):
        client.forward_backward([fold_weights(sampled_datum("ppo"))], "ppo", {"beta": 1.0}).result()


def policy_inputs(loss_fn, logprobs, advantages):
    inputs = {"target_tokens": [2, 3], "logprobs": logprobs, "advantages": advantages}
    mask = {"sequence_ratio_mask": [0.0, 1.0]} if loss_fn == "gspo" else {}
    return tinker.Datum(model_input=tinker.ModelInput.from_ints([1, 2]), loss_fn_inputs=inputs | mask)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("loss_fn", ["importance_sampling", "ppo", "cispo", "gspo"])
@pytest.mark.parametrize("fill", [-99999.0, -800.0, 0.0])
def test_a_position_without_an_advantage_adds_nothing(service, loss_fn, fill):
    client, other = service.create_lora_training_client(), service.create_lora_training_client()
    loss = client.forward_backward([policy_inputs(loss_fn, [fill, -4.0], [0.0, 1.0])], loss_fn).result()
    expected = other.forward_backward([policy_inputs(loss_fn, [-3.0, -4.0], [0.0, 1.0])], loss_fn).result()
    assert loss.metrics == expected.metrics
    assert (client.state.gradient == other.state.gradient).all()


def test_a_gradient_that_is_not_finite_is_not_accumulated(service):
    client = service.create_lora_training_client()
    data = [policy_inputs("importance_sampling", [-9999.0, -4.0], [1.0, 1.0])]
    with pytest.raises(ValueError, match="importance_sampling loss of datum 0 is NaN or infinite"):
        client.forward_backward(data, "importance_sampling").result()
    assert client.state.gradient is None


@pytest.mark.parametrize("scale, message", [(1.0, "every datum"), (float("nan"), "custom loss or its gradient is NaN")])
def test_a_custom_loss_that_fails_leaves_the_gradient_as_it_was(service, batches, scale, message):
    pytest.importorskip("torch")

    def loss(datums, logprobs):
        used = logprobs[:1] if scale == 1.0 else logprobs
        return sum(one.sum() for one in used) * scale, {}

    client = trained(service, batches)
    with pytest.raises(ValueError, match=message):
        client.forward_backward_custom(list(batches[0]), loss).result()
    assert client.state.gradient is None


@pytest.mark.parametrize(
    "params",
    [
        {"learning_rate": float("nan")},
        {"learning_rate": -1.0},
        {"beta1": 2.0},
        {"beta2": 1.0},
        {"eps": 0.0},
        {"weight_decay": -0.1},
        {"grad_clip_norm": float("inf")},
    ],
    ids=str,
)
def test_optimizer_parameters_out_of_range_are_refused_as_in_the_engine(service, batches, params):
    client = trained(service, batches)
    logits = client.state.logits
    with pytest.raises(ValueError, match=f"AdamParams.{next(iter(params))}=.* is out of range"):
        client.optim_step(tinker.AdamParams(**params)).result()
    assert client.state.logits is logits


@pytest.mark.parametrize(
    "loss_fn, config",
    [
        ("dro", {"beta": float("nan")}),
        ("dro", {"beta": "0.1"}),
        ("ppo", {"clip_low_threshold": 2.0, "clip_high_threshold": 1.0}),
        ("cispo", {"clip_low_threshold": 5.0}),
    ],
)
def test_options_of_a_loss_out_of_range_are_refused_as_in_the_engine(service, loss_fn, config):
    client = service.create_lora_training_client()
    with pytest.raises(ValueError, match=r"must be a finite number|must not be above"):
        client.forward([policy_inputs(loss_fn, [-3.0, -4.0], [1.0, 1.0])], loss_fn, config).result()


def sample(service, **params):
    prompt, sampler = tinker.ModelInput.from_ints([1]), service.create_sampling_client(base_model="unigram")
    (one,) = sampler.sample(prompt, 1, tinker.SamplingParams(**params)).result().sequences
    return one


def test_its_samples_end_with_the_first_stop_token(service):
    whole = sample(service, max_tokens=30, seed=1)
    cut = sample(service, max_tokens=30, seed=1, stop=[whole.tokens[4]])
    assert (whole.stop_reason, cut.stop_reason) == ("length", "stop")
    assert cut.tokens == whole.tokens[: whole.tokens.index(whole.tokens[4]) + 1]
    assert len(cut.logprobs) == len(cut.tokens)
    with pytest.raises(NotImplementedError, match="stop texts"):
        sample(service, stop=["\n"])


@pytest.mark.parametrize("reproducible", [True, False])
def test_equal_requests_get_equal_samples_only_if_the_service_is_reproducible(reproducible):
    service = OrderedService(vocab_size=20, reproducible=reproducible)
    first, second = (sample(service, max_tokens=30, seed=1).tokens for _ in range(2))
    assert (first == second) is reproducible


def test_a_request_without_a_seed_gets_new_samples(service):
    first, second, seeded = (sample(service, max_tokens=30, seed=seed).tokens for seed in (None, None, 0))
    assert first != second != seeded != first


def test_top_k_and_top_p_leave_the_most_likely_tokens(service):
    client = service.create_lora_training_client()
    client.state = replace(client.state, logits=np.log([0.5, 0.3, 0.15, 0.05] + [1e-9] * 16))
    sampler, prompt = client.save_weights_and_get_sampling_client(), tinker.ModelInput.from_ints([1])

    def drawn(**params):
        params = tinker.SamplingParams(max_tokens=400, seed=1, **params)
        return np.bincount(sampler.sample(prompt, 1, params).result().sequences[0].tokens, minlength=20) / 400

    assert set(np.flatnonzero(drawn())) == {0, 1, 2, 3}
    assert set(np.flatnonzero(drawn(top_k=2))) == {0, 1}
    assert set(np.flatnonzero(drawn(top_p=0.81))) == {0, 1, 2}
    assert set(np.flatnonzero(drawn(top_k=3, top_p=0.6))) == {0, 1}
    assert set(np.flatnonzero(drawn(top_p=1e-9))) == {0}
    assert set(np.flatnonzero(drawn(temperature=1e-9))) == {0}
    assert drawn(top_k=2)[0] == pytest.approx(0.625, abs=0.06)
    assert drawn(temperature=0.5)[0] == pytest.approx(0.25 / 0.365, abs=0.06)


@pytest.mark.parametrize(
    "params",
    [{"max_tokens": 0}, {"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_k": 0}],
    ids=str,
)
def test_sampling_parameters_out_of_range_are_refused(service, params):
    with pytest.raises(ValueError, match=f"{next(iter(params))} must be"):
        sample(service, **params)


def test_options_of_sampling_that_it_does_not_have_are_refused(service):
    sampler, prompt = service.create_sampling_client(base_model="unigram"), tinker.ModelInput.from_ints([1])
    with pytest.raises(NotImplementedError, match="include_prompt_logprobs"):
        sampler.sample(prompt, 1, tinker.SamplingParams(), include_prompt_logprobs=True, topk_prompt_logprobs=0)
    with pytest.raises(NotImplementedError, match="prompt_logprobs_last_n"):
        sampler.compute_logprobs(prompt, prompt_logprobs_last_n=2)


def test_weights_for_sampling_cannot_be_trained_and_a_training_state_cannot_be_sampled_from(service, batches):
    client = trained(service, batches)
    weights, state = client.save_weights_for_sampler("a").result().path, client.save_state("a").result().path
    opened = [service.create_training_client_from_state, service.create_training_client_from_state_with_optimizer]
    loaded = [client.load_state, client.load_state_with_optimizer]
    for use in (*opened, *(lambda path, load=load: load(path).result() for load in loaded)):
        with pytest.raises(ValueError, match=r"checkpoint for sampling; pass .* save_state"):
            use(weights)
    for sample_from in (service.create_sampling_client, client.create_sampling_client):
        with pytest.raises(ValueError, match=r"checkpoint for training, so save one with save_weights_for_sampler"):
            sample_from(state)


def test_a_fault_can_stop_sampling():
    def fault(operation):
        if operation == ("sample", 1):
            raise ConnectionError("no sampler")

    with pytest.raises(ConnectionError):
        sample(OrderedService(vocab_size=20, fault=fault), max_tokens=3)

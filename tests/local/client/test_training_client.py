"""Compare gradients, losses and optimizer steps with float64 reference implementations."""

from __future__ import annotations

import asyncio
import gc
import weakref

import numpy as np
import pytest
import tinker
import torch

from tests.local.references import policy_datum, reference_gradient, reference_loss
from tests.processes import Process
from tinkerloop.local import ServiceClient, TrainingClient
from tinkerloop.local.nn import adam as adam_module
from tinkerloop.local.nn.losses import LOSSES


def flat(client: TrainingClient, what: str = "weights") -> torch.Tensor:
    """Return a copy of the client's weights (or of another vector of its state), made in the order of the queue."""
    return client.apply(lambda s: (s.weights.flat if what == "weights" else getattr(s, what)).clone()).result()


def lora(service: ServiceClient, **options) -> TrainingClient:
    return service.create_lora_training_client("tiny", **{"rank": 8, "seed": 1, **options})


def warm(client: TrainingClient, datum, adam) -> TrainingClient:
    """Train one step, so that B is no longer zero and the gradient of A is not zero."""
    client.forward_backward([datum(90), datum(91)], "cross_entropy")
    client.optim_step(adam(1e-2)).result()
    return client


def logprobs(output: tinker.ForwardBackwardOutput) -> list[np.ndarray]:
    return [fields["logprobs"].to_numpy() for fields in output.loss_fn_outputs]


def test_the_loss_is_the_plain_weighted_sum_and_scaling_weights_scales_it_and_the_gradient(client, datum, adam):
    warm(client, datum, adam)
    weights = [0.5, -1.0, 0.0, 2.0, 1.0]
    output = client.forward_backward([datum(0, 5, weights)], "cross_entropy").result()
    expected = -(logprobs(output)[0].astype(np.float64) * weights).sum()
    assert output.metrics["loss:sum"] == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(
        output.loss_fn_outputs[0]["elementwise_loss"].to_numpy(), -logprobs(output)[0] * weights, rtol=1e-6
    )
    once = flat(client, "gradient")
    client.optim_step(adam(0.0)).result()
    double = client.forward_backward([datum(0, 5, [2 * w for w in weights])], "cross_entropy").result()
    assert double.metrics["loss:sum"] == pytest.approx(2 * expected, rel=1e-6)
    torch.testing.assert_close(flat(client, "gradient"), 2 * once, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("longest", [5, 42])  # a step of few tokens, in which adapters are not folded, and of many
@pytest.mark.parametrize("parts", [2, 4, 8])
def test_splitting_a_batch_changes_nothing(service: ServiceClient, datum, adam, parts: int, longest: int):
    data = [datum(i, 3 + 7 * i % (longest - 2)) for i in range(8)]

    def train(parts: int) -> torch.Tensor:
        client = lora(service)
        for _ in range(3):
            size = len(data) // parts
            for start in range(0, len(data), size):
                client.forward_backward(data[start : start + size], "cross_entropy")
            client.optim_step(adam())
        return flat(client)

    whole = train(1)
    assert (train(parts) - whole).abs().max() <= 1e-6 * whole.abs().max()


def test_packed_batches_change_nothing(tmp_path, datum, adam):
    data = [datum(i, 3 + 7 * i % 40) for i in range(8)]

    def train(budget: int) -> torch.Tensor:
        client = lora(ServiceClient(root=tmp_path, device="cpu", token_budget=budget))
        for _ in range(3):
            client.forward_backward(data, "cross_entropy")
            client.optim_step(adam())
        return flat(client)

    assert (train(32) - train(4096)).abs().max() <= 1e-6 * 0.2


def test_forward_leaves_the_gradient_alone(service: ServiceClient, datum, adam):
    plain, observed = lora(service), lora(service)
    for client in (plain, observed):
        if client is observed:
            client.forward([datum(5)], "cross_entropy")
        client.forward_backward([datum(0)], "cross_entropy")
        if client is observed:
            client.forward([datum(6)], "cross_entropy")
        client.optim_step(adam())
    assert torch.equal(flat(plain), flat(observed))


def test_a_step_without_a_gradient_moves_by_momentum_alone_and_warns(client, datum, adam):
    warm(client, datum, adam)
    before = flat(client)
    with pytest.warns(UserWarning, match="without a forward_backward"):
        client.optim_step(adam()).result()
    assert not torch.equal(flat(client), before)


def test_a_fresh_adapter_is_the_base_model(service: ServiceClient, client: TrainingClient, datum, tokens):
    base = service.create_sampling_client(base_model="tiny")
    expected = base.compute_logprobs(tinker.ModelInput.from_ints(tokens(0, 13))).result()[1:]
    np.testing.assert_allclose(logprobs(client.forward([datum(0)], "cross_entropy").result())[0], expected, atol=1e-6)


def test_trainer_and_sampler_agree_after_training(client: TrainingClient, datum, adam, tokens):
    warm(client, datum, adam)
    sampler = client.save_weights_and_get_sampling_client()
    scored = sampler.compute_logprobs(tinker.ModelInput.from_ints(tokens(0, 13))).result()[1:]
    np.testing.assert_allclose(logprobs(client.forward([datum(0)], "cross_entropy").result())[0], scored, atol=1e-5)


# -- losses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "loss_fn, given",
    [
        ("importance_sampling", {}),
        ("ppo", {}),
        ("ppo", {"clip_low_threshold": 0.9, "clip_high_threshold": 1.05}),
        ("cispo", {"clip_high_threshold": 1.1}),
        ("dro", {"beta": 0.3}),
        ("gspo", {}),
    ],
)
def test_a_policy_loss_and_its_gradient_equal_autograd_through_the_custom_path(
    service: ServiceClient, datum, adam, tokens, loss_fn: str, given: dict[str, float]
):
    native, custom = (warm(lora(service), datum, adam) for _ in range(2))
    lengths = (6, 11, 9)
    behind = [
        logprobs(native.forward([datum(i, n)], "cross_entropy").result())[0]
        + np.random.default_rng(i).normal(0, 0.3, n)
        for i, n in enumerate(lengths)
    ]
    data = [policy_datum(tokens, i, n, q, loss_fn) for i, (n, q) in enumerate(zip(lengths, behind, strict=True))]
    config = {**LOSSES[loss_fn].defaults, **given}

    def loss(data, logprobs):
        parts = [reference_loss(loss_fn, config, lp.double(), d) for lp, d in zip(logprobs, data, strict=True)]
        return torch.stack(parts).sum(), {"mine": 1.0}

    output = native.forward_backward(data, loss_fn, given).result()
    reference = custom.forward_backward_custom(data, loss).result()
    assert output.metrics["loss:sum"] == pytest.approx(reference.metrics["loss:sum"], rel=1e-5)
    assert reference.metrics["mine"] == 1.0
    assert "surrogate_loss:sum" in reference.metrics
    expected = flat(custom, "gradient")
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(flat(native, "gradient"), expected, rtol=1e-3, atol=1e-5 * expected.abs().max().item())
    assert ("ppo_mean_ratio:mean" in output.metrics) == (loss_fn == "ppo")
    assert all(":" in name for name in output.metrics)


@pytest.mark.parametrize("loss_fn", LOSSES)
def test_every_loss_and_its_gradient_equal_autograd_through_the_whole_model_in_float64(
    client: TrainingClient, datum, adam, tokens, loss_fn: str
):
    warm(client, datum, adam)
    lengths = (6, 11, 9)
    if loss_fn == "cross_entropy":
        random = np.random.default_rng(0)
        data = [datum(i, n, random.normal(size=n).tolist()) for i, n in enumerate(lengths)]
        inputs = {"target_tokens": random.integers(0, 256, (7, 3)), "weights": random.normal(size=(7, 3))}
        data.append(tinker.Datum(model_input=tinker.ModelInput.from_ints(tokens(3, 7)), loss_fn_inputs=inputs))
    else:
        found = [logprobs(client.forward([datum(i, n)], "cross_entropy").result())[0] for i, n in enumerate(lengths)]
        behind = [q + np.random.default_rng(i).normal(0, 0.3, len(q)) for i, q in enumerate(found)]
        data = [policy_datum(tokens, i, n, q, loss_fn) for i, (n, q) in enumerate(zip(lengths, behind, strict=True))]
    total, expected = reference_gradient(
        client.apply(lambda s: {n: t.clone() for n, t in s.weights.named.items()}).result(),
        lambda lp, d: reference_loss(loss_fn, LOSSES[loss_fn].defaults, lp, d),
        data,
    )
    output = client.forward_backward(data, loss_fn).result()
    assert output.metrics["loss:sum"] == pytest.approx(total, rel=1e-5, abs=1e-4)
    gradient = client.apply(lambda s: {n: g.clone() for n, g in s.gradients.items()}).result()
    for name, reference in expected.items():
        assert reference.abs().max() > 0
        torch.testing.assert_close(gradient[name], reference, rtol=1e-3, atol=1e-5 * reference.abs().max().item())


def test_cispo_weighs_by_the_clipped_ratio_and_ppo_of_one_bound_stops_there(client, datum, adam, tokens):
    """The gradient of cispo is clamp(r) A grad lp, also when it clips. That of ppo is 0 where min selects the clamp."""
    warm(client, datum, adam)
    lp = logprobs(client.forward([datum(0, 6)], "cross_entropy").result())[0]
    data = policy_datum(tokens, 0, 6, lp - 1.0, "cispo")  # r = e everywhere
    clipped = client.forward_backward([data], "cispo", {"clip_high_threshold": 2.0})
    found = client.apply(lambda s: s.gradient.clone())
    client.optim_step(adam(0.0)).result()
    advantages = data.loss_fn_inputs["advantages"].to_numpy()
    client.forward_backward([datum(0, 6, (2.0 * advantages).tolist())], "cross_entropy").result()
    torch.testing.assert_close(found.result(), flat(client, "gradient"), rtol=1e-3, atol=1e-6)
    assert clipped.result().metrics["loss:sum"] == pytest.approx(-(2.0 * lp * advantages).sum(), rel=1e-5)
    client.optim_step(adam(0.0)).result()
    positive = tinker.Datum(
        model_input=data.model_input,
        loss_fn_inputs={**data.loss_fn_inputs, "advantages": np.abs(advantages)},
    )
    one = {"clip_low_threshold": 1.0, "clip_high_threshold": 1.0}
    output = client.forward_backward([positive], "ppo", one).result()
    assert output.metrics["loss:sum"] == pytest.approx(-np.abs(advantages).sum(), rel=1e-5)
    assert output.metrics["ppo_clipped_fraction:mean"] == 1
    assert flat(client, "gradient").abs().max() == 0


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("element", [1e20, float("inf"), float("nan")])
def test_a_gradient_that_would_overflow_the_moments_fails_and_changes_nothing(service, datum, adam, rank, element):
    client = warm(lora(service, rank=rank), datum, adam)
    vectors = ("weights", "gradient", "exp_avg", "exp_avg_sq")
    client.apply(lambda state: state.gradient[3:4].fill_(element)).result()
    before = [flat(client, name) for name in vectors]
    with pytest.raises(tinker.RequestFailedError, match="NonFiniteInTensor") as error:
        client.optim_step(adam()).result()
    assert error.value.category == tinker.types.RequestErrorCategory.User
    for name, old in zip(vectors, before, strict=True):
        assert torch.equal(flat(client, name).nan_to_num(), old.nan_to_num())
    assert client.apply(lambda state: state.step).result() == 1


@pytest.mark.parametrize(
    "fields",
    [{"learning_rate": 3e38}, {"learning_rate": 10.0, "weight_decay": 3e38}, {"beta1": 1 - 1e-16, "eps": 1e-45}],
)
def test_a_step_to_weights_that_are_not_finite_fails_and_changes_nothing(service, datum, adam, fields):
    client = warm(lora(service), datum, adam)
    client.apply(lambda state: (state.exp_avg.fill_(1e18), state.exp_avg_sq.zero_())).result()
    client.forward_backward([datum(0)], "cross_entropy").result()
    vectors = ("weights", "gradient", "exp_avg", "exp_avg_sq")
    before = [flat(client, name) for name in vectors]
    with pytest.raises(tinker.RequestFailedError, match="NonFiniteInTensor") as error:
        client.optim_step(adam(**{"grad_clip_norm": 1e-3, **fields})).result()
    assert error.value.category == tinker.types.RequestErrorCategory.User
    for name, old in zip(vectors, before, strict=True):
        assert torch.equal(flat(client, name), old)


def test_a_very_large_weight_decay_that_the_weights_survive_is_applied(service, datum, adam):
    client = warm(lora(service), datum, adam)
    before = flat(client)
    client.optim_step(adam(1.0, weight_decay=1e6)).result()
    assert flat(client).abs().max() > 1e5 * before.abs().max()


@pytest.mark.parametrize("rank", [0, 4])
def test_a_large_gradient_is_applied_after_clipping(service, datum, adam, rank):
    client = warm(lora(service, rank=rank), datum, adam)
    client.apply(lambda state: state.gradient[:16].fill_(1e20)).result()  # the norm in float32 is infinite
    before = flat(client)
    assert client.optim_step(adam(grad_clip_norm=1.0)).result().metrics["unclipped_grad_l2:mean"] == pytest.approx(4e20)
    assert (flat(client) - before)[:16].abs().min() > 0
    assert flat(client, "exp_avg_sq").isfinite().all()


def test_ppo_bounds_are_ratios_and_a_likely_mistake_warns(client, datum, tokens):
    q = np.zeros(5)
    with pytest.warns(UserWarning, match=r"0\.8 and 1\.2"):
        client.forward(
            [policy_datum(tokens, 0, 5, q, "ppo")], "ppo", {"clip_low_threshold": 0.2, "clip_high_threshold": 0.2}
        ).result()


def test_several_weighted_targets_per_position_equal_the_sum_of_single_ones(client, datum, tokens, adam):
    warm(client, datum, adam)
    ids, random = tokens(4, 8), np.random.default_rng(0)
    targets, weights = random.integers(0, 256, (7, 3)), random.random((7, 3)).astype(np.float32)
    weights[:2] = 0

    def of(targets, weights) -> tinker.Datum:
        model_input = tinker.ModelInput.from_ints(ids[:-1])
        return tinker.Datum(model_input=model_input, loss_fn_inputs={"target_tokens": targets, "weights": weights})

    together = client.forward_backward([of(targets, weights)], "cross_entropy").result()
    assert logprobs(together)[0].shape == (7, 3)
    gradient = flat(client, "gradient")
    client.optim_step(adam(0.0)).result()
    columns = [of(targets[:, k].copy(), weights[:, k].copy()) for k in range(3)]
    apart = client.forward_backward(columns, "cross_entropy").result()
    assert together.metrics["loss:sum"] == pytest.approx(apart.metrics["loss:sum"], rel=1e-6)
    torch.testing.assert_close(flat(client, "gradient"), gradient, rtol=1e-4, atol=1e-6)


def test_sparse_targets_mean_the_same_as_dense_ones(client, tokens):
    ids = tokens(4, 9)
    targets, weights = torch.zeros(8, 64, dtype=torch.int64), torch.zeros(8, 64)
    targets[5:, :4], weights[6:, :4] = torch.arange(1, 5), 0.25
    model_input = tinker.ModelInput.from_ints(ids[:-1])
    sparse = tinker.Datum(model_input=model_input, loss_fn_inputs={"target_tokens": targets, "weights": weights})
    assert sparse.loss_fn_inputs["weights"].sparse_crow_indices is not None
    arrays = {"target_tokens": targets.numpy(), "weights": weights.numpy()}
    dense = tinker.Datum(model_input=model_input, loss_fn_inputs=arrays)
    results = [client.forward([d], "cross_entropy").result() for d in (sparse, dense)]
    assert results[0].metrics == results[1].metrics
    # A datum with fewer columns in the same packed batch is padded, and the padding is removed from the result.
    mixed = client.forward([sparse, dense], "cross_entropy").result()
    assert [lp.shape for lp in logprobs(mixed)] == [(8, 64), (8, 64)]


def test_skipping_idle_positions_changes_only_their_reported_logprobs(service, tmp_path, datum, adam):
    weights = [0.0, 1.0, 0.0, 0.5, 0.0, 2.0]
    quick = ServiceClient(root=tmp_path, device="cpu", skip_zero_weight=True)
    clients = [warm(lora(s), datum, adam) for s in (service, quick)]
    outputs = [c.forward_backward([datum(0, 6, weights)], "cross_entropy").result() for c in clients]
    assert outputs[0].metrics["loss:sum"] == pytest.approx(outputs[1].metrics["loss:sum"], rel=1e-6)
    full, skipped = (logprobs(output)[0] for output in outputs)
    assert (skipped[::2] == 0).all()
    np.testing.assert_allclose(skipped[1::2], full[1::2], rtol=1e-6)
    assert (full < 0).all()
    torch.testing.assert_close(flat(clients[0], "gradient"), flat(clients[1], "gradient"), rtol=1e-5, atol=1e-7)


def test_skipping_leaves_out_what_comes_after_the_last_weight(tmp_path, datum, adam):
    quick = ServiceClient(root=tmp_path, device="cpu", skip_zero_weight=True)
    long, short = (warm(lora(quick), datum, adam) for _ in range(2))
    weights = [0.0, 1.0, 0.5, 0.0, 0.0, 0.0]
    outputs = [
        client.forward_backward([datum(0, n, weights[:n]), datum(1, 4, [0.0] * 4)], "cross_entropy").result()
        for client, n in ((long, 6), (short, 3))
    ]
    assert [lp.tolist()[3:] for lp in logprobs(outputs[0])] == [[0.0] * 3, [0.0]]
    assert [lp[:3].tolist() for lp in logprobs(outputs[0])] == [lp[:3].tolist() for lp in logprobs(outputs[1])]
    assert torch.equal(flat(long, "gradient"), flat(short, "gradient"))


@pytest.mark.skipif(not hasattr(tinker, "LossHandle"), reason="tinker < 0.36 cannot trace losses")
def test_a_traced_loss_equals_the_function_it_was_traced_from(service, client, datum, tokens, adam):
    def importance(logprobs, advantages):
        return -(torch.exp(logprobs - logprobs.detach()) * advantages).sum(), {"custom/mean_lp:mean": logprobs.mean()}

    warm(client, datum, adam)
    data = [policy_datum(tokens, i, 5, np.zeros(5), "ppo") for i in range(2)]
    handle = service.create_custom_loss(importance, {"logprobs": 1, "advantages": 1}).result()
    output = client.forward_backward_custom(data, handle).result()
    assert "custom/mean_lp:mean" in output.metrics
    assert flat(client, "gradient").abs().max() > 0
    with pytest.raises(ValueError):
        service.create_custom_loss(lambda weights: weights.sum(), {"weights": 1})


def test_a_failing_custom_loss_raises_its_own_error_and_poisons_the_client(client, datum, adam, tokens):
    def loss(data, logprobs):
        raise KeyError("mine")

    failing = client.forward_backward_custom([datum(0)], loss)
    queued, called = client.optim_step(adam()), []
    behind = client.forward_backward_custom([datum(0)], lambda data, logprobs: called.append(data))
    sampler = client.save_weights_and_get_sampling_client()
    with pytest.raises(KeyError, match="mine"):
        failing.result()
    with pytest.raises(RuntimeError, match="poisoned"):
        queued.result()
    with pytest.raises(RuntimeError, match="poisoned"):
        behind.result()
    assert not called
    with pytest.raises(RuntimeError, match="poisoned"):  # instead of returning the base model's log-probabilities
        sampler.compute_logprobs(tinker.ModelInput.from_ints(tokens(0, 3))).result()


def test_a_custom_loss_that_exhausts_an_iterator_fails_when_it_is_awaited(client, datum):
    future = client.forward_backward_custom([datum(0)], lambda data, lps: next(iter([])))

    async def wait():
        await asyncio.wait_for(future, timeout=60)

    with pytest.raises(RuntimeError, match="StopIteration"):
        asyncio.run(wait())


def test_a_custom_loss_must_use_every_datum(client, datum):
    future = client.forward_backward_custom([datum(0), datum(1)], lambda data, lps: (lps[0].sum(), {}))
    with pytest.raises(ValueError, match="No gradient"):
        future.result()


# -- optimizer ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"learning_rate": 3e-2, "beta1": 0.5, "beta2": 0.9, "eps": 1e-3},
        {"weight_decay": 0.3},
        {"grad_clip_norm": 0.5},
        {"grad_clip_norm": 1e9, "weight_decay": 0.01},
    ],
)
def test_steps_equal_torch_adamw_after_torch_clipping(client: TrainingClient, datum, adam, fields, monkeypatch):
    monkeypatch.setattr(adam_module, "BLOCK", 1000)  # so that there are several blocks
    parameter = torch.nn.Parameter(flat(client))
    params = adam(**fields)
    optimizer = torch.optim.AdamW(
        [parameter],
        lr=params.learning_rate,
        betas=(params.beta1, params.beta2),
        eps=params.eps,
        weight_decay=params.weight_decay,
    )
    for step in range(4):
        client.forward_backward([datum(step), datum(step + 10)], "cross_entropy")
        parameter.grad = flat(client, "gradient").float()
        norm = parameter.grad.norm().item()
        if params.grad_clip_norm:
            torch.nn.utils.clip_grad_norm_([parameter], params.grad_clip_norm)
        optimizer.step()
        metrics = client.optim_step(params).result().metrics
        assert metrics["unclipped_grad_l2:mean"] == pytest.approx(norm, rel=1e-5)
        torch.testing.assert_close(flat(client), parameter.data, rtol=1e-5, atol=1e-6)
    assert flat(client, "gradient").abs().max() == 0


def test_requests_are_executed_in_order_without_waiting(service: ServiceClient, datum, adam):
    patient, eager = lora(service), lora(service)
    for step in range(4):
        patient.forward_backward([datum(step)], "cross_entropy").result()
        patient.optim_step(adam()).result()
    for step in range(4):
        eager.forward_backward([datum(step)], "cross_entropy")
        eager.optim_step(adam())
    assert torch.equal(flat(patient), flat(eager))


def test_clients_on_one_base_are_independent(service: ServiceClient, datum, adam):
    alone, a, b = (lora(service) for _ in range(3))
    for step in range(3):
        a.forward_backward([datum(step)], "cross_entropy")
        b.forward_backward([datum(50 + step)], "cross_entropy")
        a.optim_step(adam())
        b.optim_step(adam(3e-2))
    for step in range(3):
        alone.forward_backward([datum(step)], "cross_entropy")
        alone.optim_step(adam())
    assert torch.equal(flat(alone), flat(a))
    assert not torch.equal(flat(a), flat(b))


def test_a_client_that_is_gone_takes_its_weights_and_moments_with_it(service: ServiceClient, datum):
    client = lora(service)
    client.forward_backward([datum(0)], "cross_entropy").result()
    state = weakref.ref(client._run.state)
    del client
    lora(service).forward([datum(0)], "cross_entropy").result()
    gc.collect()
    assert state() is None


def test_the_seed_decides_the_adapter_and_train_flags_its_layers(service: ServiceClient):
    names = {
        flag: set(lora(service, **{f: f == flag for f in flags}).apply(lambda s: dict(s.weights.named)).result())
        for flags in [("train_attn", "train_mlp", "train_unembed")]
        for flag in flags
    }
    assert {n.split(".")[-2] for n in names["train_attn"]} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert {n.split(".")[-2] for n in names["train_mlp"]} == {"gate_proj", "up_proj", "down_proj"}
    assert names["train_unembed"] == {"lm_head.lora_A", "lm_head.lora_B"}
    assert torch.equal(flat(lora(service)), flat(lora(service)))
    assert not torch.equal(flat(lora(service)), flat(lora(service, seed=2)))
    with pytest.raises(AssertionError):
        lora(service, train_attn=False, train_mlp=False, train_unembed=False)


def test_rank_0_trains_in_float32_beside_a_base_of_another_type(tmp_path, datum, adam, tokens):
    service = ServiceClient(root=tmp_path, device="cpu", dtype="bfloat16")
    client = lora(service, rank=0)
    client.forward_backward([datum(0)], "cross_entropy")
    client.optim_step(adam(1e-3)).result()
    prompt = tinker.ModelInput.from_ints(tokens(0, 9))
    trained = client.save_weights_and_get_sampling_client().compute_logprobs(prompt).result()
    path = client.save_weights_for_sampler("all").result().path
    assert service.create_sampling_client(model_path=path).compute_logprobs(prompt).result() == trained
    service.create_sampling_client(base_model="tiny").compute_logprobs(prompt).result()
    assert {dtype for _, dtype in service._engine.models} == {torch.float32, torch.bfloat16}


def test_rank_0_trains_every_weight_and_leaves_the_base_alone(service: ServiceClient, datum, adam, tokens):
    base = service.create_sampling_client(base_model="tiny")
    prompt = tinker.ModelInput.from_ints(tokens(0, 9))
    before = base.compute_logprobs(prompt).result()
    client = lora(service, rank=0)
    losses = []
    for _ in range(5):
        losses.append(client.forward_backward([datum(0)], "cross_entropy"))
        client.optim_step(adam(1e-3))
    assert losses[-1].result().metrics["loss:sum"] < 0.8 * losses[0].result().metrics["loss:sum"]
    assert base.compute_logprobs(prompt).result() == before
    path = client.save_state("all").result().path
    again = service.create_training_client_from_state_with_optimizer(path)
    assert torch.equal(flat(again), flat(client))
    # Its gradient equals the gradient that autograd computes for the model.
    model = client.apply(lambda s: {n: t.clone() for n, t in s.weights.named.items()}).result()
    from tinkerloop.local.nn.tiny_model import tiny_model

    reference = tiny_model()
    reference.load_state_dict(model)
    d = datum(3)
    ids, targets = torch.tensor([d.model_input.to_ints()]), d.loss_fn_inputs["target_tokens"].to_torch()
    lp = reference(input_ids=ids).logits.log_softmax(-1)[0].gather(1, targets[:, None])
    (-lp.sum()).backward()
    client.forward_backward([d], "cross_entropy")
    gradient = client.apply(lambda s: {n: t.clone() for n, t in s.weights.layout.views(s.gradient).items()}).result()
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(gradient[name], parameter.grad, rtol=1e-3, atol=1e-4)


# -- resuming -------------------------------------------------------------------------------------------------------


def train_steps(client: TrainingClient, datum, adam, steps) -> None:
    for step in steps:
        client.forward_backward([datum(step), datum(step + 100, 30)], "cross_entropy")
        client.optim_step(adam(1e-2, weight_decay=0.1, grad_clip_norm=5.0))


def test_continuing_from_a_checkpoint_is_bit_identical_and_weights_alone_are_not(service, datum, adam):
    unbroken = lora(service)
    train_steps(unbroken, datum, adam, range(6))
    client = lora(service)
    train_steps(client, datum, adam, range(3))
    path = client.save_state("half").result().path
    resumed = service.create_training_client_from_state_with_optimizer(path)
    fresh = service.create_training_client_from_state(path)
    assert torch.equal(flat(fresh), flat(resumed))
    for c in (client, resumed, fresh):
        train_steps(c, datum, adam, range(3, 6))
    assert torch.equal(flat(client), flat(unbroken))
    assert torch.equal(flat(resumed), flat(unbroken))
    assert not torch.equal(flat(fresh), flat(unbroken))


CONTINUE = """
import hashlib, sys, tinker, torch
torch.set_num_threads(1)
from tests.local.conftest import datum_of
from tinkerloop.local import ServiceClient
service = ServiceClient(root=sys.argv[1], device="cpu")
client = service.create_training_client_from_state_with_optimizer(sys.argv[2])
for step in range(3, 6):
    client.forward_backward([datum_of(step), datum_of(step + 100, 30)], "cross_entropy")
    client.optim_step(tinker.AdamParams(learning_rate=1e-2, weight_decay=0.1, grad_clip_norm=5.0))
flat = client.apply(lambda s: s.weights.flat.clone()).result()
print(hashlib.sha256(flat.numpy().tobytes()).hexdigest())
"""


def test_continuing_in_another_process_is_bit_identical(service, datum, adam, tmp_path):
    import hashlib

    client = lora(service)
    train_steps(client, datum, adam, range(3))
    path = client.save_state("half").result().path
    elsewhere = Process(CONTINUE, str(tmp_path), path, output=tmp_path / "output").finish()
    train_steps(client, datum, adam, range(3, 6))
    assert elsewhere.split()[-1] == hashlib.sha256(flat(client).numpy().tobytes()).hexdigest()


def test_overfitting_recites_greedily_from_the_saved_weights(service: ServiceClient, tokens, adam):
    client = lora(service, rank=16)
    text = client.get_tokenizer().encode("To be, or not to be, that is the question.<|im_end|>")
    datum = tinker.Datum(
        model_input=tinker.ModelInput.from_ints(text[:-1]),
        loss_fn_inputs={"target_tokens": text[1:], "weights": [1.0] * (len(text) - 1)},
    )
    for _ in range(40):
        client.forward_backward([datum], "cross_entropy")
        client.optim_step(adam(1e-2))
    sampler = service.create_sampling_client(client.save_weights_for_sampler("recite").result().path)
    params = tinker.SamplingParams(max_tokens=100, temperature=0)
    sequence = sampler.sample(tinker.ModelInput.from_ints(text[:6]), 1, params).result().sequences[0]
    assert (sequence.tokens, sequence.stop_reason) == (text[6:], "stop")


# -- apply ----------------------------------------------------------------------------------------------------------


def test_a_gradient_that_is_there_before_the_first_forward_backward_is_added_to(service: ServiceClient, datum):
    client = lora(service)
    client.forward_backward([datum(0)], "cross_entropy")
    computed = client.apply(lambda s: s.gradients["lm_head.lora_B"].clone())
    client.apply(lambda s: s.clear_gradient())
    client.apply(lambda s: s.gradients["lm_head.lora_B"].fill_(1.0))
    client.forward_backward([datum(0)], "cross_entropy")
    total = client.apply(lambda s: s.gradients["lm_head.lora_B"].clone())
    assert torch.equal(total.result(), computed.result() + 1)


def test_a_step_on_a_gradient_of_the_callers_own_does_not_warn_of_zeros(service: ServiceClient, adam, recwarn):
    client = lora(service)
    client.apply(lambda s: s.gradient.fill_(1.0))
    client.optim_step(adam()).result()
    assert not recwarn.list


def test_apply_reads_and_changes_the_state_in_queue_order(service: ServiceClient, datum, adam):
    client = lora(service)
    client.forward_backward([datum(0)], "cross_entropy")
    norms = client.apply(lambda s: {n: g.norm().item() for n, g in s.weights.layout.views(s.gradient).items()})
    client.apply(lambda s: s.gradient.zero_())
    before, metrics = flat(client), client.optim_step(adam())
    assert norms.result()["lm_head.lora_B"] > 0
    assert metrics.result().metrics["unclipped_grad_l2:mean"] == 0
    assert torch.equal(flat(client), before)

    base = client.forward([datum(0)], "cross_entropy").result().metrics["loss:sum"]
    client.apply(lambda s: s.weights.named["lm_head.lora_B"].fill_(0.1))
    assert client.forward([datum(0)], "cross_entropy").result().metrics["loss:sum"] != base

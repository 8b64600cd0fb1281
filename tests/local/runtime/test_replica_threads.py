"""Replicas: the work is divided evenly and completely, and the number of replicas does not change the results."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import tinker
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinkerloop.local import ServiceClient
from tinkerloop.local.runtime.packing import pack
from tinkerloop.local.runtime.replica_threads import deal_datums, replica_count, run_replicas


@contextmanager
def threads(count: int) -> Iterator[None]:
    """In this context, a new engine thread uses `count` torch threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@given(st.lists(st.floats(1, 1000), min_size=1, max_size=40), st.integers(1, 4))
def test_every_datum_is_dealt_once_and_no_replica_has_a_datum_too_many(costs, replicas):
    dealt = deal_datums(costs, replicas)
    assert sorted(index for share in dealt for index in share) == list(range(len(costs)))
    totals = [sum(costs[i] for i in share) for share in dealt]
    assert max(totals) - min(totals) <= max(costs) + 1e-6


@given(st.lists(st.integers(1, 1000), max_size=40), st.integers(1, 1500))
def test_packed_batches_hold_every_datum_once_within_the_budget_and_no_two_could_be_one(lengths, budget):
    groups = pack(lengths, budget)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    totals = [sum(lengths[i] for i in group) for group in groups]
    assert all(total <= budget or len(group) == 1 for total, group in zip(totals, groups, strict=True))
    assert sum(sorted(totals)[:2]) > budget or len(groups) < 2


def test_work_grows_with_positions_their_pairs_and_those_that_have_a_loss(client):
    run = client._run
    work = run.model.replicas[0].work
    assert work(200, 100) > 2 * work(100, 50)
    assert work(100, 60) > work(100, 50)


@pytest.mark.parametrize(
    ("lengths", "budget", "expected"),
    [
        ([400] * 8, 2048, 3),
        ([400] * 8, 1024, 2),
        ([700] * 2, 2048, 2),
        ([3000], 2048, 1),
        ([20] * 9, 2048, 1),
        ([129] * 2, 2048, 2),
    ],
)
def test_a_replica_needs_a_thread_a_datum_and_tokens_enough(lengths, budget, expected):
    with threads(3):
        assert replica_count(lengths, budget) == expected


def test_replicas_run_side_by_side_on_their_share_of_the_threads():
    together = threading.Barrier(2, timeout=30)
    with threads(4):
        assert run_replicas(2, 512, lambda replica: (together.wait() >= 0, torch.get_num_threads())) == [(True, 2)] * 2
        assert torch.get_num_threads() == 4


@pytest.mark.parametrize(("tokens", "used"), [(8, 1), (255, 1), (256, 2), (9999, 4)])
def test_few_tokens_are_computed_on_few_threads(tokens, used):
    with threads(4):
        assert run_replicas(1, tokens, lambda replica: torch.get_num_threads()) == [used]
        assert torch.get_num_threads() == 4


def test_a_replicas_error_comes_out_when_all_have_ended():
    ended = []

    def run(replica: int) -> None:
        if replica == 0:
            raise ValueError("replica 0")
        ended.append(replica)

    with threads(3), pytest.raises(ValueError, match="replica 0"):
        run_replicas(3, 384, run)
    assert sorted(ended) == [1, 2]


def trained(
    root, datum, adam, count: int, recompute: bool = False
) -> tuple[torch.Tensor, list[tinker.ForwardBackwardOutput]]:
    """Return an adapter after three steps with `count` threads, and the outputs of the forward and backward passes."""
    data = [datum(seed, 20 + 11 * seed) for seed in range(20)]
    with threads(count):
        service = ServiceClient(root=root, device="cpu", gradient_checkpointing=recompute)
        client = service.create_lora_training_client("tiny", rank=3)
        outputs = []
        for _ in range(3):
            outputs.append(client.forward_backward(data, "cross_entropy").result())
            client.optim_step(adam(1e-2)).result()
        outputs.append(client.forward(data, "cross_entropy").result())
        run = client._run
        assert len(run.model.replicas) == count
        service.close("success")
    return run.state.weights.flat, outputs


def test_the_number_of_replicas_does_not_show(tmp_path, datum, adam):
    (one, alone), (three, dealt) = (trained(tmp_path, datum, adam, count) for count in (1, 3))
    assert torch.equal(one, three)
    for a, b in zip(alone, dealt, strict=True):
        assert a.metrics == b.metrics
        for x, y in zip(a.loss_fn_outputs, b.loss_fn_outputs, strict=True):
            assert x["logprobs"].tolist() == y["logprobs"].tolist()


def test_replicas_recompute_their_own_activations(tmp_path, datum, adam):
    kept, _ = trained(tmp_path, datum, adam, 1)
    recomputed, _ = trained(tmp_path, datum, adam, 3, recompute=True)
    assert torch.equal(kept, recomputed)


def test_a_ratios_metrics_are_summed_over_replicas_whatever_their_sign(tmp_path, tokens):
    data = []
    for seed in range(12):
        ids = tokens(seed, 121)
        # the old log-probabilities are so low that the KL metric is negative
        old = {"logprobs": np.full(120, -50.0, np.float32), "advantages": np.ones(120, np.float32)}
        inputs = {"target_tokens": np.array(ids[1:]), **old}
        data.append(tinker.Datum(model_input=tinker.ModelInput.from_ints(ids[:-1]), loss_fn_inputs=inputs))
    found = []
    for count in (1, 2):
        with threads(count):
            service = ServiceClient(root=tmp_path, device="cpu")
            found.append(service.create_lora_training_client("tiny").forward(data, "ppo").result().metrics)
            service.close("success")
    assert found[0]["ppo_kl_div:mean"] < 0
    assert found[1] == pytest.approx(found[0], rel=1e-12)

"""Adapters are folded into the weights only if steps have enough tokens, and once for each step."""

from __future__ import annotations

import pytest
import torch

from tinkerloop.local import ServiceClient, TrainingClient
from tinkerloop.local.nn import model as model_module
from tinkerloop.local.nn.layers import head
from tinkerloop.local.nn.layers.lora import LoRALinear

FEW, MANY = 8, 200
"""Numbers of tokens below and above the number from which folding pays for the tiny model (42)."""


def layers(service: ServiceClient) -> list[LoRALinear]:
    (model,) = service._engine.models.values()
    return [layer for layer in model.layers.values() if isinstance(layer, LoRALinear)]


def step(client: TrainingClient, data, adam) -> None:
    client.forward_backward(data, "cross_entropy")
    client.optim_step(adam(1e-2)).result()


@pytest.mark.parametrize("tokens", [FEW, MANY])
def test_the_last_step_decides_whether_adapters_are_folded(service, client, datum, adam, tokens: int):
    step(client, [datum(0, tokens)], adam)
    client.forward([datum(1, MANY)], "cross_entropy").result()
    adapters = [layer.adapter for layer in layers(service)]
    assert {adapter is not None and adapter.folded is not None for adapter in adapters} == {tokens == MANY}


def test_the_requests_of_a_step_count_together(service, client, datum, adam):
    for i in range(6):
        client.forward_backward([datum(i, FEW)], "cross_entropy")
    step(client, [datum(6, FEW)], adam)
    client.forward([datum(7)], "cross_entropy").result()
    assert all(layer.adapter is not None and layer.adapter.folded is not None for layer in layers(service))


@pytest.mark.parametrize("tiled", [False, True])
def test_folding_changes_the_rounding_alone(tmp_path, datum, adam, monkeypatch, tiled: bool):
    if tiled:
        monkeypatch.setitem(head.CHUNK_ELEMENTS, "cpu", 40 * head.MIN_CHUNK)
        monkeypatch.setattr(head, "TILE", 50)
    found = []
    for fold in (False, True):
        monkeypatch.setattr(model_module, "worth_folding", lambda layers, tokens, fold=fold: fold)
        service = ServiceClient(root=tmp_path, device="cpu")
        client = service.create_lora_training_client("tiny", rank=8, seed=1)
        step(client, [datum(0, 30), datum(1, 5)], adam)
        output = client.forward_backward([datum(2, 30), datum(3, 5)], "cross_entropy").result()
        gradient = client.apply(lambda state: state.gradient.clone()).result()
        found.append((torch.cat([fields["logprobs"].to_torch() for fields in output.loss_fn_outputs]), gradient))
    (logprobs, gradient), (folded_logprobs, folded_gradient) = found
    torch.testing.assert_close(logprobs, folded_logprobs, rtol=0, atol=1e-5)
    torch.testing.assert_close(gradient, folded_gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max()))
    assert not torch.equal(gradient, folded_gradient)


def test_requests_with_the_same_weights_fold_them_once(service, client, datum, adam):
    step(client, [datum(0, MANY)], adam)
    client.forward_backward([datum(1)], "cross_entropy").result()
    writes = [layer.fold_buffer._version for layer in layers(service)]
    client.forward_backward([datum(2)], "cross_entropy").result()
    client.forward([datum(3)], "cross_entropy").result()
    assert [layer.fold_buffer._version for layer in layers(service)] == writes
    step(client, [datum(4)], adam)
    client.save_weights_and_get_sampling_client().compute_logprobs(datum(5).model_input).result()
    assert [layer.fold_buffer._version for layer in layers(service)] == [count + 1 for count in writes]


def test_a_resumed_run_rounds_like_an_uninterrupted_one(service, client, datum, adam):
    step(client, [datum(0, FEW)], adam)
    path = client.save_state("saved").result().path
    resumed = service.create_training_client_from_state_with_optimizer(path)
    gradients = []
    for one in (client, resumed):
        one.forward_backward([datum(1, FEW)], "cross_entropy").result()
        gradients.append(one.apply(lambda state: state.gradient.clone()).result())
    assert torch.equal(*gradients)

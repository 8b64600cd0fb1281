"""Computing the logits of a large vocabulary in tiles changes only the memory use, not the results."""

from __future__ import annotations

import numpy as np
import pytest
import tinker
import torch

from tests.local.tiny_models import write_model
from tinkerloop.local import ServiceClient
from tinkerloop.local.nn.layers import head
from tinkerloop.local.nn.layers.lora import LoRALinear


def passes(root, folder, rank: int, data, adam) -> tuple[list[np.ndarray], torch.Tensor, list[float | None]]:
    """Return log-probabilities, the gradient after one step, and a sampler's log-probabilities of a prompt."""
    service = ServiceClient(root=root, device="cpu")
    client = service.create_lora_training_client(str(folder), rank=rank)
    client.forward_backward(data, "cross_entropy")
    client.optim_step(adam(1e-3))
    output = client.forward_backward(data, "cross_entropy").result()
    gradient = client.apply(lambda state: state.gradient.clone()).result()
    sampler = client.save_weights_and_get_sampling_client().result()
    scored = sampler.compute_logprobs(data[0].model_input).result()
    service.close("success")
    return [fields["logprobs"].to_numpy() for fields in output.loss_fn_outputs], gradient, scored


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("architecture", ["qwen3", "gemma2"])
def test_tiles_give_what_whole_logits_give(tmp_path, datum, adam, monkeypatch, architecture: str, rank: int):
    folder = write_model(architecture, tmp_path / "base")
    data = [datum(0, 40), datum(1, 9, [0.0, -1.0, 2.0] * 3)]
    whole, expected, scored = passes(tmp_path, folder, rank, data, adam)
    monkeypatch.setitem(head.CHUNK_ELEMENTS, "cpu", 40 * head.MIN_CHUNK)
    monkeypatch.setattr(head, "TILE", 50)  # 6 tiles, the last one smaller
    tiled, gradient, scored_tiled = passes(tmp_path, folder, rank, data, adam)
    for a, b in zip(whole, tiled, strict=True):
        np.testing.assert_allclose(b, a, atol=2e-5)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))
    np.testing.assert_allclose(scored_tiled[1:], scored[1:], atol=2e-5)


def test_targets_in_several_tiles_and_twice_in_one(tmp_path, tokens, adam, monkeypatch):
    ids = np.array(tokens(3, 12))
    targets = np.stack([ids, ids, (ids + 100) % 256], axis=1)
    weights = np.tile(np.array([0.5, 0.25, -1.0], np.float32), (12, 1))
    inputs = {"target_tokens": targets, "weights": weights}
    data = [tinker.Datum(model_input=tinker.ModelInput.from_ints(tokens(4, 12)), loss_fn_inputs=inputs)]
    whole, expected, _ = passes(tmp_path, "tiny", 4, data, adam)
    monkeypatch.setitem(head.CHUNK_ELEMENTS, "cpu", 40 * head.MIN_CHUNK)
    monkeypatch.setattr(head, "TILE", 50)
    tiled, gradient, _ = passes(tmp_path, "tiny", 4, data, adam)
    np.testing.assert_allclose(tiled[0], whole[0], atol=2e-5)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


def test_a_probability_too_small_for_float32_has_its_logarithm():
    layer = LoRALinear.wrap(torch.nn.Linear(6, 6, bias=False).requires_grad_(False))
    layer.weight.data = torch.diag(torch.tensor([0.0, -50.0, -79.0, -86.0, -95.0, -300.0]))
    x, target = torch.ones(6, 6), torch.arange(6)[:, None]
    output = head.Head(layer)
    found = output.logprobs_and_gradient(x, target, torch.arange(6), [6], lambda lp, at: torch.ones_like(lp), None)
    expected = torch.nn.functional.linear(x.double(), layer.weight.double()).log_softmax(1).gather(1, target)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)

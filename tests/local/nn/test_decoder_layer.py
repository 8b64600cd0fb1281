"""The engine's decoder layer gives the results and gradients of the transformers layers that it replaces."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.local.tiny_models import write_model
from tinkerloop.local import ServiceClient
from tinkerloop.local.nn.layers import decoder_layer as decoder

ARCHITECTURES = ["llama", "mistral", "qwen2", "qwen3"]


def passes(root: Path, folder: Path, data, adam, **options) -> tuple[list[torch.Tensor], torch.Tensor, bool]:
    """Return log-probabilities and the gradient after one step, and True if the engine's layer was used."""
    skip = options.pop("skip")
    service = ServiceClient(root=root, device="cpu", skip_zero_weight=skip)
    client = service.create_lora_training_client(str(folder), **options)
    client.forward_backward(data, "cross_entropy")
    client.optim_step(adam(1e-2))
    output = client.forward_backward(data, "cross_entropy").result()
    gradient = client.apply(lambda state: state.gradient.clone()).result()
    (model,) = service._engine.models.values()
    service.close("success")
    ours = any(isinstance(part, decoder.DecoderLayer) for part in model.module.modules())
    return [fields["logprobs"].to_torch() for fields in output.loss_fn_outputs], gradient, ours


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    "options",
    [
        {"rank": 4, "skip": False},
        {"rank": 4, "skip": True},
        {"rank": 4, "skip": True, "train_attn": False},
        {"rank": 4, "skip": True, "train_mlp": False},
        {"rank": 0, "skip": False},
    ],
    ids=str,
)
def test_it_is_the_models_own_layer(tmp_path, datum, adam, monkeypatch, architecture, options):
    folder = write_model(architecture, tmp_path / "model")
    data = [datum(0, 150, [0.0] * 60 + [1.0] * 20 + [0.0] * 30 + [0.5] * 40), datum(1, 9, [1.0, 0.0, 0.0] * 3)]
    found, gradient, ours = passes(tmp_path / "ours", folder, data, adam, **options)
    monkeypatch.setattr(decoder, "LAYERS", ())
    expected, their_gradient, theirs = passes(tmp_path / "theirs", folder, data, adam, **options)
    assert (ours, theirs) == (True, False)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    largest = float(their_gradient.abs().max())
    torch.testing.assert_close(gradient, their_gradient, rtol=1e-3, atol=1e-4 * largest)


def test_recomputing_gives_the_same_bits(tmp_path, datum, adam):
    folder = write_model("qwen3", tmp_path / "model")
    gradients = []
    for recompute in (False, True):
        service = ServiceClient(root=tmp_path, device="cpu", gradient_checkpointing=recompute)
        client = service.create_lora_training_client(str(folder), rank=4)
        client.forward_backward([datum(0, 50), datum(1, 20)], "cross_entropy").result()
        gradients.append(client.apply(lambda state: state.gradient.clone()).result())
    assert gradients[0].any()
    assert torch.equal(*gradients)

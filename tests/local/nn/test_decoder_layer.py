"""The engine's decoder layer gives the results and gradients of the transformers layers that it replaces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.local.tiny_models import write_model
from tinkerloop.local import ServiceClient
from tinkerloop.local.nn.inputs import Input, PackedBatch
from tinkerloop.local.nn.layers import decoder_layer as decoder
from tinkerloop.local.nn.layers import precision
from tinkerloop.local.nn.layers.gradient_checkpointing import saved_bytes

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


@pytest.mark.parametrize("fast", [False, True])
def test_in_bfloat16_it_is_float32_to_the_rounding_and_keeps_less(tmp_path, datum, monkeypatch, fast: bool):
    """`fast` is True where products are computed in bfloat16, and False where in float32 from bfloat16 tensors."""
    monkeypatch.setattr(precision, "_is_fast", lambda dtype: fast or dtype == torch.float32)
    folder = write_model("qwen3", tmp_path / "model")
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).float().save_pretrained(folder)  # rounded
    data = [datum(0, 150, [0.0] * 60 + [1.0] * 20 + [0.0] * 30 + [0.5] * 40), datum(1, 9, [1.0, 0.0, 0.0] * 3)]
    gradients, kept = [], []
    for dtype in ("float32", "bfloat16"):
        service = ServiceClient(root=tmp_path / dtype, device="cpu", dtype=dtype, skip_zero_weight=True)
        client = service.create_lora_training_client(str(folder), rank=4)
        client.apply(lambda state: state.weights.flat.add_(torch.linspace(-0.1, 0.1, len(state.weights.flat))))
        client.forward_backward(data, "cross_entropy")
        gradients.append(client.apply(lambda state: state.gradient.clone()).result())
        (model,) = service._engine.models.values()
        assert any(isinstance(part, decoder.DecoderLayer) for part in model.module.modules())
        kept.append(saved_bytes(lambda model=model: model.hidden(batch_of(128))))
    expected, found = gradients
    assert float((found - expected).norm() / expected.norm()) < 0.03
    assert kept[1] < 0.75 * kept[0]  # attention keeps float32 tensors


def batch_of(length: int) -> PackedBatch:
    return PackedBatch.of([Input(np.arange(length) % 256)], torch.device("cpu"))

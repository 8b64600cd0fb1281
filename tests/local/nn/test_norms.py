"""The engine's norm layers give the results and gradients of the norm layers that they replace."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from tests.local.tiny_models import CONFIGS, write_model
from tinkerloop.local.nn.layers import norms


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_gradients_are_those_of_the_formula(offset):
    generator = torch.Generator().manual_seed(0)
    x, weight, grad = (torch.randn(shape, generator=generator) for shape in ((2, 5, 8), (8,), (2, 5, 8)))
    eps, leaf, parameter = 0.1, x.clone().requires_grad_(), nn.Parameter(weight)
    found = torch.autograd.grad(norms.RMSNorm(parameter, eps, offset)(leaf), (leaf, parameter), grad)
    wide, wide_weight = x.double().requires_grad_(), weight.double().requires_grad_()
    formula = wide / (wide.square().mean(-1, keepdim=True) + eps).sqrt() * (offset + wide_weight)
    expected = torch.autograd.grad(formula, (wide, wide_weight), grad.double())
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_model_keeps_its_names_and_numbers(tmp_path, architecture):
    model = AutoModelForCausalLM.from_pretrained(write_model(architecture, tmp_path), dtype=torch.float32).eval()
    ids, names = torch.arange(1, 9)[None], list(model.state_dict())
    with torch.no_grad():
        expected = model(ids).logits
        norms.use_own_norms(model)
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-5)
    assert list(model.state_dict()) == names
    assert any(isinstance(part, norms.RMSNorm) for part in model.modules()) == (architecture != "gpt2")  # LayerNorm


class HalfRMSNorm(nn.Module):
    """A module that is not an RMSNorm, although its class name says so."""

    def __init__(self):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.rand(4)), 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.rms_norm(x, (4,), self.weight, self.eps) / 2


def test_in_bfloat16_the_gradient_is_that_of_float32_rounded_once():
    generator = torch.Generator().manual_seed(0)
    x, weight, grad = (torch.randn(shape, generator=generator).bfloat16() for shape in ((2, 5, 8), (8,), (2, 5, 8)))
    found, expected = (
        torch.autograd.grad(
            norms.RMSNorm(nn.Parameter(weight.to(dtype)), 0.1, 0.0)(leaf := x.to(dtype, copy=True).requires_grad_()),
            leaf,
            grad.to(dtype),
        )[0]
        for dtype in (torch.bfloat16, torch.float32)
    )
    assert torch.equal(found, expected.bfloat16())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: CUDA_VISIBLE_DEVICES=0")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_a_model_keeps_its_numbers(tmp_path, dtype):
    folder = write_model("qwen3", tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to("cuda").eval()
    ids = torch.arange(1, 9, device="cuda")[None]
    with torch.no_grad():
        expected = model(ids).logits
        norms.use_own_norms(model)
        tolerance = 1e-4 if dtype == torch.float32 else 0.05
        torch.testing.assert_close(model(ids).logits, expected, rtol=tolerance, atol=tolerance)
    assert sum(isinstance(part, norms.RMSNorm) for part in model.modules()) == 9


@pytest.mark.parametrize("part", [HalfRMSNorm(), nn.RMSNorm(4, 1e-6, dtype=torch.float16)])
def test_what_gives_other_numbers_or_has_another_type_is_left(part):
    model = nn.Sequential(part)
    norms.use_own_norms(model)
    assert model[0] is part

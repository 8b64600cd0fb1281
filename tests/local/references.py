"""Reference losses in float64, with gradients that autograd computes through the whole model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tinker
import torch
from torch.func import functional_call

from tinkerloop.local.nn.layers.lora import ALPHA
from tinkerloop.local.nn.tiny_model import tiny_model


def policy_datum(tokens, seed: int, length: int, q: np.ndarray, loss_fn: str) -> tinker.Datum:
    ids = tokens(seed, length + 1)
    random = np.random.default_rng(seed)
    inputs = {
        "target_tokens": np.array(ids[1:]),
        "logprobs": q.astype(np.float32),
        "advantages": random.normal(size=length).astype(np.float32),
    }
    if loss_fn == "gspo":
        inputs["sequence_ratio_mask"] = (random.random(length) < 0.7).astype(np.float32)
    return tinker.Datum(model_input=tinker.ModelInput.from_ints(ids[:-1]), loss_fn_inputs=inputs)


def reference_loss(loss_fn: str, config: dict[str, float], lp: torch.Tensor, datum: tinker.Datum) -> torch.Tensor:
    """Return the loss of one datum, computed in float64 directly from the definition of the loss."""
    inputs = {name: torch.from_numpy(t.to_numpy()).double() for name, t in datum.loss_fn_inputs.items()}
    if loss_fn == "cross_entropy":
        return -(lp * inputs["weights"]).sum()
    q, advantage = inputs["logprobs"], inputs["advantages"]
    ratio = torch.exp(lp - q)
    low, high = config.get("clip_low_threshold"), config.get("clip_high_threshold")
    if loss_fn == "importance_sampling":
        return -(ratio * advantage).sum()
    if loss_fn == "ppo":
        return -torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage).sum()
    if loss_fn == "cispo":
        return -(ratio.clamp(low, high).detach() * lp * advantage).sum()
    if loss_fn == "dro":
        return -(lp * advantage - config["beta"] / 2 * (lp - q) ** 2).sum()
    mask = inputs["sequence_ratio_mask"] != 0
    s = torch.exp((lp.detach() - q)[mask].mean())
    r = s * torch.exp(lp - lp.detach())
    return -torch.minimum(r * advantage, r.clamp(low, high) * advantage).sum()


def reference_elements(
    loss_fn: str, config: Mapping[str, float], lp: list[float], q: list[float], advantages: list[float]
) -> tuple[list[float], list[float]]:
    """Return the loss and dL/dlp of each position of one datum, case by case in Python's float64.

    For gspo, every position is in the sequence's ratio.
    """
    losses, gradients = [], []
    mean = sum(p - s for p, s in zip(lp, q, strict=True)) / len(lp)
    for p, s, a in zip(lp, q, advantages, strict=True):
        log_ratio = mean if loss_fn == "gspo" else p - s
        ratio = math.exp(log_ratio) if log_ratio < 700 else math.inf
        low, high = config.get("clip_low_threshold", 0.0), config.get("clip_high_threshold", math.inf)
        clipped = min(max(ratio, low), high)
        if a == 0:
            losses.append(0.0)
            gradients.append(0.0)
        elif loss_fn == "cispo":
            losses.append(-clipped * p * a)
            gradients.append(-clipped * a)
        else:
            takes_bound = loss_fn != "importance_sampling" and clipped * a < ratio * a
            losses.append(-(clipped if takes_bound else ratio) * a)
            gradients.append(0.0 if takes_bound else -ratio * a)
    return losses, gradients


def reference_gradient(
    adapter: Mapping[str, torch.Tensor],
    loss: Callable[[torch.Tensor, tinker.Datum], torch.Tensor],
    data: Sequence[tinker.Datum],
) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the summed loss of the tiny model with this adapter, and the gradient of each tensor of the adapter."""
    model = tiny_model().double()
    leaves = {name: tensor.double().requires_grad_() for name, tensor in adapter.items()}
    weights = dict(model.named_parameters())
    for name in {name.rsplit(".", 1)[0] for name in leaves}:
        a, b = leaves[f"{name}.lora_A"], leaves[f"{name}.lora_B"]
        weights[f"{name}.weight"] = weights[f"{name}.weight"].detach() + ALPHA / len(a) * (b @ a)
    total = torch.zeros((), dtype=torch.float64)
    for datum in data:
        ids = torch.tensor([datum.model_input.to_ints()])
        targets = datum.loss_fn_inputs["target_tokens"].to_torch()
        lp = functional_call(model, weights, kwargs={"input_ids": ids}).logits[0].log_softmax(-1)
        found = lp.gather(1, targets if targets.ndim == 2 else targets[:, None])
        total = total + loss(found if targets.ndim == 2 else found[:, 0], datum)
    total.backward()
    return float(total.detach()), {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}

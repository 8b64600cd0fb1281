"""One forward or forward_backward request: micro-batches through the model, losses, outputs in the request's order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tinker
import torch

from tinkerloop.local.futures import user_error
from tinkerloop.local.inputs import Batch, Example, Targets, micro_batches
from tinkerloop.local.losses import Loss, ppo_metrics
from tinkerloop.local.model import Model

SKIPPED = 0.0
"""The log-probability reported for a position that was skipped because its weight is 0, or that predicts no text."""


@dataclass(frozen=True)
class Pass:
    """What to compute: the loss, whether to go backward, and how to cut the work."""

    name: str
    loss: Loss
    config: Mapping[str, float]
    backward: bool
    token_budget: int
    skip_zero_weight: bool


def run_pass(model: Model, examples: Sequence[Example], work: Pass) -> tinker.ForwardBackwardOutput:
    """Execute `work` over `examples` with whatever weights are bound; gradients go to the bound buffers.

    Raises tinker.RequestFailedError if a log-probability or the loss is not finite.
    """
    logprobs: list[torch.Tensor] = []  # one (N, K) per example, in the request's order
    losses: list[torch.Tensor] = []
    sums: dict[str, float] = {}
    budget = work.token_budget if model.packs else 1  # at least one datum at a time, then exactly one
    for group in micro_batches([len(example) for example in examples], budget):
        members = [examples[i] for i in group]
        batch = Batch.of([example.input for example in members], model.device)
        targets = Targets.of(members, model.device)
        lp = _micro_batch(model, batch, targets, work)
        inputs = _with_segments(targets.inputs, batch, work.loss)
        loss = work.loss.elementwise(lp, inputs, work.config)
        if work.name == "ppo":
            for name, value in ppo_metrics(lp, inputs, work.config).items():
                sums[name] = sums.get(name, 0.0) + value
        logprobs.extend(lp.cpu().split(batch.lengths))
        losses.extend(loss.cpu().split(batch.lengths))

    # Summed datum by datum in float64, so that the total does not depend on the grouping.
    total = math.fsum(float(loss.sum(dtype=torch.float64)) for loss in losses)
    if not math.isfinite(total):
        bad = next(i for i, loss in enumerate(losses) if not torch.isfinite(loss).all())
        raise user_error(f"NonFiniteInTensor: the {work.name} loss of datum {bad} is not finite")
    positions = sum(len(example) for example in examples)
    metrics = {"loss:sum": total, **{name: value / positions for name, value in sums.items()}}
    outputs = []
    for example, lp, loss in zip(examples, logprobs, losses, strict=True):
        if example.input.pictures:
            lp = lp.masked_fill(torch.from_numpy(example.predicts_picture)[:, None], SKIPPED)
        fields = {"logprobs": _tensor_data(lp, example)}
        if work.name == "cross_entropy":
            fields["elementwise_loss"] = _tensor_data(loss, example)
        outputs.append(fields)
    return tinker.ForwardBackwardOutput(loss_fn_output_type="TorchLossReturn", loss_fn_outputs=outputs, metrics=metrics)


def _micro_batch(model: Model, batch: Batch, targets: Targets, work: Pass) -> torch.Tensor:
    """The log-probabilities (T, K) of a micro-batch; its gradients are added to the bound buffers."""
    inputs = _with_segments(targets.inputs, batch, work.loss)
    driver = work.loss.driver
    if driver is None:
        active = torch.ones(len(targets.targets), dtype=torch.bool, device=model.device)
    else:
        active = (inputs[driver] != 0).any(1)
    active_rows, idle_rows = active.nonzero().flatten(), (~active).nonzero().flatten()
    if work.skip_zero_weight and work.name == "cross_entropy":
        idle_rows = idle_rows[:0]
    lp = torch.full(targets.targets.shape, SKIPPED, device=model.device)
    backward = work.backward and len(active_rows) > 0
    with torch.set_grad_enabled(backward):
        hidden = model.hidden(batch)
    h = hidden.detach()
    with torch.no_grad():
        if len(idle_rows):
            lp[idle_rows] = model.head.logprobs(h, targets.targets, idle_rows)
        if not backward or work.loss.whole_datum:
            lp[active_rows] = model.head.logprobs(h, targets.targets, active_rows)
        if not backward:
            return lp
        if work.loss.whole_datum:
            gradient = _loss_gradient(lp, inputs, work)

            def gradient_of(found: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
                return gradient[rows]

        else:

            def gradient_of(found: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
                return _loss_gradient(found, {name: values[rows] for name, values in inputs.items()}, work)

        counts = [int(part.sum()) for part in active.split(batch.lengths)]
        grad_hidden = torch.zeros_like(h) if hidden.requires_grad else None
        lp[active_rows] = model.head.logprobs_and_gradient(
            h, targets.targets, active_rows, counts, gradient_of, grad_hidden
        )
    if grad_hidden is not None:
        hidden.backward(grad_hidden)
    return lp


def _loss_gradient(lp: torch.Tensor, inputs: Mapping[str, torch.Tensor], work: Pass) -> torch.Tensor:
    """dL/dlp, by autograd on the loss's definition."""
    with torch.enable_grad():
        leaf = lp.detach().requires_grad_()
        return torch.autograd.grad(work.loss.elementwise(leaf, inputs, work.config).sum(), leaf)[0]


def _with_segments(inputs: Mapping[str, torch.Tensor], batch: Batch, loss: Loss) -> dict[str, torch.Tensor]:
    if not loss.whole_datum:
        return dict(inputs)
    segment = torch.arange(len(batch.lengths)).repeat_interleave(torch.tensor(batch.lengths))
    return {**inputs, "segment": segment.to(batch.tokens.device)}


def _tensor_data(values: torch.Tensor, example: Example) -> tinker.TensorData:
    array = values.numpy()
    array = array[:, 0] if example.targets.ndim == 1 else array[:, : example.targets.shape[1]]
    return tinker.TensorData.from_numpy(np.ascontiguousarray(array, dtype=np.float32))

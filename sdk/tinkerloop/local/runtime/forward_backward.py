"""One forward or forward_backward request: micro-batches through the model, losses, outputs in the request's order."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import tinker
import torch
from torch.nn import functional as F

from tinkerloop.local.nn.inputs import PackedBatch
from tinkerloop.local.nn.losses import Loss, ppo_metrics
from tinkerloop.local.nn.model import Model
from tinkerloop.local.nn.replica import Replica
from tinkerloop.local.request_errors import user_error
from tinkerloop.local.runtime.packing import pack
from tinkerloop.local.runtime.replica_threads import deal_datums, run_replicas
from tinkerloop.local.runtime.request_reading import DatumArrays, Targets

SKIPPED = 0.0
"""The log-probability reported for a position that was skipped because its weight is 0, or that predicts no text."""


@dataclass(frozen=True)
class ForwardBackward:
    """What to compute: the loss, whether to go backward, and how to cut the work."""

    name: str
    loss: Loss
    config: Mapping[str, float]
    backward: bool
    token_budget: int
    skip_zero_weight: bool

    @property
    def skips(self) -> bool:
        """Whether positions without a loss are left out."""
        return self.skip_zero_weight and self.name == "cross_entropy"


@dataclass
class DatumResults:
    """What a pass found for each datum, by its place in the request, and sums over positions for metrics."""

    logprobs: dict[int, torch.Tensor] = field(default_factory=dict)  # (N, K)
    losses: dict[int, torch.Tensor] = field(default_factory=dict)  # (N, K)
    sums: Counter[str] = field(default_factory=Counter)


def run_forward_backward(
    model: Model, datums: Sequence[DatumArrays], work: ForwardBackward, lanes: int = 1
) -> tinker.ForwardBackwardOutput:
    """Execute `work` over `datums` with whatever weights are bound; gradients go to the bound buffers.

    Raises tinker.RequestFailedError if a log-probability or the loss is not finite.
    """
    asked = datums
    if work.skips and work.loss.driver is not None:
        datums = [datum.until_last(work.loss.driver) for datum in asked]
    lengths = [len(datum) for datum in datums]
    asking = [int(_active([datum], work.loss).sum()) for datum in datums] if work.skips else lengths
    shares = deal_datums([model.replicas[0].work(n, m) for n, m in zip(lengths, asking, strict=True)], lanes)
    budget = work.token_budget // lanes if model.packs else 1  # at least one datum at a time, then exactly one

    groups = [[[share[i] for i in g] for g in pack([lengths[i] for i in share], budget)] for share in shares]
    if work.backward:
        largest = [max(lane, key=lambda group: sum(lengths[i] for i in group)) for lane in groups]
        model.choose_gradient_checkpointing([lengths[i] for group in largest for i in group])

    def run(lane: int) -> DatumResults:
        scores = DatumResults()
        for group in groups[lane]:
            _score(model.replicas[lane], {i: datums[i] for i in group}, work, scores)
        return scores

    scores = DatumResults()
    for part in run_replicas(lanes, run):
        scores.logprobs |= part.logprobs
        scores.losses |= part.losses
        scores.sums.update(part.sums)  # adds
    losses = [scores.losses[i] for i in range(len(datums))]

    # Summed datum by datum in float64, so that the total does not depend on the grouping.
    total = math.fsum(float(loss.sum(dtype=torch.float64)) for loss in losses)
    if not math.isfinite(total):
        bad = next(i for i, loss in enumerate(losses) if not torch.isfinite(loss).all())
        raise user_error(f"NonFiniteInTensor: the {work.name} loss of datum {bad} is not finite")
    metrics = {"loss:sum": total, **{name: value / sum(lengths) for name, value in scores.sums.items()}}
    outputs = []
    for i, (datum, loss) in enumerate(zip(asked, losses, strict=True)):
        left_out = (0, 0, 0, len(datum) - len(loss))
        lp, loss = F.pad(scores.logprobs[i], left_out, value=SKIPPED), F.pad(loss, left_out)
        if datum.input.images:
            lp = lp.masked_fill(torch.from_numpy(datum.predicts_image)[:, None], SKIPPED)
        fields = {"logprobs": _tensor_data(lp, datum)}
        if work.name == "cross_entropy":
            fields["elementwise_loss"] = _tensor_data(loss, datum)
        outputs.append(fields)
    return tinker.ForwardBackwardOutput(loss_fn_output_type="TorchLossReturn", loss_fn_outputs=outputs, metrics=metrics)


def _score(replica: Replica, datums: Mapping[int, DatumArrays], work: ForwardBackward, scores: DatumResults) -> None:
    """One micro-batch: what is found goes into `scores`, gradients to the bound buffers."""
    members, device = list(datums.values()), replica.head.layer.weight.device
    batch = PackedBatch.of([datum.input for datum in members], device)
    targets = Targets.of(members, device)
    inputs = _with_segments(targets.inputs, batch, work.loss)
    active = _active(members, work.loss)
    if work.skips and not active.any():
        lp = torch.full(targets.targets.shape, SKIPPED, device=device)
    else:
        with replica.only(active if work.skips else None):
            lp = _micro_batch(replica, batch, targets.targets, inputs, active, work)
    loss = work.loss.elementwise(lp, inputs, work.config)
    if work.name == "ppo":
        scores.sums.update(ppo_metrics(lp, inputs, work.config))
    scores.logprobs.update(zip(datums, lp.cpu().split(batch.lengths), strict=True))
    scores.losses.update(zip(datums, loss.cpu().split(batch.lengths), strict=True))


def _active(datums: Sequence[DatumArrays], loss: Loss) -> torch.Tensor:
    """Where the loss depends on the log-probabilities, (T,), on the CPU."""
    if loss.driver is None:
        return torch.ones(sum(map(len, datums)), dtype=torch.bool)
    return torch.from_numpy(np.concatenate([datum.driven(loss.driver) for datum in datums]))


def _micro_batch(
    replica: Replica,
    batch: PackedBatch,
    targets: torch.Tensor,
    inputs: Mapping[str, torch.Tensor],
    active: torch.Tensor,
    work: ForwardBackward,
) -> torch.Tensor:
    """The log-probabilities of targets (T, K), only where `active` if `work` skips; gradients go to the buffers."""
    active_rows, idle_rows = (where.nonzero().flatten().to(targets.device) for where in (active, ~active))
    lp = torch.full(targets.shape, SKIPPED, device=targets.device)
    backward = work.backward and len(active_rows) > 0
    with torch.set_grad_enabled(backward):
        hidden = replica.hidden(batch)
    h = hidden.detach()
    with torch.no_grad():
        if len(idle_rows) and not work.skips:
            lp[idle_rows] = replica.head.logprobs(h, targets, idle_rows)
        if not backward or work.loss.whole_datum:
            lp[active_rows] = replica.head.logprobs(h, targets, active_rows)
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
        lp[active_rows] = replica.head.logprobs_and_gradient(h, targets, active_rows, counts, gradient_of, grad_hidden)
    if grad_hidden is not None:
        hidden.backward(grad_hidden)
    return lp


def _loss_gradient(lp: torch.Tensor, inputs: Mapping[str, torch.Tensor], work: ForwardBackward) -> torch.Tensor:
    """dL/dlp, by autograd on the loss's definition."""
    with torch.enable_grad():
        leaf = lp.detach().requires_grad_()
        return torch.autograd.grad(work.loss.elementwise(leaf, inputs, work.config).sum(), leaf)[0]


def _with_segments(inputs: Mapping[str, torch.Tensor], batch: PackedBatch, loss: Loss) -> dict[str, torch.Tensor]:
    if not loss.whole_datum:
        return dict(inputs)
    segment = torch.arange(len(batch.lengths)).repeat_interleave(torch.tensor(batch.lengths))
    return {**inputs, "segment": segment.to(batch.tokens.device)}


def _tensor_data(values: torch.Tensor, datum: DatumArrays) -> tinker.TensorData:
    array = values.numpy()
    array = array[:, 0] if datum.targets.ndim == 1 else array[:, : datum.targets.shape[1]]
    return tinker.TensorData.from_numpy(np.ascontiguousarray(array, dtype=np.float32))

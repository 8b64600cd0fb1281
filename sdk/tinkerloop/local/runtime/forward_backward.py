"""Execution of one forward or forward_backward request.

The datums run through the model in packed batches. The outputs are returned in the order of the datums.
"""

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
"""Log-probability reported for a position that was not computed (its weight is 0) or whose target is in an image."""


@dataclass(frozen=True)
class ForwardBackward:
    """Options of one forward or forward_backward request: the loss, whether to run backward, and the token budget."""

    name: str
    loss: Loss
    config: Mapping[str, float]
    backward: bool
    token_budget: int
    skip_zero_weight: bool

    @property
    def skips(self) -> bool:
        """True if the log-probabilities of positions with weight 0 are not computed."""
        return self.skip_zero_weight and self.name == "cross_entropy"


@dataclass
class DatumResults:
    """Results of the datums of a request, by datum index, and sums over positions from which metrics are computed."""

    logprobs: dict[int, torch.Tensor] = field(default_factory=dict)  # (N, K)
    losses: dict[int, torch.Tensor] = field(default_factory=dict)  # (N, K)
    sums: Counter[str] = field(default_factory=Counter)


def run_forward_backward(
    model: Model, datums: Sequence[DatumArrays], work: ForwardBackward, replicas: int = 1
) -> tinker.ForwardBackwardOutput:
    """Execute `work` on `datums` and return the outputs in the order of `datums`.

    The weights and the gradient buffers are those that `model.bind` has attached.

    Raises:
        tinker.RequestFailedError: (category user) the loss of a datum is NaN or infinite.
    """
    given = datums
    if work.skips and work.loss.driver is not None:
        datums = [datum.until_last(work.loss.driver) for datum in given]
    lengths = [len(datum) for datum in datums]
    wanted = [int(_active([datum], work.loss).sum()) for datum in datums] if work.skips else lengths
    shares = deal_datums([model.replicas[0].work(n, m) for n, m in zip(lengths, wanted, strict=True)], replicas)
    budget = work.token_budget // replicas if model.packs else 1  # With budget 1 each datum runs alone.

    batches = [[[share[i] for i in b] for b in pack([lengths[i] for i in share], budget)] for share in shares]
    if work.backward:
        largest = [max(share, key=lambda batch: sum(lengths[i] for i in batch)) for share in batches]
        model.choose_gradient_checkpointing([lengths[i] for batch in largest for i in batch])

    def run(replica: int) -> DatumResults:
        results = DatumResults()
        for batch in batches[replica]:
            _run_batch(model.replicas[replica], {i: datums[i] for i in batch}, work, results)
        return results

    results = DatumResults()
    for part in run_replicas(replicas, sum(lengths), run):
        results.logprobs |= part.logprobs
        results.losses |= part.losses
        results.sums.update(part.sums)  # Counter.update adds.
    losses = [results.losses[i] for i in range(len(datums))]

    # Sum each datum's losses in float64, then the datums, so that the total does not depend on the packing.
    sums = [float(loss.sum(dtype=torch.float64)) for loss in losses]
    for i, datum_loss in enumerate(sums):
        if not math.isfinite(datum_loss):
            raise user_error(
                f"NonFiniteInTensor: the {work.name} loss of datum {i} is NaN or infinite; check its loss inputs"
            )
    total = math.fsum(sums)
    metrics = {"loss:sum": total, **{name: value / sum(lengths) for name, value in results.sums.items()}}
    outputs = []
    for i, (datum, loss) in enumerate(zip(given, losses, strict=True)):
        padding = (0, 0, 0, len(datum) - len(loss))  # `until_last` cut the positions after the last weight.
        lp, loss = F.pad(results.logprobs[i], padding, value=SKIPPED), F.pad(loss, padding)
        if datum.input.images:
            lp = lp.masked_fill(torch.from_numpy(datum.predicts_image)[:, None], SKIPPED)
        fields = {"logprobs": _tensor_data(lp, datum)}
        if work.name == "cross_entropy":
            fields["elementwise_loss"] = _tensor_data(loss, datum)
        outputs.append(fields)
    return tinker.ForwardBackwardOutput(loss_fn_output_type="TorchLossReturn", loss_fn_outputs=outputs, metrics=metrics)


def _run_batch(
    replica: Replica, datums: Mapping[int, DatumArrays], work: ForwardBackward, results: DatumResults
) -> None:
    """Run one packed batch on `replica`. Add its log-probabilities, losses and metric sums to `results`.

    Gradients are added to the buffers attached to the replica.
    """
    members, device = list(datums.values()), replica.head.layer.weight.device
    batch = PackedBatch.of([datum.input for datum in members], device)
    targets = Targets.of(members, device)
    inputs = _with_segments(targets.inputs, batch, work.loss)
    active = _active(members, work.loss)
    if work.skips and not active.any():
        lp = torch.full(targets.targets.shape, SKIPPED, device=device)
    else:
        with replica.restrict_to(active if work.skips else None):
            lp = _logprobs(replica, batch, targets.targets, inputs, active, work)
    loss = work.loss.elementwise(lp, inputs, work.config)
    if work.name == "ppo":
        results.sums.update(ppo_metrics(lp, inputs, work.config))
    results.logprobs.update(zip(datums, lp.cpu().split(batch.lengths), strict=True))
    results.losses.update(zip(datums, loss.cpu().split(batch.lengths), strict=True))


def _active(datums: Sequence[DatumArrays], loss: Loss) -> torch.Tensor:
    """Return a mask (T,) on the CPU, True where the loss depends on the log-probability.

    T is the total number of positions of the datums.
    """
    if loss.driver is None:
        return torch.ones(sum(map(len, datums)), dtype=torch.bool)
    return torch.from_numpy(np.concatenate([datum.driven(loss.driver) for datum in datums]))


def _logprobs(
    replica: Replica,
    batch: PackedBatch,
    targets: torch.Tensor,
    inputs: Mapping[str, torch.Tensor],
    active: torch.Tensor,
    work: ForwardBackward,
) -> torch.Tensor:
    """Return the log-probabilities of `targets` (T, K), and run the backward pass if `work.backward`.

    If `work.skips`, only the rows where `active` (T,) is True are computed. The others are `SKIPPED`.
    """
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

            def gradient_of(logprobs: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
                return gradient[rows]

        else:

            def gradient_of(logprobs: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
                return _loss_gradient(logprobs, {name: values[rows] for name, values in inputs.items()}, work)

        counts = [int(part.sum()) for part in active.split(batch.lengths)]
        grad_hidden = torch.zeros_like(h) if hidden.requires_grad else None
        lp[active_rows] = replica.head.logprobs_and_gradient(h, targets, active_rows, counts, gradient_of, grad_hidden)
    if grad_hidden is not None:
        hidden.backward(grad_hidden)
    return lp


def _loss_gradient(lp: torch.Tensor, inputs: Mapping[str, torch.Tensor], work: ForwardBackward) -> torch.Tensor:
    """Return dL/dlp, the gradient of the summed loss with respect to `lp`, computed by autograd."""
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

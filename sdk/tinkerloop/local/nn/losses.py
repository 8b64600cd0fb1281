"""Tinker's loss functions: plain sums over positions and datums, without any normalisation.

Each function receives lp = log p(target) (T, K) in float32, and loss inputs of the same shape. It returns the loss of
every element (T, K). In the formulas, w are the weights, q the sampler's log-probabilities, A the advantages,
r = exp(lp - q), and sg(x) is x without its gradient.

    cross_entropy         -w lp
    importance_sampling   -r A
    ppo                   -min(r A, clamp(r, low, high) A)                     low 0.8, high 1.2
    cispo                 -sg(clamp(r, low, high)) lp A                        low 0.0, high 4.0
    dro                   -(lp A - beta/2 (lp - q)^2)                          beta 0.05
    gspo                  ppo with r = s exp(lp - sg(lp)),                     low 0.8, high 1.2
                          s = exp(mean of sg(lp) - q over the datum's positions with sequence_ratio_mask != 0)

A position with A = 0 adds exactly 0 to the loss and the gradient, whatever lp - q is; dro's quadratic term is the
exception. At such a position q may be a fill value, such as Tinker's -99999. r may overflow where ppo and gspo use the
clipped ratio.

Clip thresholds are bounds on the ratio, not distances from 1. Formulas and defaults are from Tinker's documentation of
its losses. The defaults of beta and of gspo's bounds are not published; they are this project's choice.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from tinkerloop.errors import TinkerloopError
from tinkerloop.local.request_errors import user_error
from tinkerloop.local.unsupported import unsupported_error
from tinkerloop.number_checks import check_finite_number

LossInputs = Mapping[str, torch.Tensor]
LossConfig = Mapping[str, float]
LARGEST_LOG_RATIO = 80.0
"""The largest log-ratio in metrics: float32 overflows at 88.7."""


@dataclass(frozen=True)
class Loss:
    """A loss function, and the properties that the engine needs in order to compute it in chunks."""

    elementwise: Callable[[torch.Tensor, LossInputs, LossConfig], torch.Tensor]
    driver: str | None
    """The loss input that multiplies the gradient: where it is 0, the gradient is 0. None: there is no such input."""
    defaults: LossConfig = field(default_factory=dict)
    whole_datum: bool = False
    """True if the gradient at one position depends on the log-probabilities at the other positions of the datum."""


def _cross_entropy(lp: torch.Tensor, inputs: LossInputs, config: LossConfig) -> torch.Tensor:
    return -lp * inputs["weights"]


def _importance_sampling(lp: torch.Tensor, inputs: LossInputs, config: LossConfig) -> torch.Tensor:
    log_ratio = (lp - inputs["logprobs"]).masked_fill(inputs["advantages"] == 0, 0.0)  # inf * 0 would be NaN
    return -torch.exp(log_ratio) * inputs["advantages"]


def _clipped(lp: torch.Tensor, ratio: torch.Tensor, advantages: torch.Tensor, config: LossConfig) -> torch.Tensor:
    """Return -min(r A, clamp(r, low, high) A), given the value of r, whose derivative with respect to lp is r."""
    ratio = ratio.detach()
    bound = ratio.clamp(config["clip_low_threshold"], config["clip_high_threshold"]) * advantages
    constant = (advantages == 0) | (bound < ratio * advantages)
    # Not torch.minimum: where r overflows, the gradient of the side that is not taken would be 0 * inf.
    ratio = ratio.masked_fill(constant, 0.0) * torch.exp(lp - lp.detach())
    return -torch.where(constant, bound, ratio * advantages)


def _ppo(lp: torch.Tensor, inputs: LossInputs, config: LossConfig) -> torch.Tensor:
    return _clipped(lp, torch.exp(lp - inputs["logprobs"]), inputs["advantages"], config)


def _cispo(lp: torch.Tensor, inputs: LossInputs, config: LossConfig) -> torch.Tensor:
    ratio = torch.exp(lp.detach() - inputs["logprobs"])
    clipped = ratio.clamp(config["clip_low_threshold"], config["clip_high_threshold"])
    return -clipped * lp * inputs["advantages"]


def _dro(lp: torch.Tensor, inputs: LossInputs, config: LossConfig) -> torch.Tensor:
    return -(lp * inputs["advantages"] - 0.5 * config["beta"] * (lp - inputs["logprobs"]) ** 2)


def _gspo(lp: torch.Tensor, inputs: LossInputs, config: LossConfig) -> torch.Tensor:
    """Compute the gspo loss. `inputs["segment"]` (T,) holds the index of each position's datum."""
    # In float64: a GPU sums a datum's positions in a varying order, which would change float32 results.
    mask = (inputs["sequence_ratio_mask"] != 0).double()
    segment = inputs["segment"]
    count = int(segment[-1]) + 1
    log_ratio = (lp.detach() - inputs["logprobs"]) * mask
    total = mask.new_zeros(count, lp.shape[1]).index_add_(0, segment, log_ratio)
    positions = mask.new_zeros(count, lp.shape[1]).index_add_(0, segment, mask)
    sequence_ratio = torch.exp(total / positions.clamp(min=1)).to(lp.dtype)[segment]
    return _clipped(lp, sequence_ratio, inputs["advantages"], config)


_PPO_BOUNDS = {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}
LOSSES: dict[str, Loss] = {
    "cross_entropy": Loss(_cross_entropy, "weights"),
    "importance_sampling": Loss(_importance_sampling, "advantages"),
    "ppo": Loss(_ppo, "advantages", _PPO_BOUNDS),
    "cispo": Loss(_cispo, "advantages", {"clip_low_threshold": 0.0, "clip_high_threshold": 4.0}),
    "dro": Loss(_dro, None, {"beta": 0.05}),
    "gspo": Loss(_gspo, "advantages", _PPO_BOUNDS, whole_datum=True),
}


def resolve_loss(loss_fn: str, config: Mapping[str, float | str] | None) -> tuple[Loss, dict[str, float]]:
    """Return the loss named `loss_fn`, and its configuration completed with defaults.

    Raises:
        tinker.RequestFailedError: the loss or a key of `config` is unknown, or a value is invalid (category user).
        NotImplementedError: the engine does not support the loss.
    """
    if loss_fn == "stable_reinforce":
        raise unsupported_error("loss_fn='stable_reinforce'")
    if not isinstance(loss_fn, str) or loss_fn not in LOSSES:
        raise user_error(f"unknown loss_fn {loss_fn!r}; expected one of {', '.join(LOSSES)}")
    loss = LOSSES[loss_fn]
    complete = dict(loss.defaults)
    if not isinstance(config, Mapping | None):
        raise user_error(f"loss_fn_config must be a dict from str to float, or None; got {config!r}")
    for key, value in (config or {}).items():
        if key not in loss.defaults:
            known = ", ".join(loss.defaults) or "none"
            raise user_error(f"unknown loss_fn_config key {key!r} for loss_fn {loss_fn!r}; valid keys: {known}")
        try:
            check_finite_number(f"loss_fn_config[{key!r}]", value)
        except TinkerloopError as error:
            raise user_error(str(error)) from error
        complete[key] = float(value)
    if "clip_low_threshold" in complete:
        low, high = complete["clip_low_threshold"], complete["clip_high_threshold"]
        if low > high:
            raise user_error(f"clip_low_threshold must not be above clip_high_threshold, got {low} and {high}")
        if not low <= 1 <= high:
            warnings.warn(
                f"the clip thresholds {low} and {high} do not enclose 1, although they are bounds on the probability "
                "ratio, not distances from 1; to allow a distance of 0.2, pass 0.8 and 1.2",
                stacklevel=2,
            )
    return loss, complete


def ppo_metrics(lp: torch.Tensor, inputs: LossInputs, config: LossConfig) -> dict[str, float]:
    """Return three sums over positions: of the ratio, of the clipped positions (1 for each), and of q - lp.

    The caller divides them by the number of positions to get the metrics, which are means. A ratio that would overflow
    counts as exp(LARGEST_LOG_RATIO), or as 1 where the advantage is 0.
    """
    log_ratio = lp - inputs["logprobs"]
    log_ratio = log_ratio.masked_fill((inputs["advantages"] == 0) & (log_ratio > LARGEST_LOG_RATIO), 0.0)
    ratio = torch.exp(log_ratio.clamp(max=LARGEST_LOG_RATIO))
    clipped = (ratio < config["clip_low_threshold"]) | (ratio > config["clip_high_threshold"])
    return {
        "ppo_mean_ratio:mean": float(ratio.sum(dtype=torch.float64)),
        "ppo_clipped_fraction:mean": float(clipped.sum()),
        "ppo_kl_div:mean": float((-log_ratio).sum(dtype=torch.float64)),
    }

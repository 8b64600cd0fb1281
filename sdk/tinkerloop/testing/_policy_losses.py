"""The built-in policy losses in numpy, for the unigram model of `tinkerloop.testing`.

Each is a sum over positions of a function of the log-probability lp. Its gradient is therefore that of a cross-entropy
loss whose weights are -dL/dlp. In the formulas, q are the sampler's log-probabilities, A the advantages and
r = exp(lp - q). The loss at a position, and -dL/dlp:

    importance_sampling   -r A                            r A
    ppo                   -min(r A, clamp(r) A)           r A where it is the minimum, otherwise 0
    cispo                 -c lp A, where c = clamp(r)     c A, because c counts as a constant
    dro                   -(lp A - beta/2 (lp - q)^2)     A - beta (lp - q)
    gspo                  ppo with r = exp(mean of lp - q over the positions of the mask)

A position with A = 0 adds exactly 0, whatever q is, except to dro: q may be a fill value there, such as -99999.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

_BOUNDS = {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}
DEFAULTS: dict[str, dict[str, float]] = {
    "cross_entropy": {},
    "importance_sampling": {},
    "ppo": _BOUNDS,
    "cispo": {"clip_low_threshold": 0.0, "clip_high_threshold": 4.0},
    "dro": {"beta": 0.05},
    "gspo": _BOUNDS,
}
"""Mapping from the name of each loss to its options and their defaults."""


def complete_config(loss_fn: str, config: Mapping[str, Any] | None) -> dict[str, float]:
    """Return the options of a loss, completed with defaults.

    Raises:
        ValueError: an option is unknown, or its value is no finite number, or the lower bound is above the upper one.
    """
    defaults = DEFAULTS[loss_fn]
    if unknown := sorted((config or {}).keys() - defaults.keys()):
        raise ValueError(f"unknown loss_fn_config keys {unknown} for {loss_fn!r}; valid keys are {sorted(defaults)}")
    complete = {**defaults, **(config or {})}
    for name, value in complete.items():
        if not isinstance(value, Real) or not math.isfinite(value):
            raise ValueError(f"loss_fn_config[{name!r}] must be a finite number, got {value!r}")
    low, high = (complete.get(name, 0.0) for name in _BOUNDS)
    if low > high:
        raise ValueError(f"clip_low_threshold must not be above clip_high_threshold, got {low} and {high}")
    return complete


def policy_loss(
    loss_fn: str, lp: Values, inputs: Mapping[str, Values], config: Mapping[str, float]
) -> tuple[Values, Values]:
    """Return the loss at each position of one datum, and -dL/dlp; both (N,)."""
    q, advantages = inputs["logprobs"], inputs["advantages"]
    if loss_fn == "dro":
        error = lp - q
        return -(lp * advantages - config["beta"] / 2 * error**2), advantages - config["beta"] * error
    with np.errstate(over="ignore"):  # a ratio may overflow where it is clipped or A = 0
        ratio = np.exp(lp - q)
        if loss_fn == "gspo":
            mask = inputs["sequence_ratio_mask"] != 0
            ratio = np.full_like(lp, np.exp((lp - q)[mask].mean() if mask.any() else 0.0))
    ratio = np.where(advantages == 0, 1.0, ratio)  # inf * 0 would be NaN
    if loss_fn == "importance_sampling":
        return -ratio * advantages, ratio * advantages
    bound = np.clip(ratio, config["clip_low_threshold"], config["clip_high_threshold"])
    if loss_fn == "cispo":
        return -bound * lp * advantages, bound * advantages
    taken = np.minimum(ratio * advantages, bound * advantages)
    return -taken, np.where(taken == ratio * advantages, ratio * advantages, 0.0)

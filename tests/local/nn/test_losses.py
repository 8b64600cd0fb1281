"""Policy losses at log-ratios that overflow float32: what is finite by the formula is computed, and 0 stays 0."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tinker
import torch

from tests.local.references import reference_elements
from tinkerloop.local.nn.losses import LOSSES, ppo_metrics

POLICY_LOSSES = ["importance_sampling", "ppo", "cispo", "gspo"]
LP = [-1.0, -2.0, -3.0, -0.5]
FILL = -99999.0
"""Tinker's value for a log-probability that does not exist."""


def element_losses(
    loss_fn: str, q: list[float], advantages: list[float], mask: list[float] | None = None
) -> tuple[list[float], list[float]]:
    """Return the engine's loss of each position and its gradient with respect to the log-probability."""
    lp = torch.tensor(LP)[:, None].requires_grad_()
    inputs = {
        "logprobs": torch.tensor(q)[:, None],
        "advantages": torch.tensor(advantages)[:, None],
        "sequence_ratio_mask": torch.tensor(mask or [1.0] * len(q))[:, None],
        "segment": torch.zeros(len(q), dtype=torch.long),
    }
    losses = LOSSES[loss_fn].elementwise(lp, inputs, LOSSES[loss_fn].defaults)
    (gradient,) = torch.autograd.grad(losses.sum(), lp)
    return losses[:, 0].tolist(), gradient[:, 0].tolist()


@pytest.mark.parametrize("loss_fn", POLICY_LOSSES)
@pytest.mark.parametrize("q", [0.0, -60.0, -99.0, -1000.0, FILL])
def test_a_position_of_advantage_0_adds_0_whatever_its_ratio_is(loss_fn, q):
    losses, gradient = element_losses(loss_fn, [q, -2.0, -3.1, q], [0.0, 1.0, -0.5, 0.0], [0.0, 1.0, 1.0, 0.0])
    assert (losses[0], losses[3], gradient[0], gradient[3]) == (0, 0, 0, 0)
    rest = element_losses(loss_fn, [LP[0], -2.0, -3.1, LP[3]], [0.0, 1.0, -0.5, 0.0], [0.0, 1.0, 1.0, 0.0])
    assert (losses, gradient) == rest


@pytest.mark.parametrize("loss_fn", ["ppo", "cispo", "gspo"])
@pytest.mark.parametrize("q", [-60.0, -99.0, -1000.0, FILL])
def test_where_the_clipped_objective_is_finite_it_is_computed(loss_fn, q):
    advantages = [1.0, 2.0, 0.5, 0.25]
    losses, gradient = element_losses(loss_fn, [q] * 4, advantages)
    expected, slopes = reference_elements(loss_fn, LOSSES[loss_fn].defaults, LP, [q] * 4, advantages)
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, slopes, rtol=1e-6)


@pytest.mark.parametrize("loss_fn", POLICY_LOSSES)
def test_ordinary_ratios_on_both_sides_of_the_bounds_equal_the_formula_in_float64(loss_fn):
    for shift in (-1.0, -0.25, -0.1, 0.0, 0.1, 0.25, 1.0):
        for advantages in ([1.0, -1.0, 0.5, -2.0], [-1.0, 0.0, -0.5, 2.0]):
            q = [lp + shift for lp in LP]
            losses, gradient = element_losses(loss_fn, q, advantages)
            expected, slopes = reference_elements(loss_fn, LOSSES[loss_fn].defaults, LP, q, advantages)
            np.testing.assert_allclose(losses, expected, rtol=1e-6)
            np.testing.assert_allclose(gradient, slopes, rtol=1e-6)


@pytest.mark.parametrize("loss_fn", ["importance_sampling", "ppo", "gspo"])
def test_an_infinite_loss_stays_infinite(loss_fn):
    assert math.inf in element_losses(loss_fn, [FILL] * 4, [-1.0, -1.0, -1.0, -1.0])[0]


def test_metrics_of_ppo_stay_finite_and_a_fill_value_counts_as_no_change():
    lp, q = torch.tensor(LP)[:, None], torch.tensor([FILL, -2.0, -3.0, -0.5])[:, None]
    config = LOSSES["ppo"].defaults
    masked = ppo_metrics(lp, {"logprobs": q, "advantages": torch.tensor([0.0, 1, 1, 1])[:, None]}, config)
    assert masked == {"ppo_mean_ratio:mean": 4, "ppo_clipped_fraction:mean": 0, "ppo_kl_div:mean": 0}
    extreme = ppo_metrics(lp, {"logprobs": q, "advantages": torch.ones(4, 1)}, config)
    assert all(map(math.isfinite, extreme.values()))
    assert extreme["ppo_clipped_fraction:mean"] == 1


@pytest.mark.parametrize("loss_fn", POLICY_LOSSES)
def test_a_client_trains_on_datums_with_fill_values(client, loss_fn):
    inputs = {
        "target_tokens": np.array([2, 3, 4]),
        "logprobs": np.array([FILL, -3, -3], np.float32),
        "advantages": np.array([0, 1, 1], np.float32),
    }
    if loss_fn == "gspo":
        inputs["sequence_ratio_mask"] = np.array([0, 1, 1], np.float32)
    datum = tinker.Datum(model_input=tinker.ModelInput.from_ints([1, 2, 3]), loss_fn_inputs=inputs)
    metrics = client.forward_backward([datum], loss_fn).result().metrics
    assert all(map(math.isfinite, metrics.values()))
    assert client.apply(lambda s: bool(s.gradient.any() and torch.isfinite(s.gradient).all())).result()

"""Advantages: how much better each trajectory, turn or token of a group was than expected.

An advantage function takes a `Group` and returns one entry per trajectory: a number for all its sampled tokens, an
array with one number per turn, or an array with one number per sampled token (of all segments, in order). `centered`,
`standardized`, `leave_one_out`, `no_baseline` and `reverse_kl` are such functions; `per_turn` and `reference_kl` return
one for their options. Any other function of a group can be used in their place.

In the formulas, r_i is the reward of trajectory i and n is the number of trajectories in the group.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tinkerloop.errors import DatumError, PlanError
from tinkerloop.number_checks import check_finite_number
from tinkerloop.rollouts.trajectory import Group, Trajectory

Advantage = float | NDArray[np.float64]
"""The advantage of one trajectory: a number, or an array with one number per turn or per sampled token."""
AdvantageFunction = Callable[[Group], Sequence[Advantage]]
"""Function that returns the advantage of each trajectory of a group, in order."""


_Function = TypeVar("_Function", bound=Callable[..., Any])
_COMPARES, _NEEDS_REFERENCE = "_compares_trajectories", "_needs_reference"


def _comparing(function: _Function) -> _Function:
    """Mark a function that compares the trajectories of a group, so that a single one always gets 0."""
    vars(function)[_COMPARES] = True
    return function


def _referring(function: _Function) -> _Function:
    """Mark a function that needs the log-probabilities of a reference model."""
    vars(function)[_NEEDS_REFERENCE] = True
    return function


@_comparing
def centered(group: Group) -> list[Advantage]:
    """Return the reward minus the mean reward of the group: A_i = r_i - mean(r).

    Source: Dr. GRPO (Liu et al., 2025, "Understanding R1-Zero-Like Training"). Equal rewards give exactly 0.
    """
    return list(_centered(group.rewards))


@_comparing
def standardized(group: Group, *, eps: float = 1e-6) -> list[Advantage]:
    """Return the centred reward in units of the group's standard deviation: A_i = (r_i - mean(r)) / (std(r) + eps).

    Source: GRPO (Shao et al., 2024, "DeepSeekMath"); std is that of the n rewards themselves (division by n). Equal
    rewards, whose standard deviation is 0, give exactly 0. `eps` keeps rounding errors of equal rewards small.

    Raises:
        PlanError: `eps` is not a finite number of at least 0.
    """
    check_finite_number("eps", eps, 0)
    deviations = _centered(group.rewards)
    scale = np.sqrt(np.mean(deviations**2)) + eps
    return list(deviations / (scale if scale else 1.0))


@_comparing
def leave_one_out(group: Group) -> list[Advantage]:
    """Return the reward minus the mean reward of the others: A_i = r_i - mean of r_j over j != i.

    Source: RLOO (Kool et al., 2019; Ahmadian et al., 2024, "Back to Basics"). It is n / (n - 1) times `centered`.

    Raises:
        PlanError: the group has only one trajectory.
    """
    n = len(group.trajectories)
    if n < 2:
        raise PlanError(
            f"leave_one_out needs at least 2 trajectories in a group, got {n}: use a larger group_size, or no_baseline"
        )
    return list(_centered(group.rewards) * n / (n - 1))


def no_baseline(group: Group) -> list[Advantage]:
    """Return the reward itself: A_i = r_i. Source: REINFORCE (Williams, 1992)."""
    return list(group.rewards)


def per_turn(*, discount: float = 1.0, baseline: Literal["turn", "none"] = "turn") -> AdvantageFunction:
    """Return a function that gives each turn the rewards from this turn on.

    The return of turn t is R_it = sum over u >= t of discount^(u - t) * r_iu, where r_iu is the reward of turn u. With
    the baseline "turn", its advantage is A_it = R_it - mean of R_jt over the trajectories j that have a turn t. Source:
    REINFORCE with a baseline (Sutton and Barto, 2018, "Reinforcement Learning", section 13.4), with the mean of the
    group at the same turn as the baseline.

    Args:
        discount: how much a reward counts one turn earlier, from 0 (each turn gets its own reward only) to 1.
        baseline: "turn" for the mean of the group at the same turn, "none" for no baseline: A_it = R_it.

    Raises:
        PlanError: an argument is invalid.
    """
    check_finite_number("discount", discount, 0)
    if discount > 1:
        raise PlanError(f"discount must be from 0 to 1, got {discount}")
    if baseline not in ("turn", "none"):
        raise PlanError(f'baseline must be "turn" or "none", got {baseline!r}')

    def turn_advantages(group: Group) -> list[Advantage]:
        returns = [_returns(trajectory, discount) for trajectory in group.trajectories]
        if baseline == "none":
            return list(returns)
        for turn in range(max(map(len, returns), default=0)):
            reached = [one for one in returns if len(one) > turn]
            for one, value in zip(reached, _centered(np.array([one[turn] for one in reached])), strict=True):
                one[turn] = value
        return list(returns)

    return _comparing(turn_advantages) if baseline == "turn" else turn_advantages


def reference_kl(beta: float, base: AdvantageFunction = centered) -> AdvantageFunction:
    """Return a function that adds to `base` a penalty for each token that a reference model finds less likely.

    A_it = base_it - beta * (log p(token) - log p_reference(token)), with the log-probabilities of the sampled tokens.
    The bracket is the estimate k1 of the KL divergence of the policy from the reference at this token (Schulman, 2020,
    "Approximating KL Divergence"). As a penalty in the reward: Ziegler et al. (2019), "Fine-Tuning Language Models from
    Human Preferences"; here each token is penalised for itself only, and not for later tokens.

    Args:
        beta: the factor of the penalty, at least 0.
        base: the advantages without the penalty.

    Raises:
        PlanError: an argument is invalid; or, from the returned function, a trajectory has no reference
            log-probabilities.
    """
    check_finite_number("beta", beta, 0)
    if not callable(base):
        raise PlanError(f"base must be a function from a group to its advantages, such as centered, got {base!r}")

    @_referring
    def penalized(group: Group) -> list[Advantage]:
        return [
            per_token(trajectory, advantage) - beta * _log_ratios(trajectory)
            for trajectory, advantage in zip(group.trajectories, base(group), strict=True)
        ]

    return penalized


@_referring
def reverse_kl(group: Group) -> list[Advantage]:
    """Return how much more likely a teacher finds each sampled token: A_it = log p_teacher(token) - log p(token).

    Training on it lowers the KL divergence of the student from the teacher on the student's own samples; rewards are
    not used. Source: on-policy distillation (Agarwal et al., 2024, "On-Policy Distillation of Language Models"; Gu et
    al., 2024, "MiniLLM"). The teacher is the reference model of the rollouts.

    Raises:
        PlanError: a trajectory has no reference log-probabilities.
    """
    return [-_log_ratios(trajectory) for trajectory in group.trajectories]


def compares_trajectories(function: AdvantageFunction) -> bool:
    """Return true if `function` is one of this module that gives only 0 to a group of one trajectory.

    >>> compares_trajectories(centered), compares_trajectories(no_baseline)
    (True, False)
    """
    return _has_mark(function, _COMPARES)


def needs_reference(function: AdvantageFunction) -> bool:
    """Return true if `function` is one of this module that needs the log-probabilities of a reference model."""
    return _has_mark(function, _NEEDS_REFERENCE)


def _has_mark(function: Callable[..., Any], mark: str) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    return bool(getattr(function, mark, False))


def compute_advantages(function: AdvantageFunction, group: Group) -> list[Advantage]:
    """Return `function(group)`, after checking that it has one entry with finite numbers for each trajectory.

    Raises:
        PlanError: it has not.
    """
    name = getattr(function, "__name__", repr(function))
    advantages: Any = function(group)
    if callable(advantages):
        raise PlanError(f"{name} returned a function, not advantages: pass what it returns, as in advantages={name}()")
    if not isinstance(advantages, Iterable) or isinstance(advantages, str | Mapping | Set):
        raise PlanError(
            f"{name} must return a list with the advantage of each trajectory, in order, got {advantages!r:.80}"
        )
    advantages = list(advantages)
    if len(advantages) != len(group.trajectories):
        raise PlanError(
            f"{name} must return one entry for each of the {len(group.trajectories)} trajectories of a group, got "
            f"{len(advantages)}"
        )
    for index, advantage in enumerate(advantages):
        values = np.asarray(advantage)
        if values.dtype.kind not in "biuf" or not np.all(np.isfinite(values)):
            raise PlanError(f"{name} must return finite numbers, got {advantage!r} for trajectory {index}")
    return advantages


def per_token(trajectory: Trajectory, advantage: ArrayLike) -> NDArray[Any]:
    """Return the advantage of each of the S sampled tokens of all segments, (S,).

    Args:
        trajectory: the trajectory.
        advantage: one number; or one for each turn; or one for each sampled token.

    Raises:
        DatumError: the advantage is neither of these.
    """
    turns, values = trajectory.sampled_turns, np.asarray(advantage)
    if values.ndim == 0:
        return np.full(len(turns), values)
    if values.shape == turns.shape:
        return values
    if values.shape == (len(trajectory.turns),):
        return values[turns]
    raise DatumError(
        "must be one number, one for each turn, or one for each sampled token",
        field="advantages",
        expected=f"({len(trajectory.turns)},) or ({len(turns)},)",
        given=values.shape,
    )


def _centered(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return `values` minus their mean."""
    deviations = values - values[:1]  # first, so that equal values give exactly 0
    return deviations - deviations.mean() if len(values) else deviations


def _returns(trajectory: Trajectory, discount: float) -> NDArray[np.float64]:
    returns = np.array([turn.reward for turn in trajectory.turns], np.float64)  # (turns,)
    for turn in reversed(range(len(returns) - 1)):
        returns[turn] += discount * returns[turn + 1]
    return returns


def _log_ratios(trajectory: Trajectory) -> NDArray[np.float64]:
    """Return log p(token) - log p_reference(token) of each sampled token, (S,)."""
    ratios = []
    for segment in trajectory.segments:
        if segment.reference_logprobs is None:
            raise PlanError(
                "a trajectory has no log-probabilities of a reference model: pass reference=SAMPLING_CLIENT to Rollouts"
            )
        ratios.append(np.subtract(segment.logprobs, segment.reference_logprobs, dtype=np.float64))
    return np.concatenate(ratios)

"""Checks of the options of `Rollouts`. A wrong one is an error before anything is sampled."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from tinkerloop.clients import CustomLoss
from tinkerloop.datum_checks import LOSS_INPUTS, POLICY_LOSSES
from tinkerloop.errors import PlanError
from tinkerloop.number_checks import check_whole, is_whole
from tinkerloop.rollouts.advantages import (
    AdvantageFunction,
    compares_trajectories,
    needs_reference,
    per_turn,
    reference_kl,
)
from tinkerloop.rollouts.episodes import FailurePolicy, Limits
from tinkerloop.rollouts.policy_datum import TRAJECTORY_LOSSES, WEIGHTING

_LEAST = {
    "groups": 1, "group_size": 1, "staleness": 0, "substeps": 1, "further_tasks": 0, "max_in_flight": 1
}  # fmt: skip
_OPTIONAL = ("further_tasks", "max_in_flight")
_CHOICES: Mapping[str, Sequence[str]] = {
    "constant_groups": ("drop", "keep"), "weighting": WEIGHTING, "loss_fn": TRAJECTORY_LOSSES
}  # fmt: skip
_METHODS = {
    "client": ("save_weights_and_get_sampling_client", "the training client of the loop"),
    "renderer": ("get_stop_sequences", "a renderer, such as tinkerloop.get_renderer(name, tokenizer)"),
    "reference": ("compute_logprobs", "a sampling client, such as service.create_sampling_client(base_model=...)"),
}
"""A method that each object must have, and what to pass."""


def check_methods(**objects: Any) -> None:
    """Raise PlanError unless each object has the method that sampling calls. None as the reference is accepted."""
    for name, value in objects.items():
        method, expected = _METHODS[name]
        is_left_out = name == "reference" and value is None
        if not is_left_out and not callable(getattr(value, method, None)):
            raise PlanError(f"{name} must be {expected}, got {value!r:.80}, which has no method {method}")


def check_numbers(seed: Any, **numbers: Any) -> None:
    """Check that the seed and the numbers are whole numbers of an allowed size.

    Raises:
        PlanError: one is not.
    """
    for name, value in numbers.items():
        if value is not None or name not in _OPTIONAL:
            check_whole(name, value, _LEAST[name])
    if not is_whole(seed):
        raise PlanError(f"seed must be a whole number, got {seed!r}")


def check_named_options(**choices: Any) -> None:
    """Raise PlanError unless each value is one of those that its option has."""
    for name, value in choices.items():
        if value not in _CHOICES[name]:
            raise PlanError(f"{name} must be one of {', '.join(_CHOICES[name])}, got {value!r}")


def check_tasks(tasks: Any) -> None:
    """Raise PlanError unless `tasks` is a sequence with at least one task."""
    is_sequence = hasattr(tasks, "__len__") and hasattr(tasks, "__getitem__")
    if isinstance(tasks, str | bytes | Mapping) or not is_sequence or not len(tasks):
        raise PlanError(f"tasks must be a list or another sequence with at least one task, got {tasks!r:.80}")


def check_policies(limits: Any, on_failure: Any) -> None:
    """Raise PlanError unless these are `Limits` and a `FailurePolicy`."""
    for name, value, kind in (("limits", limits, Limits), ("on_failure", on_failure, FailurePolicy)):
        if not isinstance(value, kind):
            raise PlanError(f"{name} must be tinkerloop.rollouts.{kind.__name__}(...), got {value!r:.80}")


def check_functions(environment: Any, advantages: Any, *, group_size: int, has_reference: bool) -> None:
    """Check the functions that a user passes, and that the advantages fit the other options.

    Raises:
        PlanError: one is no function, or the advantages need several episodes or a reference, which are missing.
    """
    if not callable(environment):
        raise PlanError(
            f"environment must be a function from a task and a seed to an environment, got {environment!r:.80}"
        )
    if not callable(advantages):
        raise PlanError(
            f"advantages must be a function from a group to its advantages, got {advantages!r}: pass a function of "
            "tinkerloop.rollouts, such as centered (without quotes), or your own"
        )
    function = cast("AdvantageFunction", advantages)
    name = _name_of(function)
    if advantages in (per_turn, reference_kl):
        raise PlanError(
            f"{name} returns a function from a group to its advantages: pass what it returns, as in "
            f"advantages={name}({'beta' if advantages is reference_kl else ''})"
        )
    if group_size == 1 and compares_trajectories(function):
        raise PlanError(
            f"group_size=1 with advantages={name}, which compares the episodes of a group: all advantages would be "
            "0, and nothing would be trained; use a group_size of at least 2, or advantages=no_baseline"
        )
    if needs_reference(function) and not has_reference:
        raise PlanError(
            f"advantages={name} needs the log-probabilities of a reference model: pass reference=SAMPLING_CLIENT, such "
            "as service.create_sampling_client(base_model=...)"
        )


def _name_of(function: Callable[..., Any]) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__qualname__", repr(function)).partition(".")[0]


def check_loss(of_datums: str, weighting: str, loss_fn: str | CustomLoss, normalize: str) -> None:
    """Check that a loop trains datums as they are meant. A loss that is not built in is accepted.

    Args:
        of_datums: the loss that the datums are for.
        weighting: what counts equally in a step.
        loss_fn: the loss of the loop.
        normalize: how the loop scales the weights.

    Raises:
        PlanError: `loss_fn` is another built-in loss, or `normalize` undoes the weighting.
    """
    if isinstance(loss_fn, str) and loss_fn in LOSS_INPUTS and loss_fn != of_datums:
        other = f', or loss_fn="{loss_fn}" to the Rollouts' if loss_fn in POLICY_LOSSES else ""
        raise PlanError(
            f"the rollouts are for the loss {of_datums}, but the loop has the loss {loss_fn}: pass "
            f'loss_fn="{of_datums}" to the Loop{other}'
        )
    if normalize == "example" and weighting != "token":
        raise PlanError(
            f'weighting="{weighting}" of the rollouts has no effect with normalize="example", which makes the '
            'weights of each datum sum to the same: pass normalize="token" to the Loop'
        )

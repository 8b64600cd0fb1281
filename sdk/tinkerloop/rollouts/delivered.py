"""The part of a batch of rollouts that is delivered for training: its datums, and an account of its groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tinkerloop._lazy import tinker
from tinkerloop.errors import RolloutError
from tinkerloop.rollouts.batch_sampling import SampledGroup
from tinkerloop.rollouts.trajectory import Group


@dataclass(frozen=True)
class Delivered:
    """A batch of rollouts that was delivered.

    Attributes:
        batch: its number.
        groups: all its groups, in the order of their slots.
        trained: those that are trained on.
        constant: the number of groups that were left out because all their advantages are 0.
        dropped: the number of groups that were left out because an environment failed.
        failures: the number of failures of environments, including those after which an episode was repeated.
        further: the number of groups that were sampled in place of others that were left out.
        substep: which part of its datums was delivered, from 0.
        begun_at: when it was begun, in seconds of `time.perf_counter`; None if an earlier process began it.
    """

    batch: int
    groups: tuple[Group, ...]
    trained: tuple[Group, ...]
    constant: int
    dropped: int
    failures: int
    further: int
    substep: int = 0
    begun_at: float | None = field(default=None, compare=False)


def account_for(
    batch: int, sampled: Sequence[SampledGroup], groups: int, *, substep: int = 0, begun_at: float | None = None
) -> Delivered:
    """Return the account of a batch, of which `groups` groups were asked for."""
    left_out = [one.group for one in sampled if not one.datums]
    dropped = sum(not group.trajectories for group in left_out)
    return Delivered(
        batch=batch,
        groups=tuple(one.group for one in sampled),
        trained=tuple(one.group for one in sampled if one.datums),
        constant=len(left_out) - dropped,
        dropped=dropped,
        failures=sum(len(one.group.failures) for one in sampled),
        further=len(sampled) - groups,
        substep=substep,
        begun_at=begun_at,
    )


def part_of_datums(sampled: Sequence[SampledGroup], part: int, parts: int) -> list[tinker.Datum]:
    """Return part number `part` of the datums of a batch, cut into `parts` consecutive parts of near-equal sizes.

    Raises:
        RolloutError: there are fewer datums than parts.
    """
    datums = [datum for one in sampled for datum in one.datums]
    if len(datums) < parts:
        raise RolloutError(
            f"batch {sampled[0].group.batch} of the rollouts has {len(datums)} datums, which cannot be delivered in "
            f'{parts} substeps: use fewer substeps, more groups or further_tasks, or constant_groups="keep"'
        )
    return datums[len(datums) * part // parts : len(datums) * (part + 1) // parts]

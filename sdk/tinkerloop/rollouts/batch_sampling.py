"""Sampling of one batch of rollouts, on an event loop in a thread of its own, so that training goes on meanwhile.

The content of a batch depends only on its number, the weights, the state of the curriculum and the random seed, never
on the order in which replies arrive.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from numbers import Integral
from random import Random
from typing import Any, TypeVar

import numpy as np

from tinkerloop._lazy import tinker
from tinkerloop.clients import SamplingClientLike
from tinkerloop.errors import CheckpointError, PlanError, RolloutError
from tinkerloop.renderers import Renderer
from tinkerloop.rollouts.advantages import AdvantageFunction, compute_advantages
from tinkerloop.rollouts.environments import Environment
from tinkerloop.rollouts.episodes import FailurePolicy, Limits, run_group
from tinkerloop.rollouts.policy_datum import Weighting, group_datums
from tinkerloop.rollouts.trajectory import Group

T = TypeVar("T")

_THREADS = 64  # each waits for one sample, of a service whose futures can only be waited for in a thread


@dataclass(frozen=True)
class SampledGroup:
    """A group and the datums to train on; none if it was dropped, or if training on it would change nothing."""

    group: Group
    datums: Sequence[tinker.Datum]


@dataclass(frozen=True)
class SamplingOptions:
    """How every batch is sampled. See the arguments of `Rollouts`."""

    tasks: Sequence[Any]
    environment: Callable[[Any, int], Environment | Awaitable[Environment]]
    renderer: Renderer
    sampling_params: tinker.SamplingParams
    groups: int
    group_size: int
    further_tasks: int
    seed: int
    limits: Limits
    on_failure: FailurePolicy
    reference: SamplingClientLike | None
    advantages: AdvantageFunction
    loss_fn: str
    weighting: Weighting
    drop_constant: bool


@dataclass(frozen=True)
class BatchBeginning:
    """All that the content of a batch depends on, besides the options.

    Attributes:
        batch: its number.
        boundary: the boundary whose weights it is sampled from.
        snapshot: the future of a sampling client with these weights; None if they do not exist any more.
        draw: function from a slot to the number of its task.
        logged: groups of this batch that are in the log, by slot. They are not sampled again.
    """

    batch: int
    boundary: int
    snapshot: Future[SamplingClientLike] | None
    draw: Callable[[int], int]
    logged: Mapping[int, Group] = field(default_factory=dict)


async def sample_batch(
    options: SamplingOptions, beginning: BatchBeginning, in_flight: asyncio.Semaphore | None = None
) -> list[SampledGroup]:
    """Sample all groups of a batch, and return them in the order of their slots.

    Args:
        options: how every batch is sampled.
        beginning: what this batch is sampled from.
        in_flight: acquired during each request, to bound the number of requests.

    Raises:
        RolloutError: no group of the batch can be trained on, or an episode cannot be sampled.
        CheckpointError: a group is not in the log, and the weights to sample it from do not exist any more.
    """

    async def sample(slot: int) -> SampledGroup:
        group = beginning.logged.get(slot)
        if group is None:
            group = await _sample_group(options, beginning, slot, in_flight)
        return SampledGroup(group, _datums(options, group))

    # All slots are in flight at once, and each group without datums begins one further slot, as soon as it is known. In
    # whichever order the groups arrive, the slots that were begun in the end are the same: the first n, where n is the
    # smallest number such that `groups` of them have datums (or all slots, if there are not as many).
    tasks = [asyncio.ensure_future(sample(slot)) for slot in range(options.groups)]  # one for each slot
    running = set(tasks)
    try:
        while running:
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if not task.result().datums and len(tasks) < options.groups + options.further_tasks:
                    tasks.append(asyncio.ensure_future(sample(len(tasks))))
                    running.add(tasks[-1])
    finally:
        for task in tasks:
            task.cancel()  # has no effect on a finished task
        await asyncio.gather(*tasks, return_exceptions=True)
    in_order = [task.result() for task in tasks]
    if not any(one.datums for one in in_order):
        raise RolloutError(_why_nothing_is_left(beginning.batch, [one.group for one in in_order], options))
    return in_order


async def _sample_group(
    options: SamplingOptions, beginning: BatchBeginning, slot: int, in_flight: asyncio.Semaphore | None
) -> Group:
    batch = beginning.batch
    if beginning.snapshot is None:
        raise CheckpointError(
            f"slot {slot} of batch {batch} is missing in the log of the rollouts, and the weights that it was sampled "
            "from do not exist any more: restore the file, or copy it to the folder in which the run is resumed"
        )
    number = beginning.draw(slot)
    if not isinstance(number, Integral) or not 0 <= number < len(options.tasks):
        raise PlanError(
            f"the curriculum drew task {number!r} for slot {slot} of batch {batch}, but a task is a whole number from "
            f"0 to {len(options.tasks) - 1}"
        )
    task = options.tasks[number]
    environment_seed = Random(f"{options.seed}/environments/{batch}/{slot}").getrandbits(31)
    members = range(options.group_size)
    group = await run_group(
        partial(options.environment, task, environment_seed),
        await asyncio.wrap_future(beginning.snapshot),
        options.renderer,
        sampling_params=options.sampling_params,
        seeds=[Random(f"{options.seed}/rollouts/{batch}/{slot}/{member}").getrandbits(31) for member in members],
        limits=options.limits,
        on_failure=options.on_failure,
        boundary=beginning.boundary,
        batch=batch,
        slot=slot,
        reference=options.reference,
        in_flight=in_flight,
    )
    return replace(group, task=int(number))


def _datums(options: SamplingOptions, group: Group) -> Sequence[tinker.Datum]:
    """Return the datums of a group: none if it was dropped, or if all its advantages are 0 and such groups are."""
    if not group.trajectories:
        return ()
    advantages = compute_advantages(options.advantages, group)
    if options.drop_constant and not any(np.any(advantage) for advantage in advantages):
        return ()
    return group_datums(group, advantages, loss_fn=options.loss_fn, weighting=options.weighting)


def _why_nothing_is_left(batch: int, groups: Sequence[Group], options: SamplingOptions) -> str:
    """Return the text of the error for a batch without anything to train on."""
    dropped = [group for group in groups if not group.trajectories]
    scored = [group for group in groups if group.trajectories]
    reasons = []
    if scored:
        means = Counter(round(float(group.rewards.mean()), 3) for group in scored).most_common(3)
        rewards = ", ".join(f"{mean:g} in {count}" for mean, count in means)
        reasons.append(f"{len(scored)} have no advantages, because their rewards are equal (mean reward: {rewards})")
    if dropped:
        reasons.append(f"{len(dropped)} were dropped because an environment failed ({dropped[0].failures[-1]})")
    remedy = "Correct the environment; if it fails at random only, use more FailurePolicy.retries"
    if scored:
        remedy = (
            "Use easier or harder tasks, a larger group_size, more further_tasks "
            f'(now {options.further_tasks}), or constant_groups="keep"'
        )
    return (
        f"batch {batch} of the rollouts has nothing to train on: of its {len(groups)} groups, {'; '.join(reasons)}. "
        + remedy
    )


class EventLoopThread:
    """An event loop in a daemon thread. It ends when `stop` is called or this object is deleted."""

    def __init__(self, name: str):
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(ThreadPoolExecutor(_THREADS, thread_name_prefix=name))
        threading.Thread(target=_run_event_loop, args=(self._loop,), name=name, daemon=True).start()
        self._finalizer = weakref.finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run `coroutine` on the event loop, and return its future."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def stop(self) -> None:
        """Cancel everything that runs on the event loop, and end the thread."""
        self._finalizer()


def _run_event_loop(loop: asyncio.AbstractEventLoop) -> None:
    with asyncio.Runner(loop_factory=lambda: loop) as runner:  # cancels all tasks at its end
        runner.get_loop().run_forever()

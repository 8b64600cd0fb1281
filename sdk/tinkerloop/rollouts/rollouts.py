"""`Rollouts`: batches that are sampled from the weights in training, with exact staleness and an exact resume.

    rollouts = Rollouts(client, tasks, environment, renderer, groups=16, group_size=8,
                        sampling_params=SamplingParams(max_tokens=512), log=run.folder / "rollouts.jsonl")
    Loop(client, rollouts, steps=100, loss_fn="importance_sampling", ...).run()

A boundary is the point between two optimizer steps: at boundary s, exactly steps 0 to s - 1 have been applied to the
weights. The invariants, for staleness k:

- Batch b is begun when batch b - k is requested (batches 0 to k with the first request), from the weights of the
  boundary of this request, and from the state of the curriculum after batches 0 to b - k - 1 were delivered.
- The content of a batch depends on that alone, and never on which reply arrives first.
- A batch is in the log before it is delivered, so before anything is trained on it. The log has batches in order.
- When a record is written, all batches that were begun before its boundary are in the log. A resumed run therefore
  needs no weights but those of the record: it reads these batches, and begins the next one from the record's weights.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import copy
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

from tinkerloop._lazy import tinker
from tinkerloop.clients import CustomLoss, Future, SamplingClientLike, TrainingClientLike
from tinkerloop.data.batches import Cursor, check_cursor, fingerprint_of
from tinkerloop.errors import PlanError
from tinkerloop.loop.futures import background, resolve
from tinkerloop.renderers import Renderer
from tinkerloop.rollouts.advantages import AdvantageFunction, centered
from tinkerloop.rollouts.batch_sampling import (
    BatchBeginning,
    EventLoopThread,
    SampledGroup,
    SamplingOptions,
    sample_batch,
)
from tinkerloop.rollouts.curriculum import Curriculum, Shuffled, checked_state
from tinkerloop.rollouts.delivered import Delivered, account_for, part_of_datums
from tinkerloop.rollouts.environments import Environment
from tinkerloop.rollouts.episodes import FailurePolicy, Limits, check_sampling_params
from tinkerloop.rollouts.option_checks import (
    check_functions,
    check_loss,
    check_methods,
    check_named_options,
    check_numbers,
    check_policies,
    check_tasks,
)
from tinkerloop.rollouts.policy_datum import Weighting
from tinkerloop.rollouts.rollout_log import RolloutLog
from tinkerloop.rollouts.trajectory import Group

_NO_LIMITS, _RAISE = Limits(), FailurePolicy()


class Rollouts:
    """Batches of policy datums that are sampled from the weights in training. They implement `SampledBatches`.

    Sampling runs in a thread of its own; only `next` waits for it, and only for the batch that is due. An error of an
    episode is raised when its batch is due.

    Args:
        client: the training client of the loop; a loop with another one is rejected.
        tasks: the tasks, in any form that `environment` takes.
        environment: function, plain or `async`, from a task and a random seed to the environment of one episode. All
            episodes of a group get the same seed.
        renderer: the chat format of the model.
        groups: the number of groups in a batch. A group is for one task.
        group_size: the number of episodes in a group, which differ in the seeds of their samples only. At least 2 for
            advantages that compare the episodes of a group, as the default does.
        sampling_params: the parameters of each sample, without a seed; `max_tokens` limits one reply.
        log: the path of `rollouts.jsonl`, in the folder of the run.
        curriculum: which task each group is for. The default draws each task once per epoch, shuffled.
        advantages: function from a group to the advantages of its trajectories.
        loss_fn: the policy loss that the datums are for. A loop with another built-in loss is rejected.
        weighting: what counts equally in a step with `normalize="token"`: each "token", each "sequence" (trajectory) or
            each "group". The last two are rejected with `normalize="example"`, which would undo them.
        staleness: how many batches sampling is ahead of training. 0: each batch is sampled from the newest weights.
        substeps: in how many consecutive parts, with near-equal numbers of datums, a batch is delivered. The loop
            makes at least one step from each.
        constant_groups: "drop" leaves out a group all of whose advantages are 0, for example because all rewards are
            equal; "keep" trains on it.
        further_tasks: how many further groups may be sampled for a batch, each in place of one that is left out; None:
            as many as `groups`. If there are still fewer than `groups` groups, the batch is delivered with these.
        seed: the random seed of tasks, environments and samples.
        limits: after how many turns or tokens an episode ends.
        on_failure: what happens if an environment fails.
        reference: a client whose log-probabilities of the sampled tokens are stored, for `reference_kl` or
            `reverse_kl`; or the future of one, as `service.create_sampling_client(...)` returns it.
        max_in_flight: the largest number of requests for samples at the same time; None: no limit.

    Raises:
        PlanError: an argument is invalid.
    """

    def __init__(
        self,
        client: TrainingClientLike,
        tasks: Sequence[Any],
        environment: Callable[[Any, int], Environment | Awaitable[Environment]],
        renderer: Renderer,
        *,
        groups: int,
        group_size: int,
        sampling_params: tinker.SamplingParams,
        log: str | Path,
        curriculum: Curriculum | None = None,
        advantages: AdvantageFunction = centered,
        loss_fn: str = "importance_sampling",
        weighting: Weighting = "token",
        staleness: int = 0,
        substeps: int = 1,
        constant_groups: Literal["drop", "keep"] = "drop",
        further_tasks: int | None = None,
        seed: int = 0,
        limits: Limits = _NO_LIMITS,
        on_failure: FailurePolicy = _RAISE,
        reference: SamplingClientLike | Future[SamplingClientLike] | None = None,
        max_in_flight: int | None = None,
    ):
        check_numbers(
            seed, groups=groups, group_size=group_size, staleness=staleness, substeps=substeps,
            further_tasks=further_tasks, max_in_flight=max_in_flight,
        )  # fmt: skip
        # numbers of numpy, which JSON does not have, become Python's
        groups, group_size, staleness, substeps, seed = map(int, (groups, group_size, staleness, substeps, seed))
        further_tasks = groups if further_tasks is None else int(further_tasks)
        check_named_options(constant_groups=constant_groups, weighting=weighting, loss_fn=loss_fn)
        check_tasks(tasks)
        check_functions(environment, advantages, group_size=group_size, has_reference=reference is not None)
        check_sampling_params(sampling_params)
        check_policies(limits, on_failure)
        client, reference = resolve(client), cast("SamplingClientLike | None", resolve(reference))
        check_methods(client=client, renderer=renderer, reference=reference)
        self._client, self._curriculum, self._max_in_flight = client, curriculum or Shuffled(), max_in_flight
        self._staleness, self._substeps = staleness, substeps
        self._identity: Cursor = {
            "kind": "rollouts", "tasks": len(tasks), "fingerprint": fingerprint_of(tasks), "seed": seed,
            "curriculum": type(self._curriculum).__name__, "groups": groups, "group_size": group_size,
            "staleness": staleness, "substeps": substeps, "constant_groups": constant_groups,
            "further_tasks": further_tasks,
        }  # fmt: skip
        self._options = SamplingOptions(
            tasks=tasks,
            environment=environment,
            renderer=renderer,
            sampling_params=sampling_params,
            groups=groups,
            group_size=group_size,
            further_tasks=further_tasks,
            seed=seed,
            limits=limits,
            on_failure=on_failure,
            reference=reference,
            advantages=advantages,
            loss_fn=loss_fn,
            weighting=weighting,
            drop_constant=constant_groups == "drop",
        )
        self._log = RolloutLog(log)
        self._thread: EventLoopThread | None = None
        self._boundary: int | None = None
        # The newest boundary from which a batch was begun, and the future of its snapshot.
        self._snapshot: tuple[int, concurrent.futures.Future[SamplingClientLike]] | None = None
        self._resumed = False
        self._move_to(0, 0, checked_state(self._curriculum.begin(len(tasks), groups, seed)))
        self.delivered: Delivered | None = None
        """The batch of rollouts that the newest batch of datums is from; None before the first."""
        self._since_boundary: list[Delivered] = []

    def __iter__(self) -> Iterator[Sequence[tinker.Datum]]:
        return self

    def __next__(self) -> Sequence[tinker.Datum]:
        if self._thread is None:
            self._open()
        # The requests of batch b + k are made before anything waits for batch b.
        self._begin_up_to(self._batch + self._staleness)
        self._log_up_to(self._batch)
        groups = self._sampled[self._batch].result()
        part = part_of_datums(groups, self._substep, self._substeps)
        self.delivered = account_for(
            self._batch, groups, self._options.groups, substep=self._substep, begun_at=self._begun_at.get(self._batch)
        )
        self._since_boundary.append(self.delivered)
        if self._substep + 1 < self._substeps:
            self._substep += 1
        else:
            # Draws of later batches still use the state before, so the curriculum gets a copy.
            state = self._curriculum.update(copy.deepcopy(self._state), self.delivered.groups)
            self._state = checked_state(state)
            del self._sampled[self._batch]
            self._begun_at.pop(self._batch, None)
            self._batch, self._substep = self._batch + 1, 0
        return part

    @property
    def delivered_in_step(self) -> Sequence[Delivered]:
        """One entry for each batch of datums since the newest boundary: several with gradient accumulation."""
        return tuple(self._since_boundary)

    @property
    def cursor(self) -> Cursor:
        return {**self._identity, "batch": self._batch, "substep": self._substep, "state": self._state}

    def seek(self, cursor: Any) -> None:
        batch, substep = check_cursor(cursor, self._identity, ("batch", "substep"))
        if check_state := getattr(self._curriculum, "check_state", None):
            check_state(cursor["state"])
        self.close()
        self._move_to(batch, substep, cursor["state"])
        self._resumed = True

    def check_training(self, client: TrainingClientLike, loss_fn: str | CustomLoss, normalize: str) -> None:
        """Check that a loop trains these datums as they are meant. `Loop` calls it when it is created.

        A custom loss, and one that only the service knows, are accepted.

        Raises:
            PlanError: `client` is not the one whose weights are sampled, `loss_fn` is another built-in loss, or
                `normalize` undoes the weighting.
        """
        if client is not self._client:
            raise PlanError(
                "the rollouts sample from the weights of another training client than the one that the loop trains, so "
                "they would never see a step: pass the same client to both"
            )
        check_loss(self._options.loss_fn, self._options.weighting, loss_fn, normalize)

    def at_boundary(self, step: int) -> None:
        self._boundary, self._since_boundary = step, []

    def settle(self, cursor: Any) -> None:
        # What was begun since then, with the weights of the cursor's boundary, can be begun again.
        begun = self._begun_before(cursor["batch"], cursor["substep"])
        self._log_up_to(min(begun, self._next_to_begin) - 1)

    def close(self) -> None:
        """Cancel what is being sampled, and end the thread. Only after a `seek` are there further batches."""
        if self._thread is not None:
            self._thread.stop()
            self._thread, self._resumed = None, True

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={self._identity[name]}" for name in ("groups", "group_size", "staleness"))
        return f"Rollouts({self._identity['tasks']:,} tasks, {options}, at batch {self._batch:,})"

    # --- the invariants ---

    def _move_to(self, batch: int, substep: int, state: Any) -> None:
        """Set the position. `state` is that of the curriculum before batch `batch` was delivered."""
        self._batch, self._substep, self._state = batch, substep, state
        self._sampled: dict[int, concurrent.futures.Future[list[SampledGroup]]] = {}
        self._begun_at: dict[int, float] = {}
        self._next_to_begin = self._next_to_log = batch
        self._settled = 0  # batches before this one must be in the log
        self._logged: Mapping[int, Mapping[int, Group]] = {}  # groups in the log, by batch and slot

    def _begun_before(self, batch: int, substep: int) -> int:
        """Return how many batches had been begun when the cursor had this position."""
        if (batch, substep) == (0, 0):
            return 0
        return batch + self._staleness + (substep > 0)

    def _open(self) -> None:
        """Prepare the log and start the thread. Not done earlier, so that a run that does not begin changes no log."""
        if self._sampled:
            raise PlanError("these rollouts were closed: create new ones, and call seek(cursor) to go on from a record")
        if self._resumed:
            # The first batch begun here keeps its groups in the log: their weights are those of this boundary too.
            self._settled = self._begun_before(self._batch, self._substep)
            self._logged = self._log.rewind(self._batch, self._batch + self._staleness + 1, self._options.groups)
        else:
            self._log.begin()
        self._in_flight = None if self._max_in_flight is None else asyncio.Semaphore(self._max_in_flight)
        self._thread = EventLoopThread("tinkerloop-rollouts")

    def _begin_up_to(self, last: int) -> None:
        """Begin the batches up to `last` that were not begun yet."""
        assert self._thread is not None
        while self._next_to_begin <= last:
            batch = self._next_to_begin
            # The weights of a settled batch do not exist any more: all its groups come from the log.
            snapshot = None
            if batch >= self._settled:
                snapshot = self._take_snapshot()
                self._begun_at[batch] = time.perf_counter()
            draw = partial(self._curriculum.draw, self._state, batch)
            beginning = BatchBeginning(batch, self._known_boundary(), snapshot, draw, self._logged.get(batch, {}))
            self._sampled[batch] = self._thread.submit(sample_batch(self._options, beginning, self._in_flight))
            self._next_to_begin += 1

    def _log_up_to(self, last: int) -> None:
        """Wait for the batches up to `last`, in order, and write what is not in the log yet."""
        while self._next_to_log <= last:
            batch = self._next_to_log
            groups = [one.group for one in self._sampled[batch].result()]
            in_log = self._logged.get(batch, {})
            self._log.append(group for group in groups if group.slot not in in_log)
            self._next_to_log += 1

    def _take_snapshot(self) -> concurrent.futures.Future[SamplingClientLike]:
        """Return the future of a client that samples from the weights of this boundary: one for each boundary."""
        boundary = self._known_boundary()
        if self._snapshot is None or self._snapshot[0] != boundary:
            # The request is made here, after those of the steps before this boundary and before those of the next step.
            # Its result is waited for elsewhere.
            self._snapshot = boundary, background(resolve, self._client.save_weights_and_get_sampling_client())
        return self._snapshot[1]

    def _known_boundary(self) -> int:
        if self._boundary is None:
            raise PlanError(
                "rollouts do not know which boundary's weights they are sampled from: pass them to a Loop, or call "
                "at_boundary(step) before the first batch of each step"
            )
        return self._boundary

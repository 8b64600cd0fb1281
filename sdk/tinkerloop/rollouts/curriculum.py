"""Curricula: which task each group of rollouts is sampled for.

A curriculum consists of pure functions of a JSON-serializable state. Its state is in the cursor of the rollouts, so a
resumed run draws the same tasks. A task is drawn as its number in the sequence of tasks. `Shuffled` draws each task
once per epoch; `WeightedParts` draws from several parts of the tasks in fixed proportions. A curriculum of your own can
depend on the rewards:

    class Levels(Shuffled):  # the tasks are sorted by difficulty: first the easiest ten, then ten more, and so on
        def begin(self, tasks, groups, seed):
            return {**super().begin(min(10, tasks), groups, seed), "all": tasks}

        def update(self, state, groups):
            solved = np.concatenate([group.rewards for group in groups]).mean() > 0.9
            return {**state, "tasks": min(state["tasks"] + 10 * int(solved), state["all"])}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, Protocol

from tinkerloop.data.batches import check_cursor
from tinkerloop.data.permutation import shuffled_positions
from tinkerloop.errors import PlanError
from tinkerloop.number_checks import check_finite_number, check_whole
from tinkerloop.rollouts.trajectory import Group


class Curriculum(Protocol):
    """The functions that decide which tasks are drawn. They depend on their arguments alone, and change none of them.

    A batch of rollouts has `groups` slots. Further slots, with higher numbers, replace groups without anything to train
    on. With staleness k, the tasks of batch b are drawn from the state after the updates of batches 0 to b - k - 1.

    If tasks are drawn by values that are not in the state, such as arguments of the class, a run could be resumed with
    others. A curriculum may therefore have a method `check_state(state)`, which `Rollouts.seek` calls with the state of
    the cursor, and which raises an error if the state is not one of this curriculum.
    """

    def begin(self, tasks: int, groups: int, seed: int) -> Any:
        """Return the state before the first batch, for a number of tasks, of groups in a batch, and a random seed."""
        ...

    def draw(self, state: Any, batch: int, slot: int) -> int:
        """Return the number of the task for a slot of a batch."""
        ...

    def update(self, state: Any, groups: Sequence[Group]) -> Any:
        """Return the state after a batch was delivered. `groups` are all its groups, also those not trained on."""
        ...


class Shuffled:
    """Draw each task once per epoch, in another order in each epoch. Further slots get random tasks."""

    def begin(self, tasks: int, groups: int, seed: int) -> Mapping[str, int]:
        return {"tasks": tasks, "groups": groups, "seed": seed}

    def draw(self, state: Mapping[str, int], batch: int, slot: int) -> int:
        tasks, groups, seed = state["tasks"], state["groups"], state["seed"]
        if slot >= groups:
            return _further(seed, batch, slot).randrange(tasks)
        return _shuffled(f"{seed}/tasks", tasks, batch * groups + slot)

    def update(self, state: Mapping[str, int], groups: Sequence[Group]) -> Mapping[str, int]:
        return state


class WeightedParts:
    """Draw from consecutive parts of the tasks in fixed proportions, such as 3 : 1 for the tasks of two files.

    After t draws, a part has been drawn share * t times, to within one or two. Each part is shuffled as by `Shuffled`.
    Further slots get random tasks, in the same proportions on average.

        tasks = [*easy, *hard]
        curriculum = WeightedParts([len(easy), len(hard)], weights=[3, 1])

    Args:
        sizes: the number of tasks in each part. Together they are all tasks.
        weights: a positive number for each part. The share of a part is its weight divided by the sum of all weights.

    Raises:
        PlanError: an argument is invalid.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float]):
        if not len(sizes) or len(sizes) != len(weights):
            raise PlanError(f"every part needs a size and a weight, got {sizes=} and {weights=}")
        for size, weight in zip(sizes, weights, strict=True):
            check_whole("the size of a part", size, 1)
            check_finite_number("the weight of a part", weight)
            if weight <= 0:
                raise PlanError(f"weights must be positive, got {weights}")
        self._sizes = tuple(map(int, sizes))
        check_finite_number("the sum of the weights", sum(weights))
        self._shares = [float(weight / sum(weights)) for weight in weights]
        self._taken = [0] * len(sizes)
        self._drawn: list[tuple[int, int]] = []  # (part, its draws before), for each position so far

    def begin(self, tasks: int, groups: int, seed: int) -> Mapping[str, Any]:
        if sum(self._sizes) != tasks:
            raise PlanError(f"the parts have {self._sizes} tasks, {sum(self._sizes)} together, but there are {tasks}")
        return {"groups": groups, "seed": seed, "sizes": list(self._sizes), "shares": self._shares}

    def draw(self, state: Mapping[str, Any], batch: int, slot: int) -> int:
        seed, groups = state["seed"], state["groups"]
        if slot >= groups:
            random = _further(seed, batch, slot)
            (part,) = random.choices(range(len(self._sizes)), self._shares)
            return sum(self._sizes[:part]) + random.randrange(self._sizes[part])
        part, index = self._at(batch * groups + slot)
        return sum(self._sizes[:part]) + _shuffled(f"{seed}/tasks/{part}", self._sizes[part], index)

    def update(self, state: Mapping[str, Any], groups: Sequence[Group]) -> Mapping[str, Any]:
        return state

    def check_state(self, state: Any) -> None:
        """Raise DataError if the state is that of other sizes or weights."""
        check_cursor(state, {"sizes": list(self._sizes), "shares": self._shares}, ())

    def _at(self, position: int) -> tuple[int, int]:
        """Return the part that is drawn at `position`, and how many times it was drawn before."""
        while len(self._drawn) <= position:
            # After this draw, each part should have been drawn (draws so far + 1) * share times.
            below = [(len(self._drawn) + 1) * s - n for s, n in zip(self._shares, self._taken, strict=True)]
            part = max(range(len(below)), key=below.__getitem__)
            self._drawn.append((part, self._taken[part]))
            self._taken[part] += 1
        return self._drawn[position]


def checked_state(state: Any) -> Any:
    """Return the state of a curriculum, after checking that JSON holds it without loss.

    Raises:
        PlanError: it does not.
    """
    try:
        unchanged = json.loads(json.dumps(state)) == state
    except (TypeError, ValueError):
        unchanged = False
    if not unchanged:
        raise PlanError(
            "the state of a curriculum must consist of numbers, strings, booleans, None, lists, and dicts whose keys "
            f"are strings, because it is stored as JSON; got {state!r}"
        )
    return state


def _shuffled(key: str, n: int, position: int) -> int:
    epoch, row = divmod(position, n)
    return int(shuffled_positions(f"{key}/{epoch}", n, row, row + 1)[0])


def _further(seed: int, batch: int, slot: int) -> Random:
    return Random(f"{seed}/further tasks/{batch}/{slot}")

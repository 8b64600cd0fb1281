"""A run with rollouts that is killed anywhere and resumed ends as one that was not."""

import itertools
from contextlib import suppress
from dataclasses import asdict, dataclass
from random import Random

import numpy as np
import pytest
import tinker

from tinkerloop.callbacks import Checkpoint
from tinkerloop.loop import Callback, Checkpoints, Jsonl, Loop, open_training_client
from tinkerloop.rollouts import Rollouts, group_datums, one_turn
from tinkerloop.rollouts.advantages import centered
from tinkerloop.rollouts.rollout_log import read_rollouts
from tinkerloop.testing import OrderedService

TASKS = [f"task {number}" for number in range(12)]
STEPS = 6


class Killed(BaseException):
    """Not an Exception, so that nothing can handle it, as nothing handles kill -9."""


@dataclass(frozen=True)
class Case:
    staleness: int
    substeps: int
    save_every: int
    ahead: int = 1


class Levels:
    """A curriculum whose draws depend on all rewards so far."""

    def begin(self, tasks, groups, seed):
        return {"seed": seed, "tasks": tasks, "delivered": 0, "history": []}

    def draw(self, state, batch, slot):
        return Random(f"{state['seed']}/{state['history']}/{batch}/{slot}").randrange(state["tasks"])

    def update(self, state, groups):
        state["delivered"] += 1
        state["history"].append([round(float(group.rewards.sum()), 3) for group in groups])
        return state


async def score(reply):
    return sum(reply.ids) % 3 / 2  # groups of equal rewards are frequent


async def environment(task, seed):
    return one_turn([{"role": "user", "content": f"{task}, seed {seed}"}], score)


class Trained(Callback):
    """Notes the datums of each step. A step that is trained again, from an earlier record, replaces what was noted."""

    def __init__(self, steps):
        self.steps = steps

    def on_plan(self, plan):
        self.steps[plan.step] = [content(datum) for datum in plan.datums]
        return plan


def content(datum):
    inputs = sorted(datum.loss_fn_inputs.items())
    return (datum.model_input.to_ints(), [(name, value.to_numpy().tolist()) for name, value in inputs])


def train(folder, service, renderer, case, kill_at=None, trained=None, steps=STEPS):
    """One process of the run: from the newest record to the end, or until operation number `kill_at`."""
    count, dead = itertools.count(), []

    def fault(operation):
        if next(count) == kill_at or dead:  # nothing of a process goes on after it was killed, in no thread
            dead.append(True)
            raise Killed(operation)

    service.fault = fault
    checkpoints = Checkpoints(folder)
    record = checkpoints.latest()
    client = open_training_client(service, record, base_model="unigram")
    rollouts = Rollouts(
        client,
        TASKS,
        environment,
        renderer,
        groups=2,
        group_size=2,
        sampling_params=tinker.SamplingParams(max_tokens=3),
        log=folder / "rollouts.jsonl",
        curriculum=Levels(),
        staleness=case.staleness,
        substeps=case.substeps,
        further_tasks=9,
        seed=5,
    )
    loop = Loop(
        client,
        rollouts,
        steps=steps,
        callbacks=[Trained({} if trained is None else trained), Checkpoint(every=case.save_every, keep_last=2)],
        sinks=[Jsonl(folder / "metrics.jsonl")],
        checkpoints=checkpoints,
        record=record,
        loss_fn="importance_sampling",
        optim=tinker.AdamParams(learning_rate=0.1),
        ahead=case.ahead,
    )
    try:
        return loop.run(), client, next(count)
    finally:
        rollouts.close()


def outcome(folder, summary, client):
    """All that must not depend on interruptions: every bit of it but where the run and its states are saved."""
    own = {"path": "", "run": "", "folder": ""}
    state = client.state
    return {
        "rollouts": (folder / "rollouts.jsonl").read_bytes(),
        "rows": (folder / "metrics.jsonl").read_bytes(),
        "records": [asdict(record) | own for record in Checkpoints(folder).records()],
        "weights": [array.tobytes() for array in (state.logits, state.first, state.second)],
        "summary": summary,
        "updates": state.updates,
    }


def assert_log_is_what_was_trained(folder, case, trained):
    groups = list(read_rollouts(folder / "rollouts.jsonl"))
    places = [(group.batch, group.slot) for group in groups]
    assert places == [(b, slot) for b, of in itertools.groupby(places, lambda p: p[0]) for slot, _ in enumerate(of)]
    assert sorted(trained) == list(range(STEPS))
    for batch in range(STEPS // case.substeps):
        logged = [group for group in groups if group.batch == batch]
        boundary = max(batch - case.staleness, 0) * case.substeps
        assert {one.boundary for group in logged for one in group.trajectories} == {boundary}
        kept = [group for group in logged if np.ptp(group.rewards)]
        expected = [content(datum) for group in kept for datum in group_datums(group, centered(group))]
        steps = range(batch * case.substeps, (batch + 1) * case.substeps)
        assert [datum for step in steps for datum in trained[step]] == expected


CASES = [Case(*values) for values in itertools.product((0, 1, 3), (1, 2), (1, 3))]


def name(case):
    return f"staleness{case.staleness}-substeps{case.substeps}-save{case.save_every}-ahead{case.ahead}"


def check_kills(case, renderer, tmp_path, kills):
    whole = tmp_path / "whole"
    whole.mkdir()
    trained = {}
    summary, client, operations = train(whole, OrderedService(268), renderer, case, trained=trained)
    expected = outcome(whole, summary, client)
    assert_log_is_what_was_trained(whole, case, trained)
    assert operations > 40
    for kill_at in kills(operations):
        folder = tmp_path / str(kill_at)
        folder.mkdir()
        service = OrderedService(268)
        with pytest.raises(Killed):
            train(folder, service, renderer, case, kill_at)
        summary, client, _ = train(folder, service, renderer, case)
        assert outcome(folder, summary, client) == expected, f"killed at operation {kill_at}"


@pytest.fixture(autouse=True)
def quick_files(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # a killed process loses no written page


def check_kills_without_reproducible_sampling(case, renderer, tmp_path, kills):
    """The log must be what the run trained on, once; and its groups are of the weights of their boundary."""
    *_, operations = train(tmp_path, OrderedService(268, reproducible=False), renderer, case)
    for kill_at in kills(operations):
        folder = tmp_path / str(kill_at)
        folder.mkdir()
        service, trained = OrderedService(268, reproducible=False), {}
        with suppress(Killed):  # another run may have fewer operations
            train(folder, service, renderer, case, kill_at, trained)
        _, client, _ = train(folder, service, renderer, case, trained=trained)
        assert client.state.updates == STEPS
        assert_log_is_what_was_trained(folder, case, trained)


def some(operations):
    return range(operations - 1, 0, -operations // 3)


@pytest.mark.parametrize("case", CASES, ids=name)
def test_killed_at_some_operations(case, renderer, tmp_path):
    check_kills(case, renderer, tmp_path, some)


@pytest.mark.parametrize("case, steps", [(Case(3, 1, 6), 3), (Case(1, 2, 6), 3), (Case(1, 1, 6), 0)])
def test_more_steps_extend_a_finished_run(case, steps, renderer, tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "extended").mkdir()
    service = OrderedService(268)
    summary, client, _ = train(tmp_path / "whole", service, renderer, case)
    whole = outcome(tmp_path / "whole", summary, client)
    train(tmp_path / "extended", service, renderer, case, steps=steps)
    summary, client, _ = train(tmp_path / "extended", service, renderer, case)
    extended = outcome(tmp_path / "extended", summary, client)
    assert extended | {"records": extended["records"][-1:]} == whole


@pytest.mark.parametrize("case", CASES[::2], ids=name)
def test_killed_on_a_service_that_ignores_seeds(case, renderer, tmp_path):
    check_kills_without_reproducible_sampling(case, renderer, tmp_path, some)


@pytest.mark.soak
@pytest.mark.parametrize("case", CASES, ids=name)
def test_killed_at_every_operation(case, renderer, tmp_path):
    check_kills(case, renderer, tmp_path, range)


@pytest.mark.soak
@pytest.mark.parametrize("case", CASES, ids=name)
def test_killed_at_every_operation_on_a_service_that_ignores_seeds(case, renderer, tmp_path):
    check_kills_without_reproducible_sampling(case, renderer, tmp_path, range)

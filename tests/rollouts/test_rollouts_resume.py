"""A run with rollouts that is killed anywhere and resumed ends as one that was not."""

import itertools
from dataclasses import dataclass
from random import Random

import numpy as np
import pytest
import tinker

from tinkerloop.callbacks import Checkpoint
from tinkerloop.loop import Callback, Checkpoints, Jsonl, Loop, open_training_client
from tinkerloop.rollouts import Rollouts, group_datums, one_turn
from tinkerloop.rollouts.advantages import centered
from tinkerloop.rollouts.rollout_log import read_rollouts
from tinkerloop.testing import OrderedService, check_loop
from tinkerloop.testing.loop_checks import outcome, run_until

TASKS = [f"task {number}" for number in range(12)]
STEPS = 6


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


def train(folder, service, renderer, case, trained=None, steps=STEPS):
    """One process of the run: from the newest record to the end."""
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
        return loop.run()
    finally:
        rollouts.close()


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


def small_service(reproducible=True):
    return OrderedService(268, reproducible=reproducible)


def check_kills(case, renderer, tmp_path, kills):
    trained = {}
    train(tmp_path, small_service(), renderer, case, trained)
    assert_log_is_what_was_trained(tmp_path, case, trained)
    whole = check_loop(
        lambda service, folder: train(folder, service, renderer, case), service=small_service, kills=kills
    )
    assert whole["rollouts.jsonl"]


def check_kills_without_reproducible_sampling(case, renderer, tmp_path, kills):
    """The log must be what the run trained on, once; and its groups are of the weights of their boundary."""
    _, operations = run_until(lambda s, folder: train(folder, s, renderer, case), small_service(False), tmp_path)
    for kill_at in kills(operations):
        folder = tmp_path / str(kill_at)
        folder.mkdir()
        service, trained = small_service(False), {}

        def make_run(service, folder, trained=trained):
            train(folder, service, renderer, case, trained)

        run_until(make_run, service, folder, kill_at)  # another run may have fewer operations
        run_until(make_run, service, folder)
        assert service.clients[-1].state.updates == STEPS
        assert_log_is_what_was_trained(folder, case, trained)


@pytest.fixture(autouse=True)
def quick_files(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda descriptor: None)  # a killed process loses no written page


def some(operations):
    return range(operations - 1, 0, -operations // 3)


@pytest.mark.parametrize("case", CASES, ids=name)
def test_killed_at_some_operations(case, renderer, tmp_path):
    check_kills(case, renderer, tmp_path, some)


@pytest.mark.parametrize("case, steps", [(Case(3, 1, 6), 3), (Case(1, 2, 6), 3), (Case(1, 1, 6), 0)])
def test_more_steps_extend_a_finished_run(case, steps, renderer, tmp_path):
    def ended(folder, steps=STEPS):
        run, _ = run_until(lambda s, f: train(f, s, renderer, case, steps=steps), service, tmp_path / folder)
        return outcome(tmp_path / folder, run)

    (tmp_path / "whole").mkdir()
    (tmp_path / "extended").mkdir()
    service = small_service()
    whole = ended("whole")
    ended("extended", steps)
    extended = ended("extended")
    assert extended | {"checkpoints.jsonl": extended["checkpoints.jsonl"][-1:]} == whole


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

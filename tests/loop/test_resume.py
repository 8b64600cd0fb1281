"""A run that is killed anywhere and resumed ends as one that was not."""

import itertools
from dataclasses import dataclass

import pytest

from tinkerloop.callbacks import (
    Checkpoint,
    EarlyStop,
    Evaluate,
    GradientAccumulation,
    LRSchedule,
    StopOnNonFinite,
    StopWhen,
    nll,
)
from tinkerloop.loop import Callback, Checkpoints, Jsonl, Log, Loop, open_training_client
from tinkerloop.loop.schedules import cosine
from tinkerloop.testing import OrderedService, check_loop
from tinkerloop.testing.loop_checks import outcome, run_until


@dataclass
class Feedback:
    factor: float = 1.0
    saves: int = 0


class LossDrivenRate(Callback):
    """Decides by results: scales the learning rate by what the last delivered loss was."""

    def __init__(self):
        self.state = Feedback()

    def on_plan(self, plan):
        return plan.with_optim(learning_rate=plan.optim.learning_rate * self.state.factor)

    def on_step(self, result):
        self.state.factor = 0.5 + result.loss / 4
        return Log({"factor": self.state.factor})

    def on_save(self, record):
        self.state.saves += 1
        return Log({"saves": self.state.saves})


@dataclass(frozen=True)
class Case:
    ahead: int
    save_every: int
    accumulate: int
    patience: int


CASES = [Case(*values) for values in itertools.product((0, 1, 2, 5), (2, 3), (1, 3), (1, 9))]
# Each value of a field with each value of every other field. The other cases are soak tests.
PAIRS = [
    Case(0, 2, 1, 1), Case(0, 3, 3, 9), Case(1, 2, 1, 9), Case(1, 3, 3, 1),
    Case(2, 2, 3, 1), Case(2, 3, 1, 9), Case(5, 2, 3, 9), Case(5, 3, 1, 1),
]  # fmt: skip


def train(folder, service, batches, case):
    """One process of the run: from the newest record to the end."""
    checkpoints = Checkpoints(folder)
    record = checkpoints.latest()
    client = open_training_client(service, record, base_model="unigram")
    loop = Loop(
        client,
        batches,
        steps=12 // case.accumulate,
        callbacks=[
            LRSchedule(cosine(2.0, 0.0, 12)),
            LossDrivenRate(),
            GradientAccumulation(case.accumulate, micro_batch=3),
            Evaluate("test", nll(batches[0], batch_size=2), every=2),
            Checkpoint(every=case.save_every, keep_last=2),
            EarlyStop("test/nll", patience=case.patience, min_delta=0.4),
            StopOnNonFinite(),
            StopWhen("loss", above=2.5, patience=99),
        ],
        sinks=[Jsonl(folder / "metrics.jsonl")],
        checkpoints=checkpoints,
        record=record,
        ahead=case.ahead,
    )
    return loop.run()


def small_service():
    return OrderedService(20)


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=() if case in PAIRS else pytest.mark.soak) for case in CASES],
    ids=lambda c: f"ahead{c.ahead}-save{c.save_every}-acc{c.accumulate}-p{c.patience}",
)
def test_killed_at_every_operation(case, batches):
    whole = check_loop(lambda service, folder: train(folder, service, batches, case), service=small_service)
    assert len(whole["metrics.jsonl"]) > 4
    assert whole["checkpoints.jsonl"]


def test_killed_twice(batches, tmp_path):
    case = Case(ahead=1, save_every=2, accumulate=1, patience=9)

    def make_run(service, folder):
        return train(folder, service, batches, case)

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    expected = outcome(whole, run_until(make_run, small_service(), whole)[0])
    service = small_service()
    for kill_at in (30, 25):
        assert run_until(make_run, service, broken, kill_at)[0] is None
    assert outcome(broken, run_until(make_run, service, broken)[0]) == expected


def test_every_batch_is_trained_exactly_once(batches, tmp_path):
    """The weights cannot tell this from twice as much of half: count the updates of each resumed process too."""
    case = Case(ahead=2, save_every=3, accumulate=1, patience=9)
    service = small_service()
    run_until(lambda service, folder: train(folder, service, batches, case), service, tmp_path, kill_at=33)
    service.fault = None
    train(tmp_path, service, batches, case)
    assert service.clients[-1].state.updates == 12


def test_a_complete_run_does_nothing_more(batches, tmp_path):
    case = Case(ahead=1, save_every=2, accumulate=1, patience=9)
    service = OrderedService(20)
    train(tmp_path, service, batches, case)
    done = list(service.operations)
    summary = train(tmp_path, service, batches, case)
    assert (summary.step, summary.reason, service.operations) == (12, "steps reached", done)


def extend(folder, service, batches, steps, callbacks=()):
    checkpoints = Checkpoints(folder)
    record = checkpoints.latest()
    client = open_training_client(service, record, base_model="unigram")
    loop = Loop(client, batches, steps=steps, callbacks=callbacks, checkpoints=checkpoints, record=record)
    return loop.run(), client


def test_more_steps_extend_a_finished_run(batches, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    service = OrderedService(20)
    _, whole = extend(tmp_path / "a", service, batches, 10)
    extend(tmp_path / "b", service, batches, 4)
    _, extended = extend(tmp_path / "b", service, batches, 10)
    assert extended.state.logits.tobytes() == whole.state.logits.tobytes()


def impatient(batches, patience):
    return [
        Evaluate("test", nll(batches[0]), every=1),
        EarlyStop("test/nll", patience=patience, min_delta=10.0),
    ]


def test_asking_for_fewer_steps_than_were_done_trains_nothing(batches, tmp_path):
    service = OrderedService(vocab_size=20)
    checkpoints = Checkpoints(tmp_path)
    Loop(service.create_lora_training_client(), batches, steps=6, checkpoints=checkpoints).run()
    record = checkpoints.latest()
    client = open_training_client(service, record)
    summary = Loop(client, batches, steps=4, checkpoints=checkpoints, record=record).run()
    assert (summary.step, summary.reason) == (6, "steps reached")
    assert checkpoints.records() == [record]


def test_a_stopped_run_stays_stopped(batches, tmp_path):
    service = OrderedService(20)
    first, _ = extend(tmp_path, service, batches, 12, impatient(batches, 2))
    again, _ = extend(tmp_path, service, batches, 12, impatient(batches, 2))
    assert first.stopped_early
    assert (again.step, again.reason) == (first.step, first.reason)


def test_more_patience_continues_a_stopped_run(batches, tmp_path):
    service = OrderedService(20)
    first, _ = extend(tmp_path, service, batches, 12, impatient(batches, 2))
    again, _ = extend(tmp_path, service, batches, 12, impatient(batches, 5))
    assert again.step > first.step


def test_resuming_an_older_record_drops_the_later_ones_and_keeps_a_copy(batches, tmp_path):
    service = OrderedService(20)
    extend(tmp_path, service, batches, 8, [Checkpoint(every=2)])
    checkpoints = Checkpoints(tmp_path)
    record = checkpoints.at(4)
    client = open_training_client(service, record)
    Loop(client, batches, steps=6, checkpoints=checkpoints, record=record).run()
    assert [r.step for r in checkpoints.records()] == [2, 4, 6]
    assert len((tmp_path / "checkpoints.jsonl.bak").read_text().splitlines()) == 4

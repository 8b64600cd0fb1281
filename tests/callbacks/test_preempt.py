import os
import signal
import threading
from types import SimpleNamespace

import pytest

from tinkerloop.callbacks import Checkpoint, Preempt
from tinkerloop.errors import PlanError
from tinkerloop.loop import Callback, Checkpoints, Loop, open_training_client


class Send(Callback):
    """Sends this process a signal when step `step` is planned, or while a save is in progress."""

    def __init__(self, number, step, times=1):
        self.number, self.step, self.times = number, step, times

    def on_plan(self, plan):
        if plan.step == self.step:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)
        return plan


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_at_the_next_boundary_and_records_it(service, batches, tmp_path, number):
    checkpoints = Checkpoints(tmp_path)
    callbacks = [Preempt(), Send(number, step=2)]
    loop = Loop(service.create_lora_training_client(), batches, callbacks=callbacks, checkpoints=checkpoints)
    summary = loop.run()
    assert (summary.step, summary.reason) == (3, f"received {number.name}")
    assert checkpoints.latest().step == 3


@pytest.fixture
def clock(monkeypatch):
    """Set the clock of Preempt: a list of the times that it reads."""
    times = []
    monkeypatch.setattr("tinkerloop.callbacks.preempt.time", SimpleNamespace(monotonic=lambda: times.pop(0)))
    return times


def test_a_second_signal_interrupts(service, batches, clock):
    clock += [100.0, 101.5]
    callbacks = [Preempt(), Send(signal.SIGINT, step=2, times=2)]
    with pytest.raises(KeyboardInterrupt, match="received SIGINT again"):
        Loop(service.create_lora_training_client(), batches, callbacks=callbacks).run()


def test_a_signal_that_arrives_by_several_ways_is_one(service, batches, tmp_path, clock):
    clock += [100.0, 100.0001, 100.9]
    checkpoints = Checkpoints(tmp_path)
    callbacks = [Preempt(), Send(signal.SIGTERM, step=2, times=3)]
    loop = Loop(service.create_lora_training_client(), batches, callbacks=callbacks, checkpoints=checkpoints)
    assert loop.run().reason == "received SIGTERM"
    assert checkpoints.latest().step == 3


@pytest.mark.parametrize("fails", [False, True])
def test_handlers_are_there_only_while_it_runs_and_put_back(service, batches, fails):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    during = []

    class Look(Callback):
        def on_step(self, result):
            during.append(signal.getsignal(signal.SIGTERM))
            if fails:
                raise RuntimeError("stop here")

    preempt = Preempt()
    loop = Loop(service.create_lora_training_client(), batches, steps=1, callbacks=[preempt, Look()])
    assert signal.getsignal(signal.SIGTERM) == before[0]
    if fails:
        with pytest.raises(RuntimeError):
            loop.run()
    else:
        loop.run()
    assert during == [preempt._receive]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_signal_during_a_save_leaves_a_record_that_resumes(service, batches, tmp_path):
    def during_save(operation):
        if operation[0] == "save_state" and operation[1].endswith("-000002"):
            os.kill(os.getpid(), signal.SIGTERM)

    service.fault = during_save
    checkpoints = Checkpoints(tmp_path)
    callbacks = [Preempt(), Checkpoint(every=2)]
    loop = Loop(service.create_lora_training_client(), batches, callbacks=callbacks, checkpoints=checkpoints)
    assert loop.run().reason == "received SIGTERM"
    service.fault = None
    record = checkpoints.latest()
    client = open_training_client(service, record)
    again = Loop(client, batches, callbacks=[Preempt()], checkpoints=checkpoints, record=record)
    assert (again.run().step, client.state.updates) == (6, 6)


def test_it_needs_the_main_thread(service, batches):
    errors = []

    def run():
        try:
            Loop(service.create_lora_training_client(), batches, callbacks=[Preempt()]).run()
        except PlanError as error:
            errors.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert "main thread" in errors[0]

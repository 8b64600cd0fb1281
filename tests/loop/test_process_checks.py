"""`check_loop_in_processes`: runs on the embedded engine, in real processes that are killed by SIGKILL."""

from pathlib import Path
from typing import Any

import pytest

from tinkerloop import connect
from tinkerloop.callbacks import Checkpoint, LRSchedule
from tinkerloop.errors import CheckFailedError
from tinkerloop.loop import Checkpoints, Jsonl, Loop, Record, open_training_client
from tinkerloop.loop.schedules import cosine
from tinkerloop.testing import check_loop_in_processes, sample_batches

pytest.importorskip("torch")


def open_service(root: Path) -> Any:
    return connect("local", root=root)


def run(service: Any, folder: Path, used: Any = lambda record: record) -> Any:
    checkpoints = Checkpoints(folder)
    record = checkpoints.latest()
    client = open_training_client(service, record, base_model="tiny", rank=4, seed=1)
    callbacks = [LRSchedule(cosine(1e-2, 0.0, 8)), Checkpoint(every=2)]
    record = record and used(record)
    sinks = [Jsonl(folder / "metrics.jsonl")]
    loop = Loop(client, sample_batches(), callbacks=callbacks, sinks=sinks, checkpoints=checkpoints, record=record)
    return loop.run()


def run_from_the_first_batch(service: Any, folder: Path) -> Any:
    """Resume with the weights of the record, and train again on batches that it has trained on."""
    return run(service, folder, lambda record: Record(**(vars(record) | {"cursor": 0})))


def use_no_service(service: Any, folder: Path) -> None:
    """Do nothing."""


def fail(service: Any, folder: Path) -> None:
    raise ValueError("the program is wrong")


@pytest.mark.slow
def test_a_run_that_resumes_exactly_passes_and_a_mistake_is_found() -> None:
    whole = check_loop_in_processes(run, service=open_service, kills=lambda operations: [operations // 2])
    assert sorted(whole) == ["checkpoints.jsonl", "metrics.jsonl", "summary", "weights"]
    assert len(whole["metrics.jsonl"]) == 6
    with pytest.raises(CheckFailedError, match=r"killed before operation 13 of \d+ .*weights"):
        check_loop_in_processes(run_from_the_first_batch, service=open_service, kills=lambda operations: [13])


@pytest.mark.soak
def test_killed_at_every_operation_a_run_ends_bit_identical() -> None:
    check_loop_in_processes(run, service=open_service, kills=range)


def test_a_run_that_does_not_use_the_service_is_refused() -> None:
    with pytest.raises(CheckFailedError, match="has used no operation"):
        check_loop_in_processes(use_no_service, service=open_service)


def test_an_error_of_the_program_is_shown() -> None:
    with pytest.raises(CheckFailedError, match="ValueError: the program is wrong"):
        check_loop_in_processes(fail, service=open_service)

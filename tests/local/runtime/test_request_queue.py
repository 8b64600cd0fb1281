"""The worker thread of a request queue."""

import asyncio
import multiprocessing
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection

import pytest
import tinker

from tinkerloop.local.runtime.request_future import WORKER_THREADS
from tinkerloop.local.runtime.request_queue import RequestQueue


def test_a_finished_worker_leaves_no_trace_of_its_thread():
    """Thread ids are reused, so a later thread with the same id must not be mistaken for a worker thread."""
    worker = RequestQueue("test")
    ident = worker.submit(threading.get_ident).result()
    assert ident in WORKER_THREADS
    worker.stop()
    worker.abandon()
    assert ident not in WORKER_THREADS


def test_what_was_queued_before_stop_is_executed_even_if_the_interpreter_exits():
    worker, released = RequestQueue("test"), threading.Event()
    worker.submit(released.wait)
    queued = worker.submit(lambda: "saved")
    ended = worker.stop()
    assert not ended.done()
    released.set()
    worker.abandon()  # as called at the exit of the process
    assert (queued.result(), ended.result(), worker.stop()) == ("saved", None, ended)


def test_abandoned_requests_fail_also_beside_a_cancelled_one():
    worker, released = RequestQueue("test"), threading.Event()
    worker.submit(released.wait)
    cancelled, dropped = (worker.submit_grouped("group", None, list) for _ in range(2))
    assert cancelled.cancel()
    leaving = threading.Thread(target=worker.abandon)
    leaving.start()
    with pytest.raises(RuntimeError, match="closed before"):
        dropped.result(timeout=60)
    released.set()
    leaving.join()
    assert worker.stop().done()


def test_lanes_take_turns_and_each_keeps_its_order():
    queue, released, done = RequestQueue("test"), threading.Event(), []
    queue.submit(released.wait)
    for lane, count in (("busy", 4), ("other", 2), ("third", 1)):
        for number in range(count):
            queue.submit(lambda name=f"{lane} {number}": done.append(name), lane)
    released.set()
    queue.stop().result()
    assert done == ["busy 0", "other 0", "third 0", "busy 1", "other 1", "busy 2", "busy 3"]


def test_a_group_is_executed_together_in_all_lanes():
    queue, released = RequestQueue("test"), threading.Event()
    queue.submit(released.wait)
    calls = [queue.submit_grouped("weights", n, echo, n % 3) for n in range(5)]
    other = queue.submit_grouped("others", 9, echo, 1)
    released.set()
    assert [call.result() for call in calls] == [[0, 3, 1, 4, 2]] * 5
    assert other.result() == [9]


def test_a_lane_with_one_call_is_not_delayed_by_more_than_one_call_of_each_other_lane():
    queue, released = RequestQueue("test"), threading.Event()
    queue.submit(released.wait)
    calls = [queue.submit_grouped("weights", n, echo, "busy" if n else "small") for n in range(4)]
    released.set()
    assert [call.result() for call in calls] == [[0, 1], [0, 1], [2, 3], [2, 3]]


def echo(together: Sequence[object]) -> list[list[object]]:
    return [list(together)] * len(together)


def in_forked_child(function: Callable[[], object]) -> str:
    """Call `function` in a forked child process. Return the error that it raised, as text."""

    def run(end: Connection) -> None:
        try:
            end.send(repr(function()))
        except BaseException as error:
            end.send(f"{type(error).__name__}: {error}")

    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=run, args=(there,))
    child.start()
    try:
        assert here.poll(60), "the child hangs"
        text = here.recv()
        child.join(60)
        assert child.exitcode == 0
        return text
    finally:
        child.kill()


def test_a_forked_child_gets_an_error_at_once_and_the_parent_goes_on(service, client, datum):
    released = threading.Event()
    pending = client.apply(lambda state: released.wait())
    sampler = client.save_weights_and_get_sampling_client()
    prompt = tinker.ModelInput.from_ints([1, 2])

    async def wait() -> object:
        return await pending

    calls: list[Callable[[], object]] = [
        lambda: client.forward([datum(0)], "cross_entropy"),
        lambda: sampler.compute_logprobs(prompt),
        lambda: service.create_lora_training_client("tiny", rank=4),
        lambda: pending.result(),
        lambda: asyncio.run(wait()),
        lambda: service.close("success").result(),
    ]
    try:
        for call in calls:
            assert in_forked_child(call).startswith("RequestFailedError: this process")
    finally:
        released.set()
    assert client.forward([datum(0)], "cross_entropy").result().metrics["loss:sum"] > 0
    finished = client.apply(lambda state: 5)
    assert finished.result() == 5
    assert in_forked_child(finished.result) == "5"


def test_an_engine_that_a_child_creates_works_there():
    def compute() -> int:
        return RequestQueue("child").submit(lambda: 7).result()

    RequestQueue("parent").submit(lambda: 1).result()
    assert in_forked_child(compute) == "7"

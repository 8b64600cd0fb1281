"""The worker thread of a request queue."""

import threading

import pytest

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

"""The worker's thread."""

import threading

from tinkerloop.local.futures import WORKERS
from tinkerloop.local.worker import Worker


def test_a_finished_worker_leaves_no_trace_of_its_thread():
    """Thread numbers are used again: an innocent thread must not be taken for a worker's."""
    worker = Worker("test")
    ident = worker.submit(threading.get_ident).result()
    assert ident in WORKERS
    worker.stop()
    worker.abandon()
    assert ident not in WORKERS

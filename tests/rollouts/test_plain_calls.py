"""Plain functions that are called in threads from coroutines."""

import asyncio
import contextvars
import multiprocessing
import threading
import weakref

import pytest

from tests.rollouts.conftest import run
from tinkerloop.rollouts.plain_calls import call_in_thread


def test_calls_wait_at_the_same_time_and_no_more_than_64_of_them():
    together, lock, running, most = threading.Barrier(64, timeout=60), threading.Lock(), 0, 0

    def blocking():
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait()  # broken unless 64 calls wait at the same time
        with lock:
            running -= 1

    async def all_calls():
        await asyncio.gather(*(call_in_thread(blocking) for _ in range(128)))

    run(all_calls())
    assert most == 64


@pytest.mark.parametrize("error", [KeyError("x"), asyncio.CancelledError("x"), SystemExit(3)], ids=repr)
def test_an_error_is_raised_in_the_caller(error):
    def fail():
        raise error

    async def caught():
        try:
            await call_in_thread(fail)
        except BaseException as raised:
            return raised

    assert run(caught()) is error


def test_a_function_has_the_context_variables_of_the_caller():
    name = contextvars.ContextVar("name")

    async def caller(value):
        name.set(value)
        return await call_in_thread(name.get)

    async def callers():
        return await asyncio.gather(*map(caller, range(9)))

    assert run(callers()) == list(range(9))


def test_a_cancelled_call_and_a_closed_event_loop_leave_the_thread_usable():
    release = threading.Event()

    def blocking():
        release.wait(60)
        return 1

    async def cancelled(then):
        call = asyncio.ensure_future(call_in_thread(blocking))
        await asyncio.sleep(0)
        call.cancel()
        await then()

    async def released():
        release.set()
        return await call_in_thread(int, "2")

    run(cancelled(lambda: asyncio.sleep(0)))  # the event loop is closed while the function runs
    run(cancelled(released))
    assert run(call_in_thread(int, "3")) == 3


def test_nothing_of_a_finished_call_is_kept():
    class Reward:
        def __call__(self):
            return 1

    reward, gone = Reward(), threading.Event()
    weakref.finalize(reward, gone.set)
    assert run(call_in_thread(reward)) == 1
    del reward
    assert gone.wait(20)


def in_child():
    assert run(call_in_thread(int, "4")) == 4


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own():
    in_child()
    child = multiprocessing.get_context("fork").Process(target=in_child)
    child.start()
    child.join(60)
    assert child.exitcode == 0

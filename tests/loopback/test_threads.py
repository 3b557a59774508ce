"""What blocks is done in threads: bounded, ended when idle, never waited for."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest

from evloop import EventLoop
from evloop.core.threads import MAX_THREADS
from waiting import DEADLINE_S, run_pass, run_until, wait_until

pytestmark = pytest.mark.one_selector


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What functions wait for in their threads; opened at the end of the test at the latest."""
    event = threading.Event()
    yield event
    event.set()


def our_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "evloop worker"]


def test_a_result_comes_back_as_a_call_in_the_loops_thread(loop):
    came = []

    def add(one: int, other: int) -> int:
        came.append(threading.current_thread())
        return one + other

    def done(result: int) -> None:
        came.append(threading.current_thread())
        came.append(result)
        loop.stop()

    loop.run_in_thread(add, 1, 2, on_done=done)
    assert loop.timers == 0
    loop.run()  # nothing else wakes it up
    assert came[1:] == [threading.current_thread(), 3]
    assert came[0] is not threading.current_thread()


def test_nothing_is_called_before_it_returns(loop, gate):
    done = []
    loop.run_in_thread(int, on_done=done.append)
    wait_until(lambda: not our_threads())
    assert done == []
    run_pass(loop)
    assert done == [0]


def test_an_error_comes_back(loop):
    errors, results = [], []
    loop.run_in_thread(int, "x", on_done=results.append, on_error=errors.append)
    loop.run_in_thread(sys.exit, 7, on_error=errors.append)
    run_until(loop, lambda: len(errors) == 2)
    assert {type(error) for error in errors} == {ValueError, SystemExit}
    assert results == []


def test_an_error_that_nobody_wants_is_logged(loop, logged):
    logged.expect("a function that ran in a thread raised")
    loop.run_in_thread(int, "x")
    run_until(loop, lambda: logged.records)
    assert "invalid literal" in str(logged.records[0].exc_info)


def test_a_result_that_nobody_wants_is_dropped(loop):
    called = []
    loop.run_in_thread(called.append, 1)
    wait_until(lambda: not our_threads())
    run_pass(loop)
    assert called == [1]


def test_an_error_of_a_callback_is_its_own(loop, logged):
    logged.expect("raised")
    loop.run_in_thread(int, on_done=lambda result: 1 / 0)
    run_until(loop, lambda: logged.records)
    assert logged.records[0].exc_info[0] is ZeroDivisionError


def test_there_are_few_threads_and_the_rest_waits_its_turn(loop, gate):
    running, most, done = set(), [0], []
    lock = threading.Lock()

    def work(number: int) -> int:
        with lock:
            running.add(number)
            most[0] = max(most[0], len(running))
        gate.wait(DEADLINE_S)
        with lock:
            running.discard(number)
        return number

    for number in range(40):
        loop.run_in_thread(work, number, on_done=done.append)
    wait_until(lambda: len(running) == MAX_THREADS)
    assert len(our_threads()) == MAX_THREADS
    assert running == set(range(MAX_THREADS)), "first come, first served"
    gate.set()
    run_until(loop, lambda: len(done) == 40)
    assert sorted(done) == list(range(40))
    assert most[0] == MAX_THREADS


def test_an_idle_thread_ends(loop):
    done = []
    for _ in range(3):
        loop.run_in_thread(threading.current_thread, on_done=done.append)
        run_until(loop, lambda: done)
        done.pop().join(DEADLINE_S)
        assert our_threads() == []


def test_cancelled_while_it_waits_it_never_runs(loop, gate):
    ran, done = [], []
    for _ in range(MAX_THREADS):
        loop.run_in_thread(gate.wait, DEADLINE_S, on_done=done.append)
    loop.run_in_thread(ran.append, 1, on_done=done.append).cancel()
    gate.set()
    run_until(loop, lambda: len(done) == MAX_THREADS)
    wait_until(lambda: not our_threads())
    run_pass(loop)
    assert ran == []
    assert len(done) == MAX_THREADS


def test_cancelled_while_it_runs_it_calls_nothing_back(loop, gate):
    began, told = threading.Event(), []

    def work() -> None:
        began.set()
        gate.wait(DEADLINE_S)
        raise ValueError

    job = loop.run_in_thread(work, on_done=told.append, on_error=told.append)
    assert began.wait(DEADLINE_S)
    job.cancel()
    job.cancel()
    gate.set()
    wait_until(lambda: not our_threads())
    run_pass(loop)
    assert told == []


def test_cancelled_in_the_instant_when_it_is_done(loop):
    told = []
    job = loop.run_in_thread(int, on_done=told.append)
    wait_until(lambda: not our_threads())  # its result waits in the loop
    job.cancel()
    run_pass(loop)
    assert told == []


def test_a_loop_is_closed_without_waiting(gate):
    told = []
    with EventLoop() as loop:
        for _ in range(MAX_THREADS):
            loop.run_in_thread(gate.wait, DEADLINE_S, on_done=told.append)
        loop.run_in_thread(told.append, "what waited began all the same")
        wait_until(lambda: len(our_threads()) == MAX_THREADS)
    assert len(our_threads()) == MAX_THREADS, "it did not wait"
    gate.set()
    wait_until(lambda: not our_threads())
    assert told == []
    assert len(loop._calls) == 0, "nobody touches a loop that is closed"


def test_no_thread_can_be_had(loop, monkeypatch, gate):
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    real, errors, done = threading.Thread.start, [], []
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        loop.run_in_thread(int, on_error=errors.append)
        assert errors == []
        run_pass(loop)
    assert str(errors[0]) == "can't start new thread"
    # With one that there is, it takes a little longer.
    loop.run_in_thread(gate.wait, DEADLINE_S, on_done=done.append)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        loop.run_in_thread(int, on_done=done.append, on_error=errors.append)
    assert threading.Thread.start is real
    gate.set()
    run_until(loop, lambda: len(done) == 2)
    assert len(errors) == 1

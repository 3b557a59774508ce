"""Signals: they end the loop's wait, run in the loop, and are given back."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from evloop import EventLoop, Limits, Protocol, Server
from evloop.program.serve import prepare
from interpreters import refuses_sigkill
from waiting import DEADLINE_S, run_pass, run_until, wait_until

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no such signals here")


@pytest.fixture(autouse=True)
def _signals_restored():
    """The test fails if it leaves a handler or a wake-up descriptor behind."""
    numbers = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    assert [signal.getsignal(number) for number in numbers] == before
    assert signal.set_wakeup_fd(-1) == -1


def run_until_signalled(loop: EventLoop, signum: int) -> None:
    """Run a loop that has no timer, and send this process a signal when it waits. Its callback must stop the loop.

    If the signal doesn't end the wait nothing does, so another thread gives up at last, and the test fails.
    """
    assert loop.timers == 0
    over = threading.Event()
    gave_up = []

    def kill() -> None:
        wait_until(lambda: loop.waiting, "the loop waits")
        time.sleep(0.02)  # not to synchronise: it works at any moment, but when it sleeps in poll is the one to test
        os.kill(os.getpid(), signum)
        if not over.wait(DEADLINE_S):
            gave_up.append(f"the signal did not wake the loop in {DEADLINE_S:g} s")
            loop.call_soon_threadsafe(loop.stop)

    thread = threading.Thread(target=kill)
    thread.start()
    loop.run()
    over.set()
    thread.join()
    assert not gave_up


def test_a_signal_wakes_the_loop_and_its_callback_runs_in_it(loop):
    calls = []

    def on_signal(*args: object) -> None:
        calls.append((args, threading.current_thread()))
        loop.stop()

    loop.add_signal_handler(signal.SIGUSR1, on_signal, "a", 1)
    run_until_signalled(loop, signal.SIGUSR1)
    assert calls == [(("a", 1), threading.main_thread())]
    loop.remove_signal_handler(signal.SIGUSR1)


def test_a_signal_before_the_loop_runs_is_not_lost(loop):
    calls = []
    loop.add_signal_handler(signal.SIGUSR1, calls.append, 1)
    os.kill(os.getpid(), signal.SIGUSR1)
    assert calls == []
    run_pass(loop)
    assert calls == [1]
    loop.remove_signal_handler(signal.SIGUSR1)


def test_signals_during_a_full_wake_up_pair_are_not_lost(loop):
    calls = []
    loop.add_signal_handler(signal.SIGUSR1, calls.append, 1)
    for _ in range(20_000):
        loop.call_soon_threadsafe(int)
    os.kill(os.getpid(), signal.SIGUSR1)
    run_until(loop, lambda: calls)
    loop.remove_signal_handler(signal.SIGUSR1)


def test_removing_restores_what_was_there(loop):
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda *args: seen.append("old"))
    try:
        old = signal.getsignal(signal.SIGUSR1)
        loop.add_signal_handler(signal.SIGUSR1, seen.append, "new")
        loop.add_signal_handler(signal.SIGUSR1, seen.append, "newer")  # replaces it
        os.kill(os.getpid(), signal.SIGUSR1)
        run_pass(loop)
        assert seen == ["newer"]
        loop.remove_signal_handler(signal.SIGUSR1)
        loop.remove_signal_handler(signal.SIGUSR1)
        assert signal.getsignal(signal.SIGUSR1) is old
        os.kill(os.getpid(), signal.SIGUSR1)
        run_pass(loop)
        assert seen == ["newer", "old"]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_removing_one_of_two_keeps_the_other_awake(loop):
    calls = []
    loop.add_signal_handler(signal.SIGUSR1, loop.stop)
    loop.add_signal_handler(signal.SIGUSR2, lambda: (calls.append(2), loop.stop()))
    loop.remove_signal_handler(signal.SIGUSR1)
    run_until_signalled(loop, signal.SIGUSR2)
    assert calls == [2]
    loop.remove_signal_handler(signal.SIGUSR2)


def test_closing_the_loop_gives_signals_back(selector):
    with EventLoop(selector=selector()) as loop:
        loop.add_signal_handler(signal.SIGUSR1, print)
        loop.add_signal_handler(signal.SIGTERM, print)


def test_a_callback_that_raises_is_logged(loop, logged):
    logged.expect("call of .* raised")

    def fails() -> None:
        raise ValueError

    loop.add_signal_handler(signal.SIGUSR1, fails)
    os.kill(os.getpid(), signal.SIGUSR1)
    run_pass(loop)
    loop.remove_signal_handler(signal.SIGUSR1)


def test_not_outside_of_the_main_thread(loop_thread):
    with pytest.raises(RuntimeError, match="main thread"):
        loop_thread.call(loop_thread.loop.add_signal_handler, signal.SIGUSR1, print)


@pytest.mark.parametrize("signum", [pytest.param(signal.SIGKILL, marks=refuses_sigkill), 12345])
def test_a_signal_that_cannot_be_handled(loop, signum):
    with pytest.raises((OSError, ValueError)):
        loop.add_signal_handler(signum, print)


def test_a_program_that_could_not_take_over_from_itself_is_not_started_again(loop, monkeypatch, logged):
    monkeypatch.setattr("subprocess.Popen", None)
    server = Server(loop, Protocol, Limits(max_connections=10))
    server.listen("127.0.0.1:0")
    prepare(loop, server)
    os.kill(os.getpid(), signal.SIGUSR2)
    run_pass(loop)
    logged.expect("SIGUSR2: this program cannot take over from itself")
    server.abort()
    run_pass(loop)


def test_a_program_that_has_a_use_for_sigusr2_itself_keeps_it(loop, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", None)
    seen = []
    loop.add_signal_handler(signal.SIGUSR2, seen.append, 1)
    server = Server(loop, Protocol, Limits(max_connections=10))
    server.listen("127.0.0.1:0")
    prepare(loop, server)
    os.kill(os.getpid(), signal.SIGUSR2)
    run_pass(loop)
    assert seen == [1]
    server.abort()
    run_pass(loop)

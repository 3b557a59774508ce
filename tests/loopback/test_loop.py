"""The loop itself: calls, timers, threads, running and stopping."""

from __future__ import annotations

import threading
import time

import pytest

from clients import Client
from evloop import EventLoop, Protocol, Server
from servers import small_limits
from waiting import LoopThread, run_pass, run_until, wait_until

# ---------------------------------------------------------------------- calls


def test_calls_run_in_order_with_their_arguments(loop):
    done = []
    for number in range(100):
        loop.call_soon(done.append, number)
    assert done == []
    run_pass(loop)
    assert done == list(range(100))


def test_a_call_made_by_a_call_runs_in_the_next_pass(loop):
    passes = []

    def again(number: int) -> None:
        passes.append(number)
        loop.call_soon(again, number + 1)

    loop.call_soon(again, 0)
    run_pass(loop)
    assert passes == [0]
    run_pass(loop)
    assert passes == [0, 1]


def test_a_call_that_repeats_itself_does_not_keep_others_from_being_served(start):
    class Echo(Protocol):
        def on_data(self, data: bytes) -> bytes:
            return data

    server = start(Echo)
    spinning = True

    def spin() -> None:
        if spinning:
            server.loop.call_soon(spin)

    server.call(spin)
    client = server.connect()
    for _ in range(10):
        assert client.ask(b"hello", 5) == b"hello"
    spinning = False


# ---------------------------------------------------------------------- timers


def test_a_timer_is_never_early(loop):
    fired: list[tuple[float, float]] = []
    for delay_s in (0.0, 0.0003, 0.0011, 0.0049, 0.0201):
        due = time.monotonic() + delay_s
        loop.call_later(delay_s, lambda due: fired.append((due, time.monotonic())), due)
    run_until(loop, lambda: len(fired) == 5)
    for due, at in fired:
        assert at >= due


def test_timers_fire_in_order(loop):
    fired = []
    for delay_ms in (3, 1, 2, 0):
        loop.call_later(delay_ms / 1000, fired.append, delay_ms)
    run_until(loop, lambda: len(fired) == 4)
    assert fired == [0, 1, 2, 3]


def test_timers_that_are_due_together_fire_in_one_pass_in_the_order_they_were_added(selector):
    now = 100.0
    with EventLoop(selector=selector(), clock=lambda: now) as loop:
        fired = []
        for number in range(50):
            loop.call_later(1, fired.append, number)
        run_pass(loop)
        assert fired == []
        now = 101.0
        run_pass(loop)
        assert fired == list(range(50))


def test_a_cancelled_timer_does_not_fire(loop):
    fired = []
    victim = loop.call_later(0.001, fired.append, "victim")
    loop.call_later(0, victim.cancel)
    loop.call_later(0.002, fired.append, "other")
    run_until(loop, lambda: fired)
    assert fired == ["other"]


def test_a_timer_that_re_arms_itself_for_now_does_not_hold_the_pass(loop):
    fired = []

    def again() -> None:
        fired.append(1)
        loop.call_later(-1, again)

    again()
    run_pass(loop)
    assert len(fired) == 2


def test_nobody_polls_while_nothing_is_due(selector):
    # A loop that is idle sleeps: it goes through a pass for each event and no more.
    with LoopThread(selector) as thread:
        polls = 0
        poll = thread.loop.poller.poll

        def counting_poll(timeout_s: float | None) -> list:
            nonlocal polls
            polls += 1
            return poll(timeout_s)

        fired = threading.Event()

        def begin() -> None:
            thread.loop.poller.poll = counting_poll
            thread.loop.call_later(0.05, fired.set)

        thread.call(begin)
        assert fired.wait(10)
        thread.loop.call_later(1e12, print)  # farther off than any selector can wait
        thread.passes(2)
        assert polls <= 8


def test_a_wall_clock_that_jumps_changes_nothing(loop, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: -1e9)
    fired = []
    loop.call_later(0.001, fired.append, 1)
    run_until(loop, lambda: fired)


def test_now_is_one_moment_for_all_of_a_pass(loop):
    moments = []
    loop.call_soon(lambda: moments.append(loop.now))
    loop.call_soon(time.sleep, 0.002)
    loop.call_soon(lambda: moments.append(loop.now))
    run_pass(loop)
    assert moments[0] == moments[1] <= time.monotonic() - 0.002


# ---------------------------------------------------------------------- threads


def test_a_call_from_another_thread_wakes_a_loop_that_sleeps(loop_thread):
    # Nothing else is there to end its wait: without the wake-up this would hang.
    for _ in range(20):
        called = threading.Event()
        loop_thread.loop.call_soon_threadsafe(called.set)
        assert called.wait(10)


def test_calls_from_many_threads_all_run_and_keep_each_thread_s_order(loop_thread):
    seen: list[tuple[int, int]] = []

    def caller(name: int) -> None:
        for number in range(500):
            loop_thread.loop.call_soon_threadsafe(lambda item: seen.append(item), (name, number))

    threads = [threading.Thread(target=caller, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_until(lambda: len(seen) == 2000)
    for name in range(4):
        assert [number for who, number in seen if who == name] == list(range(500))


def test_more_wake_ups_than_the_pair_holds_lose_no_call(loop):
    # The loop does not run meanwhile, so the socket pair fills up.
    done = []
    for number in range(20_000):
        loop.call_soon_threadsafe(done.append, number)
    for _ in range(3):
        run_pass(loop)
    assert done == list(range(20_000))


def test_a_call_after_close_is_harmless(selector):
    loop = EventLoop(selector=selector())
    loop.close()
    loop.call_soon_threadsafe(print)


# ---------------------------------------------------------------------- running and stopping


def test_stop_ends_run_after_the_pass(loop):
    done = []
    loop.call_soon(loop.stop)
    loop.call_soon(done.append, "same pass")
    loop.call_later(0, done.append, "due in the same pass")
    loop.run()
    assert done == ["same pass", "due in the same pass"]


def test_a_loop_can_run_again_after_stop(loop):
    for _ in range(3):
        loop.call_later(0.001, loop.stop)
        loop.run()


def test_running_twice_at_once_is_an_error(loop):
    errors = []

    def nested() -> None:
        try:
            loop.run()
        except RuntimeError as error:
            errors.append(str(error))

    loop.call_soon(nested)
    run_pass(loop)
    assert errors == ["this loop is running already"]


def test_closing_while_it_runs_is_an_error(loop):
    errors = []

    def close() -> None:
        try:
            loop.close()
        except RuntimeError as error:
            errors.append(str(error))

    loop.call_soon(close)
    run_pass(loop)
    assert errors == ["stop the loop before closing it"]


def test_close_twice_and_run_after_close(selector):
    loop = EventLoop(selector=selector())
    loop.close()
    loop.close()
    with pytest.raises(RuntimeError, match="this loop is closed"):
        loop.run()


def test_an_exception_that_is_no_error_of_a_callback_leaves_the_loop_usable(loop):
    def interrupt() -> None:
        raise KeyboardInterrupt

    loop.call_soon(interrupt)
    with pytest.raises(KeyboardInterrupt):
        loop.run()
    done = []
    loop.call_soon(done.append, 1)
    run_pass(loop)
    assert done == [1]


def test_a_fault_of_the_loop_itself_propagates(loop, monkeypatch):
    def broken(timeout_s: float | None) -> list:
        raise OSError("no more")

    loop.poller.poll = broken
    with pytest.raises(OSError, match="no more"):
        loop.run()


def test_two_loops_in_two_threads_know_nothing_of_each_other(selector):
    class Echo(Protocol):
        def on_data(self, data: bytes) -> bytes:
            return threading.current_thread().name.encode() + b"\n"

    with LoopThread(selector) as one, LoopThread(selector) as two:
        one._thread.name, two._thread.name = "one", "two"
        servers = [thread.call(Server, thread.loop, Echo, small_limits()) for thread in (one, two)]
        assert servers[0] is not servers[1]
        ports = []
        for thread, server in zip((one, two), servers, strict=True):
            thread.call(server.listen)
            ports.append(server.listeners[0].socket.getsockname()[1])
        with Client(("127.0.0.1", ports[0])) as first, Client(("127.0.0.1", ports[1])) as second:
            for _ in range(5):
                assert first.ask(b"x", 4) == b"one\n"
                assert second.ask(b"x", 4) == b"two\n"
            # One of them stands still, the other goes on.
            release = threading.Event()
            one.loop.call_soon_threadsafe(release.wait)
            first.send(b"x")
            assert second.ask(b"x", 4) == b"two\n"
            release.set()
            assert first.receive_exactly(4) == b"one\n"
        for thread, server in zip((one, two), servers, strict=True):
            thread.call(server.abort)
            thread.passes(1)


def test_two_servers_in_one_loop(start):
    class One(Protocol):
        def on_data(self, data: bytes) -> bytes:
            return b"1"

    class Two(Protocol):
        def on_data(self, data: bytes) -> bytes:
            return b"2"

    first = start(One)
    second = first.call(Server, first.loop, Two, small_limits())
    first.call(second.listen)
    with Client(second.listeners[0].socket.getsockname()[:2]) as client:
        assert client.ask(b"x", 1) == b"2"
        assert first.connect().ask(b"x", 1) == b"1"
    first.call(second.abort)

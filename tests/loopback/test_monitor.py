"""A handler that blocks the loop is found, timed and named."""

from __future__ import annotations

import re
import signal
import time

from clients import Client
from conftest import LoggedWarnings
from evloop import EventLoop, Protocol, Server
from waiting import run_until


class Sleepy(Protocol):
    """Does what a handler must not do."""

    def on_data(self, data: bytes) -> bytes:
        time.sleep(0.2)
        return data


def test_a_blocking_handler_is_named_with_its_duration(logged: LoggedWarnings) -> None:
    logged.allow("blocked for")  # a busy machine can make another pass slow
    logged.expect(r"blocked for \d+\.\d\d* s by Sleepy\.on_data \(.*test_monitor\.py:\d+\)")
    with EventLoop(slow_pass_s=0.05) as loop:
        server = Server(loop, Sleepy)
        server.listen()
        host, port = server.listeners[0].socket.getsockname()[:2]
        with Client((host, port)) as client:
            client.send(b"x")
            run_until(loop, lambda: loop.slow_passes)
            assert client.receive_exactly(1) == b"x"
        assert loop.slowest is not None
        assert re.match(r"Sleepy\.on_data", loop.slowest[1])
        assert loop.worst_lag_s >= 0.2
        assert loop.worst_lag_s >= 0.2  # to look at it changes nothing, so there may be two who do
        server.abort()


def test_a_loop_that_waits_is_not_slow() -> None:
    with EventLoop(slow_pass_s=0.2) as loop:
        loop.call_later(0.25, loop.stop)
        loop.run()
        assert loop.slow_passes == 0
        assert loop.slowest is None


def test_an_idle_loop_is_not_woken_by_the_monitor() -> None:
    with EventLoop(slow_pass_s=0.01) as loop:
        loop.add_signal_handler(signal.SIGUSR2, int)  # from here on each signal ends a wait
        loop.call_later(0.3, loop.stop)
        loop.run()
        assert loop.passes <= 5  # two ticks until nothing has happened between them, the stop, and one to spare


def test_a_handler_that_blocks_after_an_idle_time_is_named(logged: LoggedWarnings) -> None:
    logged.allow("blocked for")
    with EventLoop(slow_pass_s=0.05) as loop:
        server = Server(loop, Sleepy)
        server.listen()
        host, port = server.listeners[0].socket.getsockname()[:2]
        with Client((host, port)) as client:
            run_until(loop, lambda: server.connections)
            loop.call_later(0.3, client.send, b"x")  # in the meantime nothing happens, so nobody looks
            loop.call_later(0.3, loop.call_later, 0, loop.stop)
            passes = loop.passes
            loop.run()
            assert loop.passes - passes < 6
            assert client.receive_exactly(1) == b"x"
        assert loop.slowest is not None
        assert loop.slowest[1].startswith("Sleepy.on_data")
        server.abort()


def test_timer_and_signal_are_given_back() -> None:
    with EventLoop(slow_pass_s=0.5) as loop:
        loop.call_soon(loop.stop)
        loop.run()
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL


def test_a_program_that_uses_the_signal_keeps_it() -> None:
    mine = lambda signum, frame: None  # noqa: E731
    signal.signal(signal.SIGALRM, mine)
    try:
        with EventLoop(slow_pass_s=0.5) as loop:
            loop.call_soon(loop.stop)
            loop.run()
        assert signal.getsignal(signal.SIGALRM) is mine
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)

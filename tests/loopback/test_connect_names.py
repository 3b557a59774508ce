"""Outgoing connections to names: looked up in a thread, addresses raced, time-outs judged by evidence."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable

import pytest

from evloop import EventLoop
from evloop.net.connector import ATTEMPT_DELAY_S
from outgoing import Names, closed_port, silent_listener
from servers import recorder
from waiting import run_pass, run_until, wait_until

REFUSED = os.strerror(errno.ECONNREFUSED)


pytestmark = pytest.mark.one_selector


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    return Names(monkeypatch)


def passes_until(loop: EventLoop, condition: Callable[[], object]) -> None:
    """Run pass after pass until a condition is true, also if the loop's clock stands still."""

    def run_and_look() -> object:
        run_pass(loop)
        return condition()

    wait_until(run_and_look)


def finish(loop: EventLoop, protocol: object) -> None:
    """Run until the protocol knows what has become of the connection, then end it."""
    passes_until(loop, lambda: protocol.events)  # type: ignore[attr-defined]
    if protocol.events[0] == "connect":  # type: ignore[attr-defined]
        protocol.connection.abort()  # type: ignore[attr-defined]
        run_pass(loop)


def test_a_name_is_looked_up_in_a_thread_while_the_loop_goes_on(loop, listener, names):
    names.add("there.example", listener.getsockname())
    found = names.hold()
    protocol = recorder()()
    loop.connect(protocol, "there.example", 7)
    ticks = []
    loop.call_later(0.001, ticks.append, 1)
    run_until(loop, lambda: ticks and names.threads)
    assert protocol.events == []
    assert names.threads != [threading.current_thread()]
    found.set()
    finish(loop, protocol)
    assert protocol.events[0] == "connect"
    wait_until(lambda: not names.threads[0].is_alive())


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_an_address_starts_no_thread(loop, monkeypatch, host):
    def start(self: threading.Thread) -> None:
        raise AssertionError("a thread for an address")

    monkeypatch.setattr(threading.Thread, "start", start)
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        protocol = recorder()()
        loop.connect(protocol, host, listener.getsockname()[1])
        finish(loop, protocol)
    assert protocol.events[0] == "connect"


def test_a_hung_look_up_is_given_up_at_the_time_out(loop, names):
    names.add("slow.example", ("127.0.0.1", 1))
    found = names.hold()
    protocol = recorder()()
    loop.connect(protocol, "slow.example", 7, timeout_s=0.03)
    finish(loop, protocol)
    error = "cannot connect to slow.example:7: cannot resolve 'slow.example': no answer in 0.03 s"
    assert protocol.events == [("connect error", error)]
    found.set()
    wait_until(lambda: not names.threads[0].is_alive())
    run_pass(loop)
    assert len(protocol.events) == 1


def test_cancelled_while_it_is_looked_up(loop, listener, names):
    names.add("slow.example", listener.getsockname())
    found = names.hold()
    protocol = recorder()()
    attempt = loop.connect(protocol, "slow.example", 7)
    run_until(loop, lambda: names.threads)
    attempt.cancel()
    found.set()
    wait_until(lambda: not names.threads[0].is_alive())
    for _ in range(3):
        run_pass(loop)
    assert protocol.events == []
    assert loop.timers == 0
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.accept()


def test_an_error_that_no_resolver_should_raise_is_told_all_the_same(loop, names):
    names.fail("odd.example", RuntimeError("odd"))
    protocol = recorder()()
    loop.connect(protocol, "odd.example", 7)
    finish(loop, protocol)
    assert protocol.events == [("connect error", "cannot connect to odd.example:7: cannot resolve 'odd.example': odd")]


def test_when_one_address_refuses_the_next_is_tried_at_once(loop, listener, names):
    dead = ("127.0.0.1", closed_port())
    names.add("many.example", dead, dead, listener.getsockname())
    protocol = recorder()()
    began = loop.clock()
    loop.connect(protocol, "many.example", 1)
    run_until(loop, lambda: protocol.events)
    assert loop.timers == 0
    assert protocol.events == ["connect"]
    assert protocol.connection.peer == f"127.0.0.1:{listener.getsockname()[1]}"
    assert loop.clock() - began < 60 * ATTEMPT_DELAY_S  # not after a time-out: they are not waited for
    protocol.connection.abort()
    run_pass(loop)


def test_all_addresses_refuse(loop, names):
    ports = [closed_port(), closed_port()]
    names.add("dead.example", *(("127.0.0.1", port) for port in ports))
    protocol = recorder()()
    loop.connect(protocol, "dead.example", 7)
    finish(loop, protocol)
    assert protocol.events == [("connect error", f"cannot connect to dead.example:7: {REFUSED}")]


def test_addresses_fail_for_different_reasons(loop, names):
    names.add("dead.example", ("127.0.0.1", closed_port()), ("255.255.255.255", 1))
    protocol = recorder()()
    loop.connect(protocol, "dead.example", 7)
    finish(loop, protocol)
    ((_, text),) = protocol.events
    assert text.startswith(f"cannot connect to dead.example:7: {REFUSED} (127.0.0.1); ")
    assert text.endswith(" (255.255.255.255)")


def test_a_silent_address_costs_a_quarter_of_a_second(loop, listener, names):
    with silent_listener() as silent:
        names.add("half.example", silent.getsockname(), listener.getsockname())
        protocol = recorder()()
        began = loop.clock()
        loop.connect(protocol, "half.example", 7, timeout_s=60)
        run_until(loop, lambda: protocol.events)
        took_s = loop.clock() - began
        assert protocol.events == ["connect"]
        assert protocol.connection.peer == f"127.0.0.1:{listener.getsockname()[1]}"
        assert took_s >= ATTEMPT_DELAY_S
        assert loop.timers == 0
        protocol.connection.abort()
        run_pass(loop)
        assert len(loop.poller.handlers) == 1, "the loser is not watched any more"


class Clock:
    """A clock that stands still, for a loop whose passes are run one by one."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def look_up(loop: EventLoop, names: Names) -> None:
    """Run until a name has been looked up, and the first of its addresses is being connected to."""
    run_pass(loop)
    wait_until(lambda: names.threads and not names.threads[0].is_alive())
    run_pass(loop)


def test_the_other_family_has_its_turn_before_the_rest_of_the_first(names):
    clock = Clock()
    with (
        EventLoop(clock=clock) as loop,
        silent_listener("0.0.0.0") as silent,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as six,
    ):
        fours = [(f"127.0.0.{number}", silent.getsockname()[1]) for number in (1, 2, 3)]
        names.add("both.example", *fours, six.getsockname())
        protocol = recorder()()
        loop.connect(protocol, "both.example", 7)
        look_up(loop, names)
        clock.now += ATTEMPT_DELAY_S - 0.01
        for _ in range(3):
            run_pass(loop)
        assert protocol.events == []
        clock.now += 0.02
        passes_until(loop, lambda: protocol.events)
        assert protocol.connection.peer == f"[::1]:{six.getsockname()[1]}"
        protocol.connection.abort()
        run_pass(loop)


def test_a_silent_address_is_waited_for_when_the_others_refuse(names):
    clock = Clock()
    with EventLoop(clock=clock) as loop, silent_listener() as silent:
        names.add("half.example", silent.getsockname(), ("127.0.0.1", closed_port()))
        protocol = recorder()()
        loop.connect(protocol, "half.example", 7, timeout_s=5)
        look_up(loop, names)
        assert loop.timers == 2
        clock.now += ATTEMPT_DELAY_S
        passes_until(loop, lambda: loop.timers == 1)  # the second one has begun, and has refused
        assert protocol.events == []
        clock.now += 5 - ATTEMPT_DELAY_S
        finish(loop, protocol)
    assert protocol.events == [("connect error", "cannot connect to half.example:7: no answer in 5 s")]


def test_after_one_that_refuses_the_next_but_one_has_to_wait(names):
    clock = Clock()
    with EventLoop(clock=clock) as loop, silent_listener("0.0.0.0") as silent:
        silents = [(f"127.0.0.{number}", silent.getsockname()[1]) for number in (1, 2, 3)]
        names.add("many.example", silents[0], ("127.0.0.1", closed_port()), *silents[1:])
        attempt = loop.connect(recorder()(), "many.example", 7)
        look_up(loop, names)
        clock.now += ATTEMPT_DELAY_S
        passes_until(loop, lambda: len(loop.poller.handlers) == 3)  # the second one refused, the third one has begun
        run_pass(loop)
        assert loop.timers == 2, "the time-out, and one for the fourth"
        attempt.cancel()
        run_pass(loop)


def test_the_time_out_is_for_all_addresses_together(names):
    clock = Clock()
    with EventLoop(clock=clock) as loop, silent_listener("0.0.0.0") as silent:
        names.add("dead.example", *((f"127.0.0.{number}", silent.getsockname()[1]) for number in (1, 2, 3)))
        protocol = recorder()()
        loop.connect(protocol, "dead.example", 7, timeout_s=0.4)
        look_up(loop, names)
        clock.now += 0.3
        run_pass(loop)
        assert protocol.events == []
        clock.now += 0.1
        finish(loop, protocol)
        assert protocol.events == [("connect error", "cannot connect to dead.example:7: no answer in 0.4 s")]
        assert loop.timers == 0
        assert len(loop.poller.handlers) == 1


# ---------------------------------------------------------------------- judged by evidence


def see_nothing_once(loop: EventLoop, clock: Clock, seconds: float) -> None:
    """The next wait takes so long and sees nothing: what a wait does when its process is suspended in it."""
    real = loop.poller.poll

    def poll(timeout_s: float | None) -> list[tuple[int, object]]:
        loop.poller.poll = real
        clock.now += seconds
        return []

    loop.poller.poll = poll


def test_what_has_happened_is_looked_at_before_the_time_out_is_judged(listener):
    clock = Clock()
    with EventLoop(clock=clock) as loop:
        protocol = recorder()()
        loop.connect(protocol, *listener.getsockname(), timeout_s=5)
        run_pass(loop)
        assert protocol.events == []
        see_nothing_once(loop, clock, 5.1)
        run_pass(loop)
        assert protocol.events == ["connect"]
        protocol.connection.abort()
        run_pass(loop)


def test_who_was_suspended_waits_once_more(names, listener):
    names.add("slow.example", listener.getsockname())
    found = names.hold()
    clock = Clock()
    with EventLoop(clock=clock) as loop:
        protocol = recorder()()
        loop.connect(protocol, "slow.example", 7, timeout_s=5)
        passes_until(loop, lambda: names.threads)
        see_nothing_once(loop, clock, 3600)
        run_pass(loop)
        assert protocol.events == []
        found.set()
        passes_until(loop, lambda: protocol.events)
        assert protocol.events == ["connect"]
        protocol.connection.abort()
        run_pass(loop)


def test_but_only_once():
    clock = Clock()
    with EventLoop(clock=clock) as loop, silent_listener() as silent:
        protocol = recorder()()
        loop.connect(protocol, *silent.getsockname(), timeout_s=5)
        run_pass(loop)
        see_nothing_once(loop, clock, 3600)
        run_pass(loop)
        assert protocol.events == []
        clock.now += 4.9
        run_pass(loop)
        assert protocol.events == []
        see_nothing_once(loop, clock, 3600)
        finish(loop, protocol)
        assert protocol.events[0][0] == "connect error"

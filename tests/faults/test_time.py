"""Time: behaviours 22 to 24 of docs/reliability.md."""

from __future__ import annotations

import ast
import time

import pytest

from clients import Client
from evloop import EventLoop, Protocol, Server
from paths import ROOT
from servers import recorder, small_limits
from waiting import run_pass, wait_until

pytestmark = pytest.mark.one_selector


# ---------------------------------------------------------------------- 22


def test_22_message_deadline_is_not_reset_by_dribbled_bytes(counting):
    server = counting(small_limits(message_timeout_s=0.3, idle_timeout_s=30))
    client = server.connect()
    began = time.monotonic()
    sent = 0
    try:
        while time.monotonic() - began < 5:
            client.send(b"x")
            sent += 1
            time.sleep(0.01)  # the dribble
    except ConnectionError:
        pass
    assert sent > 10
    assert time.monotonic() - began >= 0.3
    assert server.limit_hits("message-timeout") == 1
    assert server.limit_hits("idle-timeout") == 0


def test_22_message_deadline_is_apart_from_the_idle_timeout(counting):
    server = counting(small_limits(message_timeout_s=0.2, idle_timeout_s=None))
    silent, slow = server.connect(), server.connect()
    slow.send(b"unfinished")
    slow.was_reset()  # or an EOF: ended by the server, in any case
    assert server.limit_hits("message-timeout") == 1
    # The one between two messages has no deadline.
    assert silent.ask(b"abc\n", 2) == b"3\n"


def test_22_message_deadline_begins_anew_with_each_message(counting):
    server = counting(small_limits(message_timeout_s=0.5))
    client = server.connect()
    began = time.monotonic()
    client.send(b"a")
    while time.monotonic() - began < 0.8:
        # There is always a message that has begun, but never the same for long.
        assert client.ask(b"b\nc", 2) == b"2\n"
        time.sleep(0.02)
    assert server.limit_hits("message-timeout") == 0


def test_22_idle_timeout_ends_only_the_idle(counting):
    server = counting(small_limits(idle_timeout_s=0.3))
    idle, busy = server.connect(), server.connect()
    began = time.monotonic()
    while time.monotonic() - began < 0.8:
        assert busy.ask(b"abc\n", 2) == b"3\n"
        time.sleep(0.02)
    assert idle.receives_nothing(0.0001) is False
    assert server.limit_hits("idle-timeout") == 1


def test_22_message_deadline_on_the_command_line(spawn):
    server = spawn("--message-timeout", "0.2")
    client = server.connect()
    client.send(b"unfinished")
    server.wait_for_log("LimitError: message not complete in 0.2 s")


# ---------------------------------------------------------------------- 23


def test_23_timers_do_not_grow_with_messages(counting):
    server = counting(small_limits(message_timeout_s=60, idle_timeout_s=60, write_timeout_s=60))
    clients = [server.connect() for _ in range(20)]
    for client in clients:
        assert client.ask(b"abc\n", 2) == b"3\n"
    before = server.call(lambda: len(server.loop._timers))
    heap = server.call(lambda: len(server.loop._timers._heap))
    for _ in range(50):
        for client in clients:
            client.send(b"abc\n")
        for client in clients:
            assert client.receive_exactly(2) == b"3\n"
    # One timer for all connections and all their time-outs: the sweep.
    assert server.call(lambda: len(server.loop._timers)) == before == 1
    assert server.call(lambda: len(server.loop._timers._heap)) == heap


def test_23_timers_do_not_grow_with_connections_that_come_and_go(start):
    class Refuses(Protocol):
        def on_data(self, data: bytes) -> bytes:
            self.connection.close()  # lingers: each has a timer for a while
            return b"bye\n"

    server = start(Refuses, small_limits(linger_timeout_s=60))
    for _ in range(300):
        client = server.connect()
        assert client.ask(b"x", 4) == b"bye\n"
        client.close()
    server.wait_empty()
    assert server.call(lambda: len(server.loop._timers)) == 1
    assert server.call(lambda: len(server.loop._timers._heap)) < 150  # cancelled ones are cleared away now and then


# ---------------------------------------------------------------------- 24

# A server in whose process the wall clock leaps by years, back and forth, at each look.
LEAPING_CLOCK = """
import itertools, sys, time
leaps = itertools.cycle([0.0, 4e9, 1.0, -1e9, 2e9])
time.time = lambda: next(leaps)
time.time_ns = lambda: int(next(leaps) * 1e9)
from evloop.charcount.cli.server import main
sys.exit(main(sys.argv[1:]))
"""


def test_24_wall_clock_jumps_change_nothing(spawn_program):
    server = spawn_program(
        LEAPING_CLOCK, "--port", "0", "--log-level", "warning", "--idle-timeout", "0.4", "--message-timeout", "0.4"
    )
    busy, idle, slow = (server.connect() for _ in range(3))
    slow.send(b"unfinished")
    began = time.monotonic()
    while time.monotonic() - began < 0.35:
        assert busy.ask(b"abc\n", 2) == b"3\n"
    assert idle.receive_rest() == b""
    slow.was_reset()
    # Neither early nor never: within the time-out and the quarter that a sweep may be late, and some for the machine.
    assert 0.4 <= time.monotonic() - began < 5


def test_24_wall_clock_is_not_read_anywhere():
    wall = {"time", "time_ns", "now", "today", "utcnow", "localtime", "gmtime"}
    for path in (ROOT / "evloop").rglob("*.py"):
        if path.name == "tlssettings.py":
            continue  # certificates speak of dates; what follows from them is a line in the log
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                read = node.value.id in ("time", "datetime", "date") and node.attr in wall
                assert not read, f"{path}:{node.lineno} reads the wall clock"
            if isinstance(node, ast.ImportFrom) and node.module in ("time", "datetime"):
                assert not wall & {name.name for name in node.names}, f"{path}:{node.lineno}"


def test_24_time_outs_follow_the_injected_clock_and_no_other():
    now = [1000.0]
    kind = recorder()
    with EventLoop(clock=lambda: now[0]) as own_loop:
        server = Server(own_loop, kind, small_limits(idle_timeout_s=10, write_timeout_s=None))
        server.listen()
        host, port = server.listeners[0].socket.getsockname()
        with Client((host, port)):
            wait_until(lambda: (run_pass(own_loop), kind.events)[1], "accepted")
            for _ in range(9):
                now[0] += 1
                run_pass(own_loop)
            assert len(server.connections) == 1
            for _ in range(4):
                now[0] += 1
                run_pass(own_loop)
            assert not server.connections
        server.abort()
    assert kind.events == ["connect", ("close", "LimitError")]

"""Wake-ups, blocked loops and other selectors: behaviours 28 to 30."""

from __future__ import annotations

import os
import re
import selectors
import signal
import threading
import time
from types import SimpleNamespace

import psutil
import pytest

import evloop.core.poller
from clients import Client
from evloop import EventLoop, Protocol, Server
from evloop.server.descriptors import affordable_connections
from interpreters import loads_logging_fast
from servers import small_limits
from waiting import DEADLINE_S, LoopThread, run_pass, run_until, wait_until


class Echo(Protocol):
    def on_data(self, data: bytes) -> bytes | None:
        return data


# ---------------------------------------------------------------------- 28

# Fills the wake-up pipe, then gets signals while it is full.
FULL_PIPE = """
import os, signal, sys
from evloop import EventLoop
with EventLoop() as loop:
    seen = []
    loop.add_signal_handler(signal.SIGUSR2, lambda: (seen.append("signal"), loop.call_later(0.05, loop.stop)))
    def fill():
        for _ in range(100_000):
            loop.call_soon_threadsafe(seen.append, "call")
        for _ in range(100):
            os.kill(os.getpid(), signal.SIGUSR2)
    loop.call_soon(fill)
    loop.run()
    try:
        loop._wakeup_reader.recv(1)
    except BlockingIOError:
        seen.append("empty")
print("calls", seen.count("call"), "signals", seen.count("signal"), "pipe", seen[-1], "listening on x:1")
"""


def test_28_full_wake_up_pipe_loses_no_signal_and_prints_nothing(spawn_program):
    program = spawn_program(FULL_PIPE)
    assert program.wait() == 0, program.log
    assert program.log == "calls 100000 signals 100 pipe empty listening on x:1\n"


def test_28_wake_up_from_another_thread_ends_a_long_poll(loop_thread: LoopThread):
    for _ in range(100):
        done = threading.Event()
        loop_thread.loop.call_soon_threadsafe(done.set)
        assert done.wait(DEADLINE_S)


# A loop without any timer, which would end its wait now and then, whatever the signal does.
WAITS_FOR_EVER = """
import signal, sys
from evloop import EventLoop
with EventLoop() as loop:
    loop.add_signal_handler(signal.SIGUSR2, loop.stop)
    loop.call_soon(lambda: print("waiting", flush=True))
    loop.run()
"""


def test_28_wake_up_by_a_signal_without_any_timer(spawn_program):
    program = spawn_program(WAITS_FOR_EVER)
    program.wait_for_log("waiting")
    wait_until(lambda: program.psutil.status() == psutil.STATUS_SLEEPING, "asleep")
    program.signal(signal.SIGUSR2)
    assert program.wait() == 0, program.log


# ---------------------------------------------------------------------- 29

# A program that serves a protocol named Blocks, and monitors its loop.
SERVES_BLOCKS = """
import logging, sys, time
from evloop import EventLoop, LineProtocol, Protocol, Server
from evloop.program.serve import prepare

{protocol}

logging.basicConfig(format="%(levelname)s %(message)s")
with EventLoop(slow_pass_s=0.1) as loop:
    server = Server(loop, Blocks)
    print("listening on", *server.listen(), file=sys.stderr, flush=True)
    prepare(loop, server)
    loop.run()
"""

# A handler that blocks when it is told to.
BLOCKS = """
class Blocks(LineProtocol):
    def on_line(self, line):
        if line == b"block":
            self.look_up_something()
        return b"done" + bytes([10])
    def look_up_something(self):
        time.sleep(0.3)
"""


def test_29_blocked_loop_is_detected_and_named(spawn_program):
    server = spawn_program(SERVES_BLOCKS.format(protocol=BLOCKS))
    client, other = server.connect(), server.connect()
    assert client.ask(b"go on\n", 5) == b"done\n"
    assert "blocked" not in server.log
    client.send(b"block\n")
    assert client.receive_exactly(5) == b"done\n"
    assert other.ask(b"go on\n", 5) == b"done\n"
    server.wait_for_log("the loop was blocked for 0.3")
    line = next(line for line in server.log.splitlines() if "blocked" in line)
    assert line.startswith("WARNING ")
    assert "Blocks.on_line" in line  # what the library called, however deep it was inside of it
    if hasattr(signal, "SIGUSR1"):
        server.signal(signal.SIGUSR1)
        server.wait_for_log("status:")
        server.wait_for_log("slowest_handler")
        status = server.log.partition("status:")[2]
        assert re.search(r"slow_passes +1\n", status)
        assert re.search(r"worst_lag_s +0\.3", status)
        assert re.search(r"slowest_pass_s +0\.3\d+\n +slowest_handler +Blocks\.on_line", status)


# Two slow handlers, of which the second is the less slow one.
BLOCKS_TWICE = """
class Blocks(Protocol):
    def data_handler(self):
        return self.choose

    def choose(self, data):
        self.connection.set_data_handler(self.much if data == b"much" else self.little)
        return b"."

    def much(self, data):
        time.sleep(0.45)
        return b"."

    def little(self, data):
        time.sleep(0.12)
        return b"."
"""


def test_29_blocked_loop_by_two_handlers_names_the_slower(spawn_program):
    server = spawn_program(SERVES_BLOCKS.format(protocol=BLOCKS_TWICE))
    much, little = server.connect(), server.connect()
    assert much.ask(b"much", 1) == b"."
    assert little.ask(b"little", 1) == b"."
    server.stop()  # so that both are found ready in one pass
    much.send(b"x")
    little.send(b"x")
    server.resume()
    assert much.receive_exactly(1) == b"."
    assert little.receive_exactly(1) == b"."
    server.wait_for_log("the loop was blocked for")
    (named,) = re.findall(r"blocked for (?:0\.5[7-9]|0\.[6-9]|[1-9]).* by (\S+)", server.log)  # by both
    assert named == "Blocks.much"


@loads_logging_fast
def test_29_loop_that_only_waits_is_not_called_blocked(spawn):
    server = spawn("--log-level", "warning")
    client = server.connect()
    for _ in range(3):
        assert client.ask(b"abc\n", 2) == b"3\n"
        time.sleep(0.12)  # a client that thinks
    assert server.log.count("\n") == 1


# ---------------------------------------------------------------------- 30


def test_30_each_selector_serves_alike(counting):
    server = counting()
    clients = [server.connect() for _ in range(50)]
    for client in clients:
        client.send("zażółć\n".encode() * 3)
    for client in clients:
        assert client.receive_exactly(6) == b"6\n" * 3
        client.half_close()
        assert client.receive_rest() == b""
    server.wait_empty()


def test_30_select_limit_is_a_clean_cap_on_linux_and_macos():
    with loop_with_select() as loop:
        assert loop.poller.capacity == 1024
        assert affordable_connections(10_000, loop.poller.capacity) <= 1024 - 32
        server = Server(loop, Echo, small_limits(max_connections=992))
        assert server.max_connections <= 992


def test_30_select_limit_windows_number_of_sockets_is_a_clean_cap(monkeypatch, logged):
    """Windows' select() looks at 512 sockets at most, whatever their numbers; played through with its limit."""
    logged.expect("at most 8 connections, not 300")
    logged.allow("refused: too-many-connections limit 8|left out")
    monkeypatch.setattr(evloop.core.poller, "sys", SimpleNamespace(platform="win32"))
    assert evloop.core.poller.SELECT_MAX_SOCKETS_WINDOWS == 512
    monkeypatch.setattr(evloop.core.poller, "SELECT_MAX_SOCKETS_WINDOWS", 40)  # the same with less to do
    with loop_with_select() as loop:
        assert loop.poller.capacity == 40
        server = Server(loop, Echo, small_limits(max_connections=300))
        server.listen()
        address = server.listeners[0].socket.getsockname()
        clients = [Client(address) for _ in range(60)]
        run_until(loop, lambda: server.stats.limits["too-many-connections"] == 52, "the rest refused")
        assert len(server.connections) == 8
        for client in clients[8:]:
            assert client.receive_line() == b"ERR too-many-connections limit 8\n"
        server.abort()
        run_pass(loop)
        for client in clients:
            client.close()


def test_30_select_descriptor_beyond_its_limit_costs_that_connection_only(logged):
    pytest.importorskip("resource")
    if os.name != "posix":
        pytest.skip("descriptor numbers limit select() on POSIX systems only")
    with loop_with_select() as loop:
        server = Server(loop, Echo, small_limits())
        server.listen()
        address = server.listeners[0].socket.getsockname()
        fillers = [os.dup(0) for _ in range(1024)]
        try:
            high = Client(address)
            run_until(loop, lambda: server.stats.closed == 1, "given up")
            assert high.receive_rest() == b""
            assert server.stats.failed == 1
            high.close()
        finally:
            for number in fillers:
                os.close(number)
        run_pass(loop)
        low = Client(address)
        low.send(b"x")
        run_until(loop, lambda: server.connections and next(iter(server.connections)).bytes_sent, "served again")
        assert low.receive_exactly(1) == b"x"
        low.close()
        server.abort()


def loop_with_select() -> EventLoop:
    """A loop on select(), which each platform has."""
    return EventLoop(selector=selectors.SelectSelector())

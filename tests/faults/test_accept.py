"""Accepting: behaviours 1 to 7 of docs/reliability.md."""

from __future__ import annotations

import errno
import re
import signal
import socket
import threading
from collections import Counter

import pytest

import evloop.server.listener
from clients import Client
from evloop import Protocol
from evloop.server.listener import Listener
from faults.faultysocket import FaultyListener
from processes import SPINNING
from servers import small_limits
from waiting import DEADLINE_S, run_pass, run_until, wait_until

pytestmark = pytest.mark.one_selector


# ---------------------------------------------------------------------- 1


def test_01_out_of_descriptors_survives_and_stays_idle(spawn):
    server = spawn("--max-connections", "200")
    first = server.connect()
    assert first.ask(b"abc\n", 2) == b"3\n"
    server.wait_for_log("connect ")  # it has loaded what it logs with
    # Now, and not before: at its start the server would have lowered its connection limit, and never run out.
    used = server.descriptors()
    server.psutil.rlimit(_nofile(), (used + 5, used + 5))

    clients = [server.connect() for _ in range(20)]
    for client in clients:
        client.send(b"hello\n")
    server.wait_for_log("cannot accept on")

    assert server.cpu_share() < SPINNING
    assert first.ask(b"four\n", 2) == b"4\n"
    server.wait_for_log("INFO connect ", 6)
    served = [client for client in clients if not client.receives_nothing(0.05)]
    assert len(served) == 5
    # One line for the whole time, not one for each try.
    assert server.log.count("cannot accept on") == 1

    waiting = [client for client in clients if client not in served]
    for client in served:
        assert client.receive_exactly(2) == b"5\n"
        client.close()
    # Each that closes makes room for one that waits: all get their turn, none was turned away.
    for client in waiting:
        assert client.receive_exactly(2) == b"5\n"
        client.close()
    assert "Traceback" not in server.log
    if hasattr(signal, "SIGUSR1"):
        server.signal(signal.SIGUSR1)
        server.wait_for_log("slowest_handler")
        assert re.search(r"limits_hit +.*\bdescriptors [1-9]", server.log), server.log


# A server that would rest for longer than any test waits, so only a free descriptor can wake it.
RESTS_LONG = """
import sys
import evloop.server.listener
evloop.server.listener.EXHAUSTED_PAUSE_S = 600
from evloop.charcount.cli.server import main
sys.exit(main(sys.argv[1:]))
"""


def test_01_out_of_descriptors_the_next_that_closes_ends_the_rest(spawn_program):
    server = spawn_program(RESTS_LONG, "--port", "0")
    first = server.connect()
    assert first.ask(b"abc\n", 2) == b"3\n"
    server.wait_for_log("connect ")
    used = server.descriptors()
    server.psutil.rlimit(_nofile(), (used + 1, used + 1))
    fits, waits = server.connect(), server.connect()
    assert fits.ask(b"four\n", 2) == b"4\n"
    waits.send(b"hello\n")
    server.wait_for_log("cannot accept on")
    fits.close()
    assert waits.receive_exactly(2) == b"5\n"
    # It rests again after that, and can be woken again.
    last = server.connect()
    last.send(b"hello!\n")
    assert last.receives_nothing()
    first.close()
    assert last.receive_exactly(2) == b"6\n"


def _nofile() -> int:
    resource = pytest.importorskip("resource")
    if not hasattr(resource, "prlimit"):
        pytest.skip("the limits of another process can't be changed on this system")
    return resource.RLIMIT_NOFILE


def test_01_out_of_descriptors_started_with_a_low_limit(spawn):
    # The limit of connections is lowered so that descriptors can't run out: 64 less 32 in reserve.
    server = spawn("--max-connections", "1000", soft_descriptors=64, hard_descriptors=64)
    clients = [server.connect() for _ in range(32)]
    assert [client.ask(b"a\n", 2) for client in clients] == [b"1\n"] * 32
    assert server.connect().receive_rest() == b"ERR too-many-connections limit 32\n"
    assert "cannot accept" not in server.log


@pytest.mark.parametrize("name", ["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"])
def test_01_out_of_descriptors_each_errno_pauses_the_listener(name, loop, logged, monkeypatch):
    monkeypatch.setattr(evloop.server.listener, "EXHAUSTED_PAUSE_S", 600)  # as if no time passed on a busy machine
    logged.expect("cannot accept on")
    faulty = FaultyListener(errno.__dict__[name], times=3)
    accepted: list[socket.socket] = []
    limits_hit: Counter[str] = Counter()
    listener = Listener(loop, faulty, 10, lambda sock, address: accepted.append(sock), limits_hit)
    with Client(faulty.getsockname()):
        for _ in range(3):
            run_until(loop, lambda: listener.resting)
            for _ in range(10):
                run_pass(loop)
            assert listener.resting
            listener.resume()
        run_until(loop, lambda: accepted)
    # Three tries failed, one succeeded, and then there was nobody left: that is not a busy loop.
    assert (listener.exhausted, faulty.accepts) == (3, 5)
    assert limits_hit == {"descriptors": 3}
    assert not listener.resting
    listener.close()
    accepted[0].close()


# ---------------------------------------------------------------------- 2


@pytest.mark.parametrize("name", ["ECONNABORTED", "EINTR", "EPROTO", "ENETDOWN", "EHOSTUNREACH", "EPERM"])
def test_02_accept_errors_of_one_connection_are_like_eagain(name, loop):
    faulty = FaultyListener(errno.__dict__[name], times=2)
    accepted: list[socket.socket] = []
    listener = Listener(loop, faulty, 10, lambda sock, address: accepted.append(sock))
    with Client(faulty.getsockname()):
        run_until(loop, lambda: accepted)
    assert listener.accept_errors == 2
    assert not listener.resting
    listener.close()
    accepted[0].close()


@pytest.mark.parametrize("name", ["EINVAL", "EIO"])
def test_02_accept_errors_that_nobody_expects_end_neither_the_loop_nor_the_listener(name, loop, logged, monkeypatch):
    monkeypatch.setattr(evloop.server.listener, "EXHAUSTED_PAUSE_S", 600)
    logged.expect("cannot accept on")
    faulty = FaultyListener(errno.__dict__[name], times=2)
    accepted: list[socket.socket] = []
    listener = Listener(loop, faulty, 10, lambda sock, address: accepted.append(sock))
    with Client(faulty.getsockname()):
        for _ in range(2):
            run_until(loop, lambda: listener.resting)
            listener.resume()
        run_until(loop, lambda: accepted)
    assert (listener.accept_errors, listener.exhausted, faulty.accepts) == (2, 0, 4)
    listener.close()
    accepted[0].close()


# ---------------------------------------------------------------------- 3


def test_03_peer_that_resets_before_first_use_costs_only_itself(spawn):
    server = spawn()
    client = server.connect()
    server.stop()  # so that all of it happens before the server can accept
    for number in range(100):
        early = server.connect()
        if number % 2:
            early.send(b"never read\n")
        early.reset()
    server.resume()
    assert client.ask(b"abc\n", 2) == b"3\n"
    assert server.connect().ask(b"abcd\n", 2) == b"4\n"
    assert server.cpu_share() < SPINNING
    assert "Traceback" not in server.log
    warnings = [line for line in server.log.splitlines() if "WARNING" in line]
    assert [line for line in warnings if "the loop was blocked" not in line] == []  # which is the machine's fault


# ---------------------------------------------------------------------- 4


def test_04_accepts_per_pass_are_bounded(start):
    passes_of_accepts: list[int] = []

    class CountsPasses(Protocol):
        def on_connect(self) -> None:
            passes_of_accepts.append(self.connection.loop.now)  # the same for all of one pass

    server = start(CountsPasses, small_limits(accepts_per_pass=8, backlog=200))
    blocked, go_on = threading.Event(), threading.Event()

    def block() -> None:
        blocked.set()
        go_on.wait(DEADLINE_S)

    server.loop.call_soon_threadsafe(block)
    assert blocked.wait(DEADLINE_S)
    for _ in range(60):
        server.connect()
    go_on.set()
    wait_until(lambda: len(passes_of_accepts) == 60, "all accepted")
    most = max(passes_of_accepts.count(moment) for moment in set(passes_of_accepts))
    assert most == 8
    # 60 waited: seven times there were more than the budget allowed.
    assert server.limit_hits("accepts-per-pass") == 7


def test_04_connect_storm_does_not_starve_those_served(spawn):
    server = spawn("--log-level", "error")
    client = server.connect()
    storm_over = threading.Event()
    stormed = [0, 0]

    def storm(number: int) -> None:
        while not storm_over.is_set():
            with Client(server.address) as one:
                one.reset()
            stormed[number] += 1

    threads = [threading.Thread(target=storm, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: min(stormed) > 20, "a storm")
        before = sum(stormed)
        for _ in range(200):
            assert client.ask(b"abc\n", 2) == b"3\n"
        wait_until(lambda: sum(stormed) > before + 20, "the storm goes on")
    finally:
        storm_over.set()
        for thread in threads:
            thread.join(DEADLINE_S)

"""Who is not let in: behaviours 5 to 7."""

from __future__ import annotations

import socket

import psutil
import pytest

from clients import Client
from evloop import EventLoop, Limits, Server
from faults.endings import assert_no_reset_follows
from servers import Echo, recorder, small_limits
from waiting import wait_until

pytestmark = pytest.mark.one_selector


# ---------------------------------------------------------------------- 5


def test_05_connection_over_the_cap_gets_an_error_line_and_is_counted(start, logged):
    logged.expect("refused: too-many-connections limit 3")
    logged.allow("left out")
    server = start(Echo, small_limits(max_connections=3))
    clients = [server.connect() for _ in range(3)]
    for client in clients:
        assert client.ask(b"x", 1) == b"x"
    for _ in range(40):  # more than are told so at the same time with time to spare
        extra = server.connect()
        assert extra.receive_rest() == b"ERR too-many-connections limit 3\n"
    assert server.limit_hits("too-many-connections") == 40
    # Capacity recovers as soon as one leaves.
    clients[0].close()
    wait_until(lambda: len(server.connections()) == 2, "one left")
    assert server.connect().ask(b"y", 1) == b"y"


def test_05_connection_over_the_cap_line_survives_unread_input(start, logged):
    logged.expect("refused: too-many-connections limit 1")
    server = start(Echo, small_limits(max_connections=1, linger_timeout_s=60))
    server.connect()
    wait_until(server.connections, "the one that fits")
    for _ in range(5):
        extra = server.connect()
        extra.send(b"x" * 100_000)  # a reset would destroy the line on its way
        assert extra.receive_rest() == b"ERR too-many-connections limit 1\n"
        assert_no_reset_follows(extra)


def test_05_connection_over_the_cap_storm_of_refusals_costs_no_descriptors(start, logged):
    logged.allow("refused: too-many-connections limit 2|left out")
    server = start(Echo, small_limits(max_connections=2, backlog=200, linger_timeout_s=30))
    clients = [server.connect() for _ in range(2)]
    wait_until(lambda: len(server.connections()) == 2, "two")
    watched = server.call(lambda: len(server.loop.poller.handlers))
    # They never close: each that is told with time to spare keeps its descriptor meanwhile, so those are limited.
    extras = [server.connect() for _ in range(100)]
    for extra in extras:
        assert extra.receive_line() == b"ERR too-many-connections limit 2\n"
    assert server.limit_hits("too-many-connections") == 100
    assert server.call(lambda: len(server.loop.poller.handlers)) - watched <= 16
    assert clients[0].ask(b"x", 1) == b"x"


def test_05_connection_cap_per_address(start, logged):
    logged.expect("refused: too-many-connections-from-address limit 2")
    server = start(Echo, small_limits(max_connections=10, max_connections_per_address=2))
    clients = [server.connect() for _ in range(2)]
    for client in clients:
        assert client.ask(b"x", 1) == b"x"
    assert server.connect().receive_rest() == b"ERR too-many-connections-from-address limit 2\n"
    assert server.limit_hits("too-many-connections-from-address") == 1
    with Client(server.address, source=("127.0.0.2", 0)) as elsewhere:
        assert elsewhere.ask(b"y", 1) == b"y"
    clients[0].close()
    wait_until(lambda: len(server.connections()) == 1, "one left")
    assert server.connect().ask(b"z", 1) == b"z"
    clients[1].close()


def test_05_connection_cap_per_address_on_the_command_line(spawn):
    server = spawn("--max-connections-per-address", "1")
    assert server.connect().ask(b"abc\n", 2) == b"3\n"
    assert server.connect().receive_rest() == b"ERR too-many-connections-from-address limit 1\n"


def test_05_connection_cap_is_clamped_to_the_descriptor_limit_and_says_so(spawn):
    server = spawn("--max-connections", "1000", soft_descriptors=64, hard_descriptors=100)
    # The soft limit was raised to the hard one; 32 are kept for the server itself.
    assert server.psutil.rlimit(psutil.RLIMIT_NOFILE)[0] == 100
    assert (
        "at most 68 connections, not 1000: the descriptor limit allows no more (raise it with ulimit -n)" in server.log
    )


# ---------------------------------------------------------------------- 6


def test_06_backlog_is_deep(spawn):
    server = spawn("--log-level", "error")
    server.stop()
    # A server that is busy for a moment turns nobody away: all these wait in the kernel.
    clients = [server.connect() for _ in range(1000)]
    for client in clients:
        client.send(b"abc\n")
    server.resume()
    assert {client.receive_exactly(2) for client in clients} == {b"3\n"}


def test_06_backlog_is_configurable(spawn):
    server = spawn("--backlog", "5")
    server.stop()
    pending = []
    try:
        for _ in range(20):
            sock = socket.socket()
            sock.settimeout(0.05)
            pending.append(sock)
            try:
                sock.connect(server.address)
            except TimeoutError:
                break
        # The kernel lets in one more than asked for.
        assert len(pending) - 1 == 6
    finally:
        for sock in pending:
            sock.close()


# ---------------------------------------------------------------------- 7


def test_07_connect_and_close_probes_leave_no_trace(spawn):
    process = spawn()
    said_at_start = process.log
    for number in range(100):
        probe = process.connect()
        if number % 2:
            probe.close()
        else:
            probe.reset()
    client = process.connect()
    assert client.ask(b"abc\n", 2) == b"3\n"
    process.wait_for_log("INFO connect ")
    wait_until(lambda: len(process.psutil.net_connections()) <= 2, "probes are gone")
    (line,) = process.log.removeprefix(said_at_start).splitlines()
    host, port = client.socket.getsockname()
    assert line.endswith(f"INFO connect {host}:{port}")


def test_07_connect_and_close_probes_are_counted(start):
    server = start(recorder())
    for number in range(10):
        probe = server.connect()
        if number % 2:
            probe.close()
        else:
            probe.reset()
    user = server.connect()
    user.send(b"x")
    user.close()
    wait_until(lambda: server.server.stats.closed == 11, "all closed")
    assert server.server.stats.probes == 10
    assert server.server.stats.failed == 0  # a reset is told to on_close, but it is how some health checks end


def test_07_probes_are_not_logged_above_debug_by_the_library(start, caplog):
    caplog.set_level("DEBUG")
    server = start(Echo)
    server.connect().reset()
    server.connect().close()
    wait_until(lambda: server.server.stats.closed == 2, "both closed")
    assert {record.levelname for record in caplog.records} <= {"DEBUG"}


def test_default_limits_are_what_the_documentation_says():
    limits = Limits()
    assert (limits.backlog, limits.accepts_per_pass, limits.max_connections) == (4096, 64, 10000)
    with EventLoop() as loop:
        assert Server(loop, Echo).max_connections <= 10000

"""Start and stop: behaviours 31 to 34 of docs/reliability.md. For the drain under load see test_drain.py."""

from __future__ import annotations

import errno
import re
import shutil
import signal
import socket
import threading
import time

import pytest

from evloop import Connection, Limits, LineProtocol
from evloop.net.state import State
from faults.faultysocket import FaultySocket
from interpreters import loads_logging_fast
from processes import Process
from servers import small_limits
from variants import first_of
from waiting import DEADLINE_S, run_pass, run_until, wait_until

EXIT_ABORTED = 1


# ---------------------------------------------------------------------- 31


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_31_signal_answers_what_was_received_closes_idle_ones_and_exits_0(spawn, signum):
    server = spawn()
    idle, busy = server.connect(), server.connect()
    assert idle.ask(b"abc\n", 2) == b"3\n"
    assert busy.ask(b"abc\n", 2) == b"3\n"
    server.stop()
    busy.send(b"abcd\n" * 1000 + b"unfinished")
    server.signal(signum)
    server.resume()
    assert idle.receive_rest() == b""
    assert busy.receive_rest() == b"4\n" * 1000  # the message that has not ended is not a message
    idle.close()
    busy.close()
    assert server.wait() == 0
    assert "stopping: 2 connections to finish" in server.log
    assert "Traceback" not in server.log


def test_31_signal_stops_accepting_at_once(spawn):
    server = spawn("--drain-timeout", "30")
    stuck(server)
    address = server.address
    server.signal(signal.SIGTERM)
    server.wait_for_log("stopping")

    def refused() -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(address) == errno.ECONNREFUSED

    wait_until(refused, "connection refused")
    assert server.popen.poll() is None


def stuck(server: Process) -> None:
    """A client that makes a drain impossible: it does not read what it is owed."""
    client = server.connect(receive_buffer=4096)
    client.socket.setblocking(False)
    sent = blocked = 0
    while blocked < 50:
        try:
            sent += client.socket.send(b"\n" * 65536)
            blocked = 0
        except BlockingIOError:
            blocked += 1
            threading.Event().wait(0.005)
    assert sent > 1_000_000


def test_31_signal_deadline_aborts_what_is_left(spawn):
    server = spawn("--drain-timeout", "0.3")
    stuck(server)
    well = server.connect()
    assert well.ask(b"abc\n", 2) == b"3\n"
    server.signal(signal.SIGTERM)
    assert well.receive_rest() == b""
    well.close()
    assert server.wait() == EXIT_ABORTED
    assert "1 connections not done after 0.3 s: aborted" in server.log


def test_31_signal_twice_forces(spawn):
    server = spawn("--drain-timeout", "600")
    stuck(server)
    server.signal(signal.SIGTERM)
    server.wait_for_log("stopping")
    server.signal(signal.SIGTERM)
    assert server.wait() == EXIT_ABORTED
    assert "Traceback" not in server.log


def test_31_signal_with_nobody_connected_stops_at_once(spawn):
    server = spawn("--drain-timeout", "600")
    server.signal(signal.SIGTERM)
    assert server.wait() == 0


@pytest.mark.parametrize("count", first_of(6, 40))
def test_31_signal_twice_within_milliseconds_never_ends_it_by_the_signal(spawn, count):
    servers = [spawn() for _ in range(count)]
    for number, server in enumerate(servers):
        server.signal(signal.SIGTERM)
        time.sleep(0.01 * number / count)  # the second one comes at another moment of the end each time
        server.signal(signal.SIGTERM)
    statuses = [server.wait() for server in servers]
    assert set(statuses) <= {0, EXIT_ABORTED}, statuses
    assert not [server.log for server in servers if "Traceback" in server.log]


@pytest.mark.skipif(shutil.which("nohup") is None, reason="nohup is not installed")
@loads_logging_fast
def test_31_signal_of_a_closed_terminal_is_ignored_under_nohup(spawn):
    server = spawn(prefix=("nohup",))
    client = server.connect()
    server.signal(signal.SIGHUP)
    assert client.ask(b"abc\n", 2) == b"3\n"
    assert "SIGHUP" not in server.log
    client.close()
    server.signal(signal.SIGTERM)
    assert server.wait() == 0


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no such signal here")
def test_status_is_written_on_request_whatever_the_log_level(spawn):
    server = spawn("--log-level", "error")
    client = server.connect()
    assert client.ask(b"abc\n", 2) == b"3\n"
    server.signal(signal.SIGUSR1)
    server.wait_for_log("slowest_handler")
    status = server.log.partition("status:")[2]
    assert re.search(r"^  connections +1$", status, re.M)
    assert re.search(r"^  received_bytes +4$", status, re.M)


# ---------------------------------------------------------------------- 32


def test_32_drain_covers_the_backlog_and_the_unread(spawn):
    server = spawn("--log-level", "warning")
    accepted = [server.connect() for _ in range(50)]
    for client in accepted:
        assert client.ask(b"abc\n", 2) == b"3\n"
    server.stop()
    for number, client in enumerate(accepted):
        client.send(b"x" * number + b"\n")
    # More than are accepted in one pass; the server has not seen any of them.
    queued = [server.connect() for _ in range(150)]
    for number, client in enumerate(queued):
        client.send(b"y" * number + b"\n" + b"z\n" * 1000)
    half_closed = [server.connect() for _ in range(10)]
    for client in half_closed:
        client.send(b"the last one has no end")
        client.half_close()
    server.signal(signal.SIGTERM)
    server.resume()
    for number, client in enumerate(accepted):
        assert client.receive_rest() == b"%d\n" % number
    for number, client in enumerate(queued):
        assert client.receive_rest() == b"%d\n" % number + b"1\n" * 1000
    for client in half_closed:
        assert client.receive_rest() == b"23\n"
    for client in [*accepted, *queued, *half_closed]:
        client.close()
    assert server.wait() == 0


def test_32_drain_takes_all_that_a_receive_buffer_can_hold(spawn):
    server = spawn()
    client = server.connect()
    assert client.ask(b"abc\n", 2) == b"3\n"
    server.stop()
    client.socket.setblocking(False)
    line, sent = b"x" * 999 + b"\n", 0
    try:
        while True:
            sent += client.socket.send(line * 10)
    except BlockingIOError:
        pass
    client.socket.settimeout(DEADLINE_S)
    # Of what our kernel took, some is still on our side: only what reached the server's must be answered. On loopback
    # that is what fits its receive buffer.
    server.signal(signal.SIGTERM)
    server.resume()
    answered = client.receive_rest().count(b"999\n")
    assert answered * 1000 > 65536
    client.close()
    assert server.wait() == 0


@pytest.mark.one_selector
def test_32_drain_is_not_cut_by_the_message_deadline(counting):
    """The message that has begun will never end, as nothing is read any more: that is not its client's fault."""
    limits = small_limits(message_timeout_s=0.2, high_water_bytes=1 << 23, drain_timeout_s=60)
    server = counting(limits, template="{count:>999}")
    server.server.listeners[0].socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    release = server.hold()
    client = server.connect(receive_buffer=4096)
    client.send(b"\n" * 1000 + b"unfinished")
    server.loop.call_soon_threadsafe(server.server.drain)  # accepts it, reads it, and closes it, as far as it can
    release.set()
    began, received = time.monotonic(), b""
    while time.monotonic() - began < 0.8:  # four times as long as a message may take
        received += client.receive_exactly(2048)
        time.sleep(0.01)
    assert len(received) < 500_000  # it had to be sent much all the time
    assert received + client.receive_rest() == (b" " * 998 + b"0\n") * 1000
    client.close()
    server.wait_empty()
    assert server.call(lambda: server.server.stats.limits) == {}
    assert not server.server.aborted


@pytest.mark.one_selector
def test_32_drain_ends_though_the_peer_never_stops_sending(loop):
    """There is always more to read. Answered is what a full receive buffer can have held when it began."""
    line, received = b"x" * 999 + b"\n", bytearray()

    class Lengths(LineProtocol):
        def on_line(self, line: bytes) -> bytes:
            received.extend(line + b"\n")
            return b"%d\n" % len(line)

    near, peer = socket.socketpair()
    near.setblocking(False)
    peer.setblocking(False)
    replies: list[bytes] = []

    def never_runs_dry(size: int) -> int:
        try:
            replies.append(peer.recv(1 << 20))
        except BlockingIOError:
            pass
        try:
            while not connection.closing:
                peer.send(line)  # whole or not at all, as it is short
        except BlockingIOError:
            pass
        return size

    faulty = FaultySocket(near, receive_plan=never_runs_dry)
    connection = Connection(loop, faulty, "peer", Lengths(), Limits())
    connection.open()
    peer.send(line)
    run_until(loop, lambda: connection.bytes_received > 200_000, "it is at it")
    before = connection.bytes_received
    held = near.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    connection.drain()
    run_until(loop, lambda: connection.closing, "the end of reading")
    # And at most what was received in the pass that found this out: by the drain, and by the loop.
    assert before + held <= connection.bytes_received <= before + held + 2 * 65536
    peer.shutdown(socket.SHUT_WR)
    run_until(loop, lambda: connection.state is State.CLOSED, "the end")
    while part := peer.recv(1 << 20):
        replies.append(part)
    assert len(received) > before + held - len(line)
    assert b"".join(replies) == b"999\n" * (len(received) // len(line))
    run_pass(loop)
    peer.close()

"""Start and stop: behaviours 31 to 34 of docs/reliability.md. For the drain under load see test_drain.py."""

from __future__ import annotations

import errno
import os
import re
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import evloop.server.listener
from evloop import Connection, Limits, LineProtocol
from evloop.charcount.server import CharCountServer, ServiceSettings
from evloop.errors import ListenError
from evloop.net.state import State
from evloop.server.listener import open_listeners
from faults.faultysocket import FaultySocket
from faults.processes import ROOT, SERVER, Process, listening_socket
from harness import DEADLINE_S, run_pass, run_until, small_limits, wait_until
from interpreters import loads_logging_fast

EXIT_ABORTED = 1
EXIT_CANNOT_LISTEN = 3


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


def test_31_signal_twice_within_milliseconds_never_ends_it_by_the_signal(spawn):
    servers = [spawn() for _ in range(20)]
    for number, server in enumerate(servers):
        server.signal(signal.SIGTERM)
        time.sleep(0.0005 * number)  # the second one comes at another moment of the end each time
        server.signal(signal.SIGTERM)
    statuses = [server.wait() for server in servers]
    assert set(statuses) <= {0, EXIT_ABORTED}, statuses
    assert not [server.log for server in servers if "Traceback" in server.log]


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no such signal here")
@loads_logging_fast
def test_31_signal_of_a_closed_terminal_stops_it_unless_it_is_ignored(spawn):
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # else these tests run under nohup themselves
        server = spawn()
        client = server.connect()
        assert client.ask(b"abc\n", 2) == b"3\n"
        server.stop()
        client.send(b"abcd\n")
        server.signal(signal.SIGHUP)
        server.resume()
        assert client.receive_rest() == b"4\n"
        client.close()
        assert server.wait() == 0
    if shutil.which("nohup"):
        server = spawn(prefix=("nohup",))
        client = server.connect()
        server.signal(signal.SIGHUP)
        assert client.ask(b"abc\n", 2) == b"3\n"
        assert "stopping" not in server.log
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


@pytest.mark.parametrize("selector", [selectors.DefaultSelector])
def test_32_drain_is_not_cut_by_the_message_deadline(start):
    """The message that has begun will never end, as nothing is read any more: that is not its client's fault."""
    limits = small_limits(message_timeout_s=0.2, high_water_bytes=1 << 23, drain_timeout_s=60)
    settings = ServiceSettings(template="{count:>999}", limits=limits)
    server = start(make_server=lambda loop: CharCountServer(loop, settings))
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


@pytest.mark.parametrize("selector", [selectors.DefaultSelector])
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


# ---------------------------------------------------------------------- 33


def run_server(*arguments: str, prefix: tuple[str, ...] = ()) -> tuple[int, list[str]]:
    """Exit status and lines of stderr of a server that can't start."""
    command = [*prefix, sys.executable, str(SERVER), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, cwd=ROOT)
    assert done.stdout == ""
    return done.returncode, done.stderr.splitlines()


def test_33_port_taken_is_one_line_that_says_who_has_it():
    with listening_socket() as taken:
        port = taken.getsockname()[1]
        status, lines = run_server("--port", str(port))
    assert status == EXIT_CANNOT_LISTEN
    assert len(lines) == 1
    assert lines[0].startswith(f"charcount-server: cannot listen on 127.0.0.1:{port}: the port is taken")
    assert lines[0].endswith("or choose another port")
    if sys.platform == "linux":
        assert f"(pid {os.getpid()})" in lines[0]


def test_33_bad_host_is_one_line():
    status, lines = run_server("--host", "no.such.host.invalid", "--port", "0")
    assert status == EXIT_CANNOT_LISTEN
    assert len(lines) == 1
    assert lines[0].startswith("charcount-server: cannot resolve host 'no.such.host.invalid': ")
    # An address that exists and is somebody else's: 192.0.2.0/24 is for examples.
    status, lines = run_server("--host", "192.0.2.1", "--port", "0")
    assert (status, lines) == (
        EXIT_CANNOT_LISTEN,
        ["charcount-server: cannot listen on 192.0.2.1:0: not an address of this machine; try 127.0.0.1 or 0.0.0.0"],
    )


def test_33_no_permission_is_one_line():
    first_open_port = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
    if first_open_port.exists() and int(first_open_port.read_text()) <= 80:
        pytest.skip("this system lets everybody listen on port 80")
    prefix: tuple[str, ...] = ()
    if os.geteuid() == 0:
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            pytest.skip("runs as root, and setpriv is not installed")
        prefix = (setpriv, "--bounding-set", "-net_bind_service")
    status, lines = run_server("--port", "80", prefix=prefix)
    assert (status, lines) == (
        EXIT_CANNOT_LISTEN,
        ["charcount-server: cannot listen on 127.0.0.1:80: no permission; choose a port of 1024 or above"],
    )


@pytest.mark.parametrize(
    "arguments",
    [("--port", "70000"), ("--port", "abc"), ("--reply", "no count"), ("--max-connections", "0"), ("--bogus",)],
)
def test_33_wrong_usage_exits_2(arguments):
    status, lines = run_server(*arguments)
    assert status == 2
    assert lines[-1].startswith("charcount-server: ")
    assert lines[-1].endswith("see charcount-server --help")


# ---------------------------------------------------------------------- 34


def test_34_port_0_prints_the_real_address(spawn):
    server = spawn()
    host, port = server.address
    assert (host, port > 0) == ("127.0.0.1", True)
    assert server.connect().ask(b"abc\n", 2) == b"3\n"


def test_34_dual_stack_same_port_for_both_and_both_are_printed(spawn):
    if not has_ipv6():
        pytest.skip("this machine has no IPv6 loopback address")
    server = spawn("--host", "")
    wait_until(lambda: server.log.count("\n") == 2, "two lines")
    said = [line.rpartition(" ")[2] for line in server.log.splitlines() if "listening on " in line]
    port = server.address[1]
    assert sorted(said) == sorted([f"0.0.0.0:{port}", f"[::]:{port}"])
    for address in (("127.0.0.1", port), ("::1", port)):
        with socket.create_connection(address, DEADLINE_S) as sock:
            sock.sendall(b"abc\n")
            assert sock.recv(10) == b"3\n"
    server.wait_for_log("connect 127.0.0.1:")  # not ::ffff:127.0.0.1
    server.wait_for_log("connect [::1]:")


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_34_dual_stack_port_0_tries_another_port_if_only_one_family_has_it(monkeypatch):
    """The port that the kernel picks for the first address may be taken on the second."""
    if not has_ipv6():
        pytest.skip("this machine has no IPv6 loopback address")
    real = evloop.server.listener._open_listener
    picked: list[int] = []

    def taken_on_the_second(family: int, address: tuple, backlog: int) -> socket.socket:
        if address[1] and len(picked) < 3:
            picked.append(address[1])
            raise OSError(errno.EADDRINUSE, "Address already in use")
        return real(family, address, backlog)

    monkeypatch.setattr(evloop.server.listener, "_open_listener", taken_on_the_second)
    sockets = open_listeners("", 0, 5)
    ports = {sock.getsockname()[1] for sock in sockets}
    for sock in sockets:
        sock.close()
    assert len(sockets) == 2
    assert len(ports) == 1
    assert len(picked) == 3


def test_34_port_given_and_taken_on_one_family_is_an_error():
    with listening_socket() as taken, pytest.raises(ListenError, match="the port is taken"):
        open_listeners("127.0.0.1", taken.getsockname()[1], 5)

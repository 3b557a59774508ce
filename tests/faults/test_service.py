"""Addresses, signals, listeners, status: 45 to 50 of docs/reliability.md."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clients import Client
from evloop import Connection, EventLoop, Protocol, Server
from evloop.net.sockets import origin, peer_text
from evloop.server.listener import Listener
from paths import ROOT
from processes import listening_socket
from servers import Echo, small_limits
from waiting import DEADLINE_S, run_pass, run_until

pytestmark = pytest.mark.one_selector


def talks(size: int) -> type[Protocol]:
    """A protocol that says so many bytes, unasked."""

    class Talks(Protocol):
        def on_connect(self) -> bytes:
            return b"x" * size

    return Talks


# ---------------------------------------------------------------------- 45


def adopt(server: Server, family: int, address: object) -> socket.socket:
    """Have a server serve one end of a pair as if it came from that address; the other end."""
    near, far = socket.socketpair()
    near.setblocking(False)
    far.settimeout(DEADLINE_S)
    server._accepted(Connection, family, near, address)
    return far


@pytest.mark.parametrize(("bits", "served"), [(64, 2), (48, 1), (128, 3)])
def test_45_ipv6_prefix_is_what_is_counted(loop, logged, bits, served):
    logged.allow("refused: too-many-connections-from-address limit 1")
    server = Server(loop, Echo, small_limits(max_connections_per_address=1, ipv6_prefix_bits=bits))
    ends = [
        adopt(server, socket.AF_INET6, (host, 1000, 0, 0))
        for host in ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", "2001:db8:0:2::1", "2001:db8:0:1::1")
    ]
    assert len(server.connections) == served
    server.abort()
    run_pass(loop)
    assert not server._by_origin
    for end in ends:
        end.close()


def test_45_ipv6_prefix_does_not_make_one_of_all_ipv4_addresses():
    assert origin(socket.AF_INET6, ("::ffff:192.0.2.1", 1, 0, 0), 64) == "192.0.2.1"
    assert origin(socket.AF_INET, ("192.0.2.1", 1), 64) == "192.0.2.1"
    assert origin(socket.AF_INET6, ("fe80::1%eth0", 1, 0, 2), 64) == origin(socket.AF_INET6, ("fe80::2", 1, 0, 2), 64)
    assert origin(socket.AF_UNIX, "", 64) is None


# ---------------------------------------------------------------------- 46

BLOCKS_SIGNALS = (
    "import os, signal, sys\n"
    "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGALRM})\n"
    "os.execv(sys.argv[1], sys.argv[1:])"
)


def test_46_blocked_signal_that_was_inherited_stops_the_server(spawn):
    server = spawn("--log-level", "error", prefix=(sys.executable, "-c", BLOCKS_SIGNALS))
    server.signal(signal.SIGUSR1)
    server.wait_for_log("status:")
    server.signal(signal.SIGTERM)
    assert server.wait() == 0


def test_46_blocked_signal_is_blocked_again_when_the_loop_gives_it_back(loop):
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        loop.add_signal_handler(signal.SIGUSR2, int)
        loop.add_signal_handler(signal.SIGUSR2, int)
        assert signal.SIGUSR2 not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
        loop.remove_signal_handler(signal.SIGUSR2)
        assert signal.SIGUSR2 in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})


# ---------------------------------------------------------------------- 47


def test_47_serve_on_a_taken_port_is_one_line_and_a_status(tmp_path):
    with listening_socket() as taken:
        port = taken.getsockname()[1]
        script = tmp_path / "script.py"
        script.write_text(f"from evloop import Protocol, serve\nserve(Protocol, port={port})\nprint('not reached')\n")
        done = subprocess.run(
            [sys.executable, str(script)],
            env={"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
    assert (done.returncode, done.stdout) == (3, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"cannot listen on 127.0.0.1:{port}: the port is taken")


SERVES_TWO = """
import sys
from evloop import LineProtocol, Server, serve

class Upper(LineProtocol):
    def on_line(self, line):
        return line.upper() + b"\\n"

class Length(LineProtocol):
    def on_line(self, line):
        return b"%d\\n" % len(line)

def start(loop, server):
    other = Server(loop, Length)
    print("the other is at", *other.listen(), file=sys.stderr, flush=True)
    loop.call_later(0, lambda: print("a timer has fired", file=sys.stderr, flush=True))
    return [other]

serve(Upper, on_start=start)
"""


def test_47_serve_gives_loop_and_server_and_stops_all_servers_in_order(spawn_program):
    server = spawn_program(SERVES_TWO)
    server.wait_for_log("a timer has fired")
    host, _, port = server.log.partition("the other is at ")[2].split()[0].rpartition(":")
    with Client((host, int(port))) as other:
        assert other.ask(b"abc\n", 2) == b"3\n"
        assert server.connect().ask(b"abc\n", 4) == b"ABC\n"
        server.stop()
        other.send(b"in the kernel when the signal comes\n")
        server.signal(signal.SIGTERM)
        server.resume()
        assert other.receive_rest() == b"35\n"
    for client in server._clients:
        client.close()
    assert server.wait() == 0


# ---------------------------------------------------------------------- 48


def test_48_listener_that_cannot_be_watched_again_tries_on(loop, monkeypatch, logged):
    logged.expect("cannot accept on")
    monkeypatch.setattr("evloop.server.listener.EXHAUSTED_PAUSE_S", 0.02)
    accepted: list[socket.socket] = []
    sock = listening_socket()
    sock.setblocking(False)
    listener = Listener(loop, sock, 10, lambda sock, address: accepted.append(sock))
    listener._rest("tested")
    watch, failures = loop.poller.watch, [1, 2, 3]

    def fails_at_first(fd: int, events: int, handler: Callable[[], None]) -> None:
        if events and failures:
            failures.pop()
            raise OSError(12, "Cannot allocate memory")
        watch(fd, events, handler)

    monkeypatch.setattr(loop.poller, "watch", fails_at_first)
    with Client(sock.getsockname()):
        run_until(loop, lambda: accepted)
    assert not failures
    assert not listener.resting
    listener.close()
    accepted[0].close()


# ---------------------------------------------------------------------- 49


@pytest.fixture
def unix_listener(tmp_path: Path) -> Iterator[socket.socket]:
    if not hasattr(socket, "AF_UNIX"):
        pytest.skip("no Unix sockets here")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "socket"))
        sock.listen()
        sock.setblocking(False)
        yield sock


def test_49_unix_peer_without_an_address_is_served_like_others(start, unix_listener, logged):
    name = rf"unix:unnamed pid={os.getpid()} uid={os.getuid()}" if sys.platform == "linux" else "unix:unnamed"
    logged.expect(rf"connection {name} refused: too-many-connections limit 3")
    server = start(Echo, small_limits(max_connections=3, max_connections_per_address=2))
    server.call(server.server.add_listener, unix_listener)
    clients = [socket.socket(socket.AF_UNIX) for _ in range(4)]
    for client in clients:
        client.settimeout(DEADLINE_S)
        client.connect(unix_listener.getsockname())
    for client in clients[:3]:  # more than are allowed from one address, which they don't have
        client.sendall(b"x")
        assert client.recv(10) == b"x"
    assert server.connections()[0].peer == name
    assert clients[3].recv(100) == b"ERR too-many-connections limit 3\n"
    for client in clients:
        client.close()
    server.wait_empty()


def test_49_unix_and_other_addresses_as_people_write_them():
    assert peer_text(("192.0.2.1", 80)) == "192.0.2.1:80"
    assert peer_text(("2001:db8::1", 80, 0, 0)) == "[2001:db8::1]:80"
    assert peer_text("/run/app\n.sock") == "unix:/run/app?.sock"
    assert peer_text(b"\0name") == "unix:@name"
    assert peer_text("") == peer_text(b"").replace("@", "unnamed")


def test_49_unix_or_not_the_listener_chooses_the_kind_of_connection(start):
    made = []

    class Special(Connection):
        __slots__ = ()

        def open(self) -> None:
            made.append(self)
            super().open()

    server = start(Echo)
    server.call(lambda: server.server.listen(connection_factory=Special))
    plain, special = (listener.socket.getsockname() for listener in server.server.listeners)
    with Client(plain) as client:
        assert client.ask(b"x", 1) == b"x"
        assert not made
    with Client(special) as client:
        assert client.ask(b"y", 1) == b"y"
    assert len(made) == 1


# ---------------------------------------------------------------------- 50


def test_50_status_is_numbers_and_two_readers_do_not_spoil_each_other(start):
    class Slow(Protocol):
        def on_data(self, data: bytes) -> bytes:
            threading.Event().wait(0.05)
            return data

    server = start(Slow)
    assert server.connect().ask(b"x", 1) == b"x"
    server.passes()  # the reply left before the pass ended
    first = server.call(server.server.status)
    second = server.call(server.server.status)
    assert first["worst_lag_s"] == second["worst_lag_s"] >= 0.05
    assert (first["connections"], first["accepted"], first["received_bytes"]) == (1, 1, 1)
    assert json.loads(json.dumps(first)) == first
    from evloop.server.stats import STATUS

    assert list(first) == list(STATUS)  # each is described


def test_50_status_forgets_a_lag_after_two_minutes_at_most():
    now = [1000.0]
    with EventLoop(clock=lambda: now[0]) as loop:

        def pass_time(seconds: float) -> None:
            loop.call_later(seconds, loop.stop)
            now[0] += seconds
            loop.run()

        def block() -> None:
            now[0] += 3

        loop.call_soon(block)
        pass_time(1)
        assert loop.worst_lag_s == 3
        pass_time(59)
        pass_time(50)
        assert loop.worst_lag_s == 3
        pass_time(60)
        pass_time(60)
        assert loop.worst_lag_s == 0

"""Any bytes where a PROXY header should be, and calls that fail: 67 and 68 of docs/reliability.md."""

from __future__ import annotations

import errno
import random
import socket
from typing import Any

import pytest

from clients import Client
from evloop import Connection, Limits, Server
from faults.faultysocket import os_error
from faults.proxied import FOUR, SIX, client_of, counts, served, waiting
from proxyheaders import ssl_tlv, tlv, v1, v2
from servers import RunningServer, recorder
from waiting import run_pass, run_until, wait_until

# ---------------------------------------------------------------------- 67

SEEDS = [
    b"",
    b"PROXY UNKNOWN\r\n",
    v1(*FOUR),
    v1(*SIX),
    v2(*FOUR),
    v2(*SIX, tlv(2, b"a.example") + tlv(5, b"id"), checksum=True),
    v2(*FOUR, ssl_tlv(client=3, inner=[(0x21, b"TLSv1.3"), (0x22, b"cn")])),
    v2("/run/client", "@abstract"),
    v2(None, local=True),
    b"hello\n",
]


def fuzz(server: RunningServer, seed: int, rounds: int) -> None:
    """Headers with a few bytes changed, left out or put in, in random pieces, ended in all ways."""
    choose = random.Random(seed)
    for _ in range(rounds):
        data = bytearray(choose.choice(SEEDS))
        for _ in range(choose.choice([0, 1, 1, 2, 5])):
            at = choose.randrange(len(data) + 1)
            data[at : at + choose.randrange(3)] = choose.randbytes(choose.randrange(3))
        data += choose.choice([b"", b"abc\n", b"no end", choose.randbytes(3000)])
        client = server.connect()
        try:
            while data:
                size = choose.choice([1, 5, 20, 5000])
                client.send(bytes(data[:size]))
                del data[:size]
            end = choose.choice([Client.close, Client.reset, Client.half_close])
            end(client)
            if end is Client.half_close:
                client.receive_rest()
        except OSError:  # it is over already
            pass
        finally:
            client.close()


def check_after_fuzz(server: RunningServer, logged: Any) -> None:
    wait_until(lambda: not server.connections() and not waiting(server), "all are gone")
    assert served(client_of(server, "192.0.2.1"))
    status = counts(server)
    assert status["accepted"] == status["closed"] + 1
    assert status["failed"] >= status["bad_proxy_headers"] > 0
    assert not [line for line in logged.lines if line.startswith("ERROR")]
    for line in logged.lines:
        assert line.isprintable()
        assert len(line) < 500


def test_67_fuzz_of_headers(behind, logged):
    logged.expect("connection of proxy .* closed: ")
    logged.allow("left out")
    server = behind(proxy_header_timeout_s=60)
    fuzz(server, 67, 300)
    check_after_fuzz(server, logged)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_67_fuzz_of_headers_long(behind, logged, seed):
    logged.expect("connection of proxy .* closed: ")
    logged.allow("left out")
    server = behind(proxy_header_timeout_s=60)
    fuzz(server, seed, 3000)
    check_after_fuzz(server, logged)


# ---------------------------------------------------------------------- 68


class Failing(socket.socket):
    """A connected socket that fails with an errno at a certain receive."""

    code = 0
    fails_at = 1
    receives = 0

    def recv(self, *arguments: int) -> bytes:  # type: ignore[override]
        self.receives += 1
        if self.receives >= self.fails_at and self.code:
            raise os_error(self.code)
        return super().recv(*arguments)


@pytest.fixture
def pair(loop):
    """A server that trusts Unix sockets, one end of a pair to hand to it, and the other end."""
    if not hasattr(socket, "socketpair"):
        pytest.skip("no socket pairs here")
    server = Server(loop, recorder(), Limits(max_connections=100), proxy_from="unix")
    ours, theirs = socket.socketpair()
    sock = Failing(ours.family, ours.type, fileno=ours.detach())
    sock.setblocking(False)
    yield server, sock, theirs
    server.abort()
    run_pass(loop)
    theirs.close()


def accept(server: Server, sock: socket.socket) -> None:
    server._accepted(Connection, sock.family, sock, "")


def test_68_gate_when_the_poller_can_watch_no_more(pair, loop, logged, monkeypatch):
    logged.expect("connection of proxy unix:unnamed closed: .*No space left")
    server, sock, _ = pair

    def full(*_: object) -> None:
        raise os_error(errno.ENOSPC)

    monkeypatch.setattr(loop.poller, "register", full)
    accept(server, sock)
    assert (server.stats.accepted, server.stats.closed, server.stats.failed) == (1, 1, 1)
    assert not server._gate.waiting
    run_pass(loop)
    assert sock.fileno() == -1


@pytest.mark.parametrize("fails_at", [1, 2])
@pytest.mark.parametrize("code", [errno.ECONNRESET, errno.ENOBUFS, errno.ETIMEDOUT])
def test_68_gate_when_receiving_fails(pair, loop, logged, fails_at, code):
    """When it looks, or when it takes what it has seen."""
    if code == errno.ENOBUFS:
        logged.expect("connection of proxy unix:unnamed closed")
    server, sock, theirs = pair
    theirs.send(v1(*FOUR))
    sock.code, sock.fails_at = code, fails_at
    accept(server, sock)
    assert (server.stats.accepted, server.stats.closed) == (1, 1)
    is_probe = fails_at == 1 and code != errno.ENOBUFS
    assert (server.stats.probes, server.stats.failed) == ((1, 0) if is_probe else (0, 1))
    assert sock.fileno() != -1  # else its number could be somebody else's within the pass
    run_pass(loop)
    assert sock.fileno() == -1


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EINTR])
def test_68_gate_when_there_is_nothing_yet(pair, loop, code):
    server, sock, theirs = pair
    theirs.send(v1(*FOUR))
    sock.code = code
    accept(server, sock)
    assert len(server._gate.waiting) == 1
    sock.code = 0
    run_until(loop, lambda: server.connections, "the connection")
    (connection,) = server.connections
    assert connection.peer == "192.0.2.1:56324"


def test_68_gate_wakes_a_listener_that_rests(pair, loop):
    """For want of descriptors: one will be free."""
    server, sock, theirs = pair
    accept(server, sock)

    class Resting:
        resting = True
        resumed = 0

        def resume(self) -> None:
            self.resumed += 1

        def close(self) -> None:
            pass

    listener = Resting()
    server.listeners.append(listener)
    theirs.shutdown(socket.SHUT_WR)
    run_until(loop, lambda: server.stats.closed, "closed")
    run_pass(loop)
    assert listener.resumed == 1


def test_68_gate_when_something_unforeseen_happens(pair, loop, logged, monkeypatch):
    logged.expect("connection of proxy unix:unnamed closed: its header could not be read")
    server, sock, theirs = pair
    theirs.send(v1(*FOUR))

    def broken(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("evloop.server.proxygate.ProxyHeaderReader.feed", broken)
    accept(server, sock)
    assert (server.stats.closed, server.stats.failed) == (1, 1)


def test_68_gate_when_the_protocol_can_not_be_made(loop, logged):
    logged.expect("its protocol could not be made")

    def broken() -> None:
        raise ZeroDivisionError

    server = Server(loop, broken, Limits(max_connections=100), proxy_from="127.0.0.1")
    server.listen()
    with Client(server.listeners[0].socket.getsockname()) as client:
        client.send(v1(*FOUR))
        run_until(loop, lambda: server.stats.closed, "closed")
        assert client.receive_rest() == b""
    assert (server.stats.failed, server.stats.bad_proxy_headers) == (1, 0)
    server.abort()

"""A server in memory, for what takes time: drains and their steps, refusals, counts."""

from __future__ import annotations

import errno
import socket
from collections import deque
from typing import Any

import pytest

from evloop import Limits, ListenError, Protocol, Server, Stream, sleep
from evloop.server.listener import EXHAUSTED_PAUSE_S
from evloop.server.sharedcounts import SharedCounts
from evloop.testing import MemoryLoop, MemorySocket
from servers import recorder


class Served:
    """A server in a memory loop, and clients that are sockets in memory."""

    def __init__(
        self,
        factory: Any = Protocol,
        *,
        proxy_from: str = "",
        counts: SharedCounts | None = None,
        **limits: float | None,
    ) -> None:
        self.loop = MemoryLoop()
        self.server = Server(self.loop, factory, Limits(**limits), proxy_from=proxy_from, counts=counts)
        self.failures: list[int] = []  # what the next accepts fail with
        self.accepts = 0
        self._waiting: deque[socket.socket] = deque()
        # Readable when somebody wants to connect, as a listening socket is.
        self._listening, self._bell = self.loop.pair()
        self._listening.accept = self._accept
        self.listener = self.server.add_listener(self._listening)

    def _accept(self) -> tuple[socket.socket, tuple[str, int]]:
        self.accepts += 1
        if self.failures:
            code = self.failures.pop(0)
            raise OSError(code, "injected")
        self._listening.recv(1)
        return self._waiting.popleft(), ("192.0.2.1", 1024)

    def knock(self) -> MemorySocket:
        """A client that connects, and has not been accepted yet."""
        sock, client = self.loop.pair()
        self._waiting.append(sock)
        self._bell.send(b".")
        return client

    def connect(self) -> MemorySocket:
        """A client that has been accepted."""
        client = self.knock()
        self.loop.advance()
        return client

    def reset(self, client: MemorySocket) -> None:
        """A client breaks off."""
        client.other.error = errno.ECONNRESET
        client.close()
        self.loop.advance()


def test_a_drain_that_everybody_obeys_is_over_at_once():
    served = Served()
    clients = [served.connect() for _ in range(3)]
    stopped: list[float] = []
    served.server.drain(lambda: stopped.append(served.loop.now))
    served.server.drain(lambda: stopped.append(served.loop.now))
    began = served.loop.clock.now
    for client in clients:
        client.close()
    served.loop.advance()
    assert stopped == [began, began]
    assert not served.server.aborted
    assert served.loop.timers == 0
    served.loop.advance(100)
    assert len(stopped) == 2


@pytest.mark.parametrize("timeout_s", [0.4, 10.0, 30.0])
def test_a_drain_takes_its_time_and_not_more(logged, timeout_s):
    logged.expect(r"1 connections not done after .* s: aborted")
    protocol = recorder(on_eof=lambda self: self.connection.hold())
    served = Served(protocol, drain_timeout_s=timeout_s)
    client = served.connect()
    client.shutdown(socket.SHUT_WR)
    served.loop.advance()
    began = served.loop.clock.now
    stopped: list[float] = []
    served.server.drain(lambda: stopped.append(served.loop.now - began))
    served.loop.advance(timeout_s - 0.01)
    assert stopped == []
    served.loop.advance(0.02)
    assert stopped == [pytest.approx(timeout_s, abs=0.002)]
    assert served.server.aborted
    assert served.server.stats.limits["drain-timeout"] == 1
    assert served.loop.timers == 0


@pytest.mark.parametrize(("timeout_s", "counted_s"), [(10.0, 1.0), (4.0, 0.5)])
def test_of_a_time_in_which_nothing_ran_a_drain_counts_a_step(logged, timeout_s, counted_s):
    logged.expect("not done after .* s: aborted")
    served = Served(recorder(on_eof=lambda self: self.connection.hold()), drain_timeout_s=timeout_s)
    client = served.connect()
    client.shutdown(socket.SHUT_WR)
    served.loop.advance()
    served.server.drain()
    served.loop.advance(1)
    served.loop.clock.now += 3600  # suspended
    served.loop.advance(timeout_s - 1 - counted_s - 0.1)
    assert not served.server.aborted
    served.loop.advance(counted_s + 0.2)
    assert served.server.aborted


def test_an_abort_is_remembered():
    served = Served()
    served.connect()
    stopped: list[int] = []
    served.server.drain(lambda: stopped.append(1))
    served.server.abort()
    assert served.server.stopping
    served.server.abort()
    served.loop.advance()
    assert served.server.aborted
    assert stopped == [1]
    assert not served.loop.memory.givers


def test_totals_are_of_those_who_are_gone_and_of_those_who_are_there():
    class Twice(Protocol):
        def on_data(self, data: bytes) -> bytes:
            return data * 2

    served = Served(Twice)
    for _ in range(2):
        client = served.connect()
        client.send(b"12345")
        served.loop.advance()
        assert client.recv(100) == b"1234512345"
        client.shutdown(socket.SHUT_WR)
        served.loop.advance()
        served.connect().send(b"1")
        served.loop.advance()
    assert served.server.totals() == (12, 24)
    assert len(served.server.connections) == 2
    assert len(served.loop.memory.givers) == 1


def test_those_who_wait_are_accepted_by_a_drain_and_no_more_than_can_have_waited():
    served = Served(recorder(), backlog=3)
    clients = [served.knock() for _ in range(6)]
    served.server.drain()
    assert len(served.server.connections) == 4  # a kernel lets one more wait than it is told
    assert served.accepts == 4
    for client in clients:
        client.close()
    served.loop.advance()
    assert not served.server.connections


def test_nobody_is_accepted_by_a_drain_while_the_listener_rests(logged):
    logged.expect("cannot accept on .*: injected; trying again")
    served = Served()
    served.failures = [errno.EMFILE]
    served.connect()
    assert served.listener.resting
    served.server.drain()
    assert served.accepts == 1
    assert not served.listener.resting


def test_a_listener_that_rests_comes_back_after_its_pause_and_not_before(logged):
    logged.expect("cannot accept on .*: injected; trying again")
    served = Served()
    served.failures = [errno.EMFILE, errno.ENFILE]
    served.connect()
    served.loop.advance(EXHAUSTED_PAUSE_S - 0.01)
    assert served.accepts == 1
    served.loop.advance(0.02)
    assert served.accepts == 2
    assert len(logged.lines) == 1  # once a minute
    served.loop.advance(EXHAUSTED_PAUSE_S)
    assert len(served.server.connections) == 1
    assert served.listener.exhausted == served.listener.accept_errors == served.server.stats.limits["descriptors"] == 2


def test_that_it_cannot_accept_is_said_once_a_minute(logged):
    logged.expect("cannot accept on .*: injected; trying again")
    served = Served()
    served.failures = [errno.EMFILE] * 1000
    served.connect()
    served.loop.advance(59.9)
    assert len(logged.lines) == 1
    served.loop.advance(0.3)
    assert len(logged.lines) == 2


def test_what_cannot_be_listened_on_leaves_nothing_behind(monkeypatch):
    loop = MemoryLoop()  # in which real sockets can't be watched: something that the first one meets
    server = Server(loop, Protocol)
    with pytest.raises(ValueError, match="only sockets in memory"):
        server.listen()
    assert server.listeners == []

    registered: list[int] = []

    def once(fd: int, events: int, handler: object) -> None:
        if registered:
            raise OSError(errno.ENOMEM, "no memory for watches")
        registered.append(fd)

    monkeypatch.setattr(loop.poller, "register", once)
    monkeypatch.setattr(loop.poller, "watch", lambda fd, events, handler: registered.append(-fd))
    monkeypatch.setattr(server, "open_endpoint", lambda *args: [loop.pair()[0] for _ in range(3)])
    with pytest.raises(ListenError, match=r"^cannot wait for connections: no memory for watches$"):
        server.listen()
    assert server.listeners == []
    assert registered == [registered[0], -registered[0]]


def test_a_drain_that_a_handler_calls_gives_it_what_has_arrived_meanwhile():
    async def handler(stream: Stream) -> None:
        async for line in stream.lines():
            if line == b"stop":
                client.send(b"more\n")  # has arrived, and can't be handed to who is running
                served.server.drain()
            stream.write(line + b"\n")

    served = Served(handler)
    client = served.connect()
    client.send(b"stop\n")
    served.loop.advance()
    assert client.recv(100) == b"stop\nmore\n"
    assert client.recv(100) == b""
    client.close()
    served.loop.advance()
    assert not served.server.connections


@pytest.mark.parametrize("connected", [False, True])
def test_an_abort_alone_is_a_stop(connected):
    served = Served()
    if connected:
        served.connect()
    served.server.abort()
    assert served.server.stopping
    assert served.server.aborted is connected
    if connected:
        served.loop.advance()
    assert served.loop.timers == 0
    assert not served.loop.memory.givers


def test_a_handler_that_ends_after_its_connection_stops_nothing_else():
    async def handler(stream: Stream) -> None:
        stream.abort()
        await sleep(1)

    served = Served(handler)
    for _ in range(2):
        served.connect()
        served.loop.advance(2)
    assert served.server.stats.closed == 2
    assert not served.server.stopping
    assert served.loop.timers == 1  # the sweep goes on
    assert len(served.loop.memory.givers) == 1


async def naps(stream: Stream) -> None:
    await sleep(100)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    ("limit", "counter"),
    [
        ("max_connections", "too-many-connections"),
        ("max_connections_per_address", "too-many-connections-from-address"),
    ],
)
def test_a_handler_that_goes_on_keeps_the_place_of_its_connection_until_it_ends(logged, limit, counter, shared):
    logged.expect(f"refused: {counter} limit 2")
    counts = SharedCounts([0] * 64, 64, 0) if shared else None
    served = Served(naps, counts=counts, **{limit: 2})
    for _ in range(2):
        served.reset(served.connect())
    assert not served.server.connections
    refused = served.connect()
    assert refused.recv(100) == f"ERR {counter} limit 2\n".encode()
    refused.close()
    served.loop.advance(100)
    clients = [served.connect() for _ in range(2)]
    assert len(served.server.connections) == 2
    assert served.server.stats.limits[counter] == 1
    for client in clients:
        served.reset(client)
    served.loop.advance(100)
    assert not served.server._by_origin


def test_the_client_and_not_its_proxy_is_told_that_handlers_keep_all_places(logged):
    logged.expect("198.51.100.2:2 refused: too-many-connections limit 1")
    served = Served(naps, proxy_from="192.0.2.0/24", max_connections=1)
    client = served.connect()
    client.send(b"PROXY TCP4 198.51.100.1 192.0.2.9 1 80\r\n")
    served.loop.advance()
    served.reset(client)
    other = served.connect()
    assert served.server.proxies_waiting == 1
    other.send(b"PROXY TCP4 198.51.100.2 192.0.2.9 2 80\r\n")
    served.loop.advance()
    assert other.recv(100) == b"ERR too-many-connections limit 1\n"
    served.loop.advance(100)


def test_a_handler_that_closes_and_goes_on_has_one_place():
    async def handler(stream: Stream) -> None:
        stream.close()
        await sleep(1)

    served = Served(handler, max_connections=2, linger_timeout_s=10)
    served.connect()  # the server has said its goodbye, and waits for that of the client
    served.connect()
    assert len(served.server.connections) == 2
    served.server.abort()
    served.loop.advance(2)


def test_one_who_raises_when_it_has_stopped_keeps_nobody_from_being_told():
    served = Served()
    told: list[int] = []

    def raises() -> None:
        raise ValueError

    served.server.drain(raises)
    served.server.drain(lambda: told.append(1))
    with pytest.raises(ValueError):  # what a loop in memory does with what is to be logged
        served.loop.advance()
    assert told == [1]


@pytest.mark.parametrize(("code", "failed"), [(errno.ECONNRESET, 0), (errno.ENOMEM, 1)])
def test_a_probe_that_ends_by_a_reset_has_not_failed(code, failed):
    served = Served()
    served.connect()
    (connection,) = served.server.connections
    connection.end_for(OSError(code, "injected"))
    assert (served.server.stats.probes, served.server.stats.failed) == (1, failed)


def test_a_connection_that_cannot_be_watched_is_over(monkeypatch):
    served = Served()

    def fails(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "no room for watches")

    monkeypatch.setattr(served.loop.poller, "register", fails)
    served.connect()
    assert not served.server.connections
    stats = served.server.stats
    assert (stats.accepted, stats.closed, stats.failed) == (1, 1, 1)


def test_one_who_leaves_ends_the_rest_of_the_listener(logged):
    logged.expect("cannot accept on .*: injected; trying again")
    served = Served()
    first = served.connect()
    served.failures = [errno.EMFILE]
    served.connect()
    assert served.listener.resting
    first.close()
    served.loop.advance()
    served.loop.advance()
    assert not served.listener.resting
    assert served.server.stats.accepted == 2


def test_nothing_is_kept_of_a_connection_that_is_over():
    class Unfinished(Protocol):
        def message_in_progress(self) -> int:
            return 1

    served = Served(Unfinished, message_timeout_s=60)
    client = served.connect()
    client.send(b"x")
    served.loop.advance(3)
    clock = served.server._sweeper._slow_messages
    assert clock.seen
    client.close()
    served.loop.advance()
    assert not served.server.connections
    assert not clock.seen

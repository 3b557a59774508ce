"""Time-outs: never early, late by a quarter at most, counted, and blind to those who behave.

The clock is the test's own, so nothing here waits, and a busy machine changes nothing. One test for each time-out runs
on the real clock.
"""

from __future__ import annotations

import selectors
from collections.abc import Callable, Iterator

import pytest

from clients import Client
from evloop import Connection, EventLoop, Limits, LineProtocol, Protocol, Server
from evloop.net.sockets import unacknowledged_bytes
from servers import Recorder, recorder, small_limits
from waiting import run_pass, run_until, wait_until


class ClockedServer:
    """A server in a loop whose clock stands still but for `pass_time`, run step by step in the test's thread."""

    def __init__(self, selector: type[selectors.BaseSelector], factory: Callable[[], Protocol], limits: Limits) -> None:
        self.now = 1000.0
        self.loop = EventLoop(selector=selector(), clock=lambda: self.now)
        self.server = Server(self.loop, factory, limits)
        self.server.listen()
        self._clients: list[Client] = []

    def connect(self, receive_buffer: int | None = None) -> tuple[Client, Connection]:
        """A client and the server's end of it."""
        before = set(self.server.connections)

        def new() -> set[Connection]:
            return set(self.server.connections) - before

        client = Client(self.server.listeners[0].socket.getsockname(), receive_buffer=receive_buffer)
        self._clients.append(client)
        self.settle(new)
        (connection,) = new()
        return client, connection

    def settle(self, condition: Callable[[], object]) -> None:
        """Run passes, in which no time passes, until the condition is true."""

        def after_a_pass() -> object:
            run_pass(self.loop)
            return condition()

        wait_until(after_a_pass)

    def pass_time(self, seconds: float, step_s: float = 0.05) -> None:
        """Let time pass in small steps, as a loop with nothing to do sees it."""
        until = self.now + seconds
        while self.now < until:
            self.now = min(self.now + step_s, until)
            run_pass(self.loop)

    def ended_after(self, connection: Connection) -> float:
        """Let time pass until a connection is closed; how long that took."""
        began = self.now
        while not connection.closing:
            assert self.now < began + 1000, "never ended"
            self.pass_time(0.05)
        return self.now - began

    def close(self) -> None:
        self.server.abort()
        run_pass(self.loop)
        self.loop.close()
        for client in self._clients:
            client.close()


@pytest.fixture
def clocked(selector: type[selectors.BaseSelector]) -> Iterator[Callable[..., ClockedServer]]:
    """Starts a `ClockedServer` with limits."""
    servers: list[ClockedServer] = []

    def start(factory: Callable[[], Protocol], **limits: float | None) -> ClockedServer:
        servers.append(ClockedServer(selector, factory, small_limits(**{"write_timeout_s": None, **limits})))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


class Echo(Recorder):
    def on_data(self, data: bytes) -> bytes:
        super().on_data(data)
        return data


class Lines(LineProtocol):
    def on_line(self, line: bytes) -> bytes:
        return b"%d\n" % len(line)


class Flood(Recorder):
    def on_connect(self) -> bytes:
        super().on_connect()
        return bytes(12_000_000)


# ---------------------------------------------------------------------- idle


@pytest.mark.parametrize("idle_s", [0.2, 4, 60])
def test_idle_is_found_in_time(clocked, idle_s):
    protocol = recorder(Echo)
    server = clocked(protocol, idle_timeout_s=idle_s)
    client, connection = server.connect()
    server.pass_time(idle_s / 2)
    client.send(b"x")
    server.settle(lambda: protocol.received())
    waited = server.ended_after(connection)
    assert idle_s <= waited <= idle_s * 1.25 + 0.1
    assert protocol.events[-1] == ("close", "LimitError")
    assert server.server.stats.limits["idle-timeout"] == 1
    assert server.server.stats.failed == 1


def test_idle_from_the_start(clocked):
    server = clocked(Protocol, idle_timeout_s=4)
    _, connection = server.connect()
    assert 4 <= server.ended_after(connection) <= 5.1


@pytest.mark.parametrize("who", ["client", "server"])
def test_bytes_in_either_direction_keep_a_connection(clocked, who):
    server = clocked(recorder(), idle_timeout_s=4)
    client, connection = server.connect()
    for _ in range(20):
        moved = connection.bytes_received + connection.bytes_sent
        if who == "client":
            client.send(b"x")
        else:
            connection.write(b"x")
        server.settle(lambda before=moved: connection.bytes_received + connection.bytes_sent > before)
        server.pass_time(2)
    assert not connection.closing
    assert server.server.stats.limits["idle-timeout"] == 0


def test_idle_while_paused_and_while_half_open(clocked):
    protocol = recorder(keep_half_open=True)
    server = clocked(protocol, idle_timeout_s=4)
    _, paused = server.connect()
    paused.pause_reading()
    client, half_open = server.connect()
    client.half_close()
    server.settle(lambda: "eof" in protocol.events)
    server.pass_time(6)
    assert paused.closing
    assert half_open.closing
    assert server.server.stats.limits["idle-timeout"] == 2


def test_idle_ends_a_peer_that_reads_nothing_when_there_is_no_write_timeout(clocked):
    protocol = recorder(Flood)
    server = clocked(protocol, idle_timeout_s=4)
    _, connection = server.connect(receive_buffer=4096)
    server.settle(lambda: connection.stalled)
    server.pass_time(6)
    assert connection.closing
    assert server.server.stats.limits["idle-timeout"] == 1


def test_idle_is_off_by_default(clocked):
    server = clocked(Protocol)
    _, connection = server.connect()
    server.pass_time(1e6, step_s=1e4)
    assert not connection.closing


# ---------------------------------------------------------------------- messages


def test_a_message_deadline_that_dribbled_bytes_do_not_reset(clocked):
    server = clocked(Lines, message_timeout_s=4)
    client, connection = server.connect()
    client.send(b"good\nb")
    server.settle(lambda: connection.bytes_received == 6)
    began = server.now
    while not connection.closing:
        client.send(b"x")
        received = connection.bytes_received
        server.settle(lambda before=received: connection.bytes_received > before)
        server.pass_time(0.2)
        assert server.now < began + 100
    assert 4 <= server.now - began <= 5.3
    assert server.server.stats.limits["message-timeout"] == 1


def test_whole_messages_never_meet_the_message_deadline(clocked):
    server = clocked(Lines, message_timeout_s=4)
    client, connection = server.connect()
    for _ in range(20):
        # There always is a message in progress when the sweep looks, but never the same one for long.
        received = connection.bytes_received
        client.send(b"rest\nbegin")
        server.settle(lambda before=received: connection.bytes_received == before + 10)
        server.pass_time(2)
    assert not connection.closing
    waited = server.ended_after(connection)  # and the last one is never finished
    assert 1.9 <= waited <= 3.2
    assert server.server.stats.limits["message-timeout"] == 1


def test_silence_between_messages_never_meets_the_message_deadline(clocked):
    server = clocked(Lines, message_timeout_s=4)
    client, connection = server.connect()
    client.send(b"whole\n")
    server.settle(lambda: connection.bytes_sent)
    server.pass_time(100)
    assert not connection.closing


# ---------------------------------------------------------------------- writes


@pytest.mark.parametrize("closing", [False, True])
def test_a_peer_that_reads_nothing_is_ended(clocked, closing):
    protocol = recorder(Flood)
    server = clocked(protocol, write_timeout_s=4)
    _, connection = server.connect(receive_buffer=4096)
    server.settle(lambda: connection.stalled)
    for _ in range(10):
        run_pass(server.loop)
    if closing:
        connection.close()
    began = server.now
    server.pass_time(3.9)
    assert "close" not in str(protocol.events)
    server.pass_time(1.3)
    assert protocol.events[-1] == ("close", "LimitError")
    assert server.now - began <= 5.3
    assert server.server.stats.limits["write-timeout"] == 1


def test_a_slow_reader_that_moves_lives(clocked):
    protocol = recorder(Flood)
    # As the idle time-out is shorter: while a peer takes bytes now and then it is neither idle nor stalled.
    server = clocked(protocol, write_timeout_s=4, idle_timeout_s=3)
    client, connection = server.connect(receive_buffer=65536)
    server.settle(lambda: connection.stalled)
    got = 0
    while connection.unsent_bytes:
        sent = connection.bytes_sent
        got += len(client.socket.recv(1 << 20))
        for _ in range(3):
            run_pass(server.loop)
        if connection.bytes_sent > sent:
            server.pass_time(2)
    assert "close" not in str(protocol.events)
    assert got + len(client.receive_exactly(12_000_000 - got)) == 12_000_000


def test_a_pause_in_writing_is_no_stall(clocked):
    server = clocked(recorder(Echo), write_timeout_s=4)
    client, connection = server.connect()
    for _ in range(5):
        sent = connection.bytes_sent
        client.send(b"x")
        server.settle(lambda before=sent: connection.bytes_sent > before)
        # The client's kernel takes 40 ms to acknowledge; that is not the server's clock.
        server.settle(lambda: not unacknowledged_bytes(connection.socket))
        server.pass_time(10)
    assert not connection.closing


# ---------------------------------------------------------------------- the sweep and the real clock


def test_sweeps_in_batches_reach_everyone(clocked, monkeypatch):
    monkeypatch.setattr("evloop.net.sweeper.SWEEP_BATCH", 7)
    server = clocked(Protocol, idle_timeout_s=4)
    connections = [server.connect()[1] for _ in range(50)]
    server.pass_time(5.1)
    assert all(connection.closing for connection in connections)
    assert server.server.stats.limits["idle-timeout"] == 50


def test_a_clock_that_jumps_forward_ends_nobody_early_who_speaks_next(clocked):
    # A laptop that slept: the first sweep sees the bytes that came before it looks at the time.
    protocol = recorder(Echo)
    server = clocked(protocol, idle_timeout_s=4)
    client, connection = server.connect()
    client.send(b"x")
    server.settle(lambda: protocol.received())
    server.now += 3600
    run_pass(server.loop)
    assert not connection.closing
    server.pass_time(6)
    assert connection.closing


@pytest.mark.parametrize("timeout", ["idle", "message", "write"])
def test_on_the_real_clock(start, timeout):
    protocol = Flood if timeout == "write" else Lines
    factory = recorder(protocol) if timeout == "write" else protocol
    server = start(factory, small_limits(**{f"{timeout}_timeout_s": 0.06}))
    client = server.connect(receive_buffer=4096)
    if timeout == "message":
        client.send(b"begun")
    wait_until(lambda: server.limit_hits(f"{timeout}-timeout") == 1)
    server.wait_empty()
    client.close()


def test_the_real_clock_is_never_early(loop):
    server = Server(loop, Protocol, small_limits(idle_timeout_s=0.05))
    server.listen()
    with Client(server.listeners[0].socket.getsockname()) as client:
        run_until(loop, lambda: server.connections)
        (connection,) = server.connections
        run_until(loop, lambda: connection.closing)
        assert loop.now - connection.opened_at >= 0.05
        assert client.receive_rest() == b""
    server.abort()
    run_pass(loop)


# ---------------------------------------------------------------------- limits that change


def test_other_limits_count_for_who_is_there_and_who_comes(clocked, logged):
    logged.expect("refused: too-many-connections limit 1")
    server = clocked(recorder(Echo))
    _, connection = server.connect()
    server.pass_time(100)
    assert not connection.closing
    server.server.change_limits(small_limits(write_timeout_s=None, idle_timeout_s=4, max_connections=1))
    assert server.server.max_connections == 1
    refused = Client(server.server.listeners[0].socket.getsockname())
    server.settle(lambda: server.server.stats.limits["too-many-connections"] == 1)
    refused.close()
    assert server.ended_after(connection) <= 5.1
    assert server.server.stats.limits["idle-timeout"] == 1
    server.server.change_limits(small_limits(write_timeout_s=None))
    _, connection = server.connect()
    server.pass_time(100)
    assert not connection.closing

"""An orderly end: everything that has reached this machine is answered, and then it is over, sooner or later."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from clients import Client
from evloop import LineProtocol, Protocol
from servers import Recorder, RunningServer, recorder, small_limits
from waiting import wait_until


class Upper(LineProtocol):
    def on_line(self, line: bytes) -> bytes:
        return line.upper() + b"\n"


class Drained:
    """Drains a server and knows when it has stopped."""

    def __init__(self, server: RunningServer) -> None:
        self._stopped = threading.Event()
        self.calls = 0
        server.call(server.server.drain, self._on_stopped)

    def _on_stopped(self) -> None:
        self.calls += 1
        self._stopped.set()

    def wait(self) -> None:
        assert self._stopped.wait(10), "the server did not stop"

    @property
    def over(self) -> bool:
        return self._stopped.is_set()


def test_nobody_there(start):
    server = start(Upper)
    Drained(server).wait()
    assert not server.server.aborted


def test_idle_connections_are_closed_in_order(start):
    protocol = recorder()
    server = start(protocol)
    clients = [server.connect() for _ in range(3)]
    wait_until(lambda: protocol.events == ["connect"] * 3)
    drained = Drained(server)
    for client in clients:
        assert client.receive_rest() == b""
        client.close()
    drained.wait()
    assert drained.calls == 1
    assert protocol.events == ["connect"] * 3 + ["close"] * 3
    assert not server.server.aborted


def test_nobody_is_accepted_any_more(start):
    server = start(Upper)
    keeper = server.connect()
    assert keeper.ask(b"x\n", 2) == b"X\n"
    Drained(server)
    port = int(server.addresses[0].rpartition(":")[2])
    with pytest.raises(ConnectionRefusedError):
        Client(("127.0.0.1", port))


def test_requests_that_wait_in_the_kernel_are_answered(start):
    server = start(Upper)
    clients = [server.connect() for _ in range(5)]
    for client in clients:
        assert client.ask(b"x\n", 2) == b"X\n"
    release = server.hold()
    for client in clients:
        client.send(b"one\ntwo\nthree\n")
    server.loop.call_soon_threadsafe(server.server.drain)
    release.set()
    for client in clients:
        assert client.receive_rest() == b"ONE\nTWO\nTHREE\n"
        client.close()
    server.wait_empty()


def test_connections_that_wait_to_be_accepted_are_answered(start):
    server = start(Upper, small_limits(accepts_per_pass=2))
    release = server.hold()
    clients = [server.connect() for _ in range(20)]
    for client in clients:
        client.send(b"still here\n")
    server.loop.call_soon_threadsafe(server.server.drain)
    release.set()
    for client in clients:
        assert client.receive_rest() == b"STILL HERE\n"
        client.close()
    server.wait_empty()
    assert server.server.stats.accepted == 20


def test_more_than_one_chunk_of_requests_is_answered(start, monkeypatch):
    monkeypatch.setattr("evloop.net.connection.RECV_BYTES", 4096)
    server = start(Upper)
    client = server.connect()
    assert client.ask(b"x\n", 2) == b"X\n"
    connection = server.connection()
    release = server.hold()
    request = b"".join(b"line %05d\n" % number for number in range(5000))
    client.send(request)
    # As much of it as the server's side of the kernel takes has arrived: what peek sees does not grow any more.
    arrived = 0
    while (now := len(connection.socket.recv(1 << 20, socket.MSG_PEEK))) > arrived or now < 8192:
        arrived = now
    server.loop.call_soon_threadsafe(server.server.drain)
    release.set()
    answered = client.receive_rest()
    assert len(answered) >= request[:arrived].rfind(b"\n") + 1
    assert answered == request[: len(answered)].upper()
    client.close()
    server.wait_empty()


def test_a_message_without_its_end_is_not_answered(start):
    server = start(Upper)
    client = server.connect()
    client.send(b"whole\npartial")
    assert client.receive_exactly(6) == b"WHOLE\n"
    drained = Drained(server)
    assert client.receive_rest() == b""
    client.close()
    drained.wait()


def test_large_replies_are_flushed(start):
    class Large(Protocol):
        def on_data(self, data: bytes) -> bytes:
            return b"0123456789" * 800_000

    server = start(Large)
    client = server.connect(receive_buffer=8192)
    client.send(b"x")
    assert client.receive_exactly(10) == b"0123456789"
    drained = Drained(server)
    assert not drained.over
    assert client.receive_rest() == b"0123456789" * 799_999
    client.close()
    drained.wait()
    assert not server.server.aborted


def test_what_is_left_at_the_deadline_is_aborted(start, logged):
    logged.expect("2 connections not done after 0.1 s: aborted")

    class Large(Protocol):
        def on_connect(self) -> bytes:
            return bytes(12_000_000)

    server = start(Large, small_limits(drain_timeout_s=0.1))
    for _ in range(2):
        server.connect(receive_buffer=4096)
    wait_until(lambda: len(server.connections()) == 2)
    began = time.monotonic()
    drained = Drained(server)
    drained.wait()
    assert time.monotonic() - began >= 0.1
    assert drained.calls == 1
    assert server.server.aborted
    assert server.limit_hits("drain-timeout") == 2


def test_who_stalls_during_a_drain_was_not_ended_in_order(start):
    class Large(Protocol):
        def on_connect(self) -> bytes:
            return bytes(12_000_000)

    server = start(Large, small_limits(write_timeout_s=0.2, drain_timeout_s=60))
    release = server.hold()
    client = server.connect(receive_buffer=4096)
    server.loop.call_soon_threadsafe(server.server.drain)  # accepts it, too: it can't be given up before
    release.set()
    wait_until(lambda: server.limit_hits("write-timeout") == 1, "given up")
    assert server.server.aborted
    assert server.limit_hits("drain-timeout") == 0
    assert client.was_reset()


def test_a_limit_before_a_drain_is_not_its_affair(start):
    server = start(Upper, small_limits(idle_timeout_s=0.1))
    client = server.connect()
    assert client.receive_rest() == b""
    assert server.limit_hits("idle-timeout") == 1
    Drained(server).wait()
    assert not server.server.aborted


def test_a_peer_that_floods_does_not_keep_the_server(start):
    server = start(Upper)
    client = server.connect()
    stop = threading.Event()

    def flood() -> None:
        client.socket.settimeout(0.5)
        try:
            while not stop.is_set():
                client.send(b"x" * 65535 + b"\n")
        except OSError:
            pass

    def swallow() -> None:
        try:
            while client.socket.recv(1 << 20):
                pass
        except OSError:
            pass

    threads = [threading.Thread(target=flood), threading.Thread(target=swallow)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: server.connection().bytes_received > 1_000_000)
        Drained(server).wait()
    finally:
        stop.set()
        client.close()
        for thread in threads:
            thread.join()
    assert not server.server.aborted


def test_those_who_are_being_refused_do_not_keep_the_server(start, logged):
    logged.expect("refused: too-many-connections limit 1")
    server = start(Upper, small_limits(max_connections=1, linger_timeout_s=60))
    inside, outside = server.connect(), server.connect()
    assert inside.ask(b"x\n", 2) == b"X\n"
    assert outside.receive_rest() == b"ERR too-many-connections limit 1\n"
    drained = Drained(server)
    assert inside.receive_rest() == b""
    inside.close()
    drained.wait()  # though `outside` has not closed its end
    assert not server.server.aborted
    server.passes(1)
    fds = set(server.loop.poller.handlers)
    assert len(fds) == 1, "nothing but the loop's own wake-up is watched"


def test_abort_ends_a_drain(start):
    class Large(Recorder):
        def on_connect(self) -> bytes:
            super().on_connect()
            return bytes(12_000_000)

    protocol = recorder(Large)
    server = start(protocol)
    server.connect(receive_buffer=4096)
    wait_until(lambda: "high" in protocol.events)
    drained = Drained(server)
    server.passes(2)
    assert not drained.over
    server.call(server.server.abort)
    drained.wait()
    assert server.server.aborted
    assert protocol.events == ["connect", "high", "close"]


def test_draining_twice_is_draining_once_and_both_are_told(start):
    server = start(Upper)
    first = Drained(server)
    second = Drained(server)
    first.wait()
    second.wait()
    third = Drained(server)  # it is over already
    third.wait()
    server.passes()
    assert (first.calls, second.calls, third.calls) == (1, 1, 1)


def test_a_paused_connection_is_waited_for(start):
    protocol = recorder()
    server = start(protocol)
    client = server.connect()
    connection = server.connection()
    server.call(connection.pause_reading)
    client.send(b"request")
    drained = Drained(server)
    server.passes(5)
    assert not drained.over
    assert protocol.received() == b""
    server.call(connection.resume_reading)
    assert client.receive_rest() == b""
    client.close()
    drained.wait()
    assert protocol.received() == b"request"
    assert not server.server.aborted


def test_a_half_open_connection_is_closed(start):
    protocol = recorder(keep_half_open=True)
    server = start(protocol)
    client = server.connect()
    client.half_close()
    wait_until(lambda: "eof" in protocol.events)
    server.call(server.connection().write, b"last")
    drained = Drained(server)
    assert client.receive_rest() == b"last"
    drained.wait()

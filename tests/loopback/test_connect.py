"""Outgoing connections: made, refused, timed out, cancelled, unresolvable."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator

import pytest

from clients import Client
from evloop import ConnectError, EventLoop, Limits, Protocol, Server
from outgoing import closed_port, silent_listener
from servers import Recorder, recorder, small_limits
from waiting import run_pass, run_until


def close_connection(loop: EventLoop, protocol: Protocol) -> None:
    protocol.connection.abort()
    run_pass(loop)


def test_connect_and_talk(loop, listener):
    class Greeter(Recorder):
        def on_connect(self) -> bytes:
            super().on_connect()
            return b"hello\n"

    protocol_class = recorder(Greeter)
    protocol = protocol_class()
    loop.connect(protocol, *listener.getsockname())
    assert protocol.events == [], "no callback before connect returns"
    run_until(loop, lambda: protocol.events)
    peer, _ = listener.accept()
    with peer:
        run_pass(loop)
        assert peer.recv(100) == b"hello\n"
        peer.sendall(b"reply")
        peer.shutdown(socket.SHUT_WR)
        run_until(loop, lambda: "close" in protocol.events)
        assert protocol.events == ["connect", ("data", b"reply"), "eof", "close"]
        assert protocol.connection.peer == f"127.0.0.1:{listener.getsockname()[1]}"
        assert protocol.connection.socket.fileno() == -1
        assert peer.recv(1) == b""


def test_the_socket_has_its_options(loop, listener):
    protocol = recorder()()
    loop.connect(protocol, *listener.getsockname(), limits=Limits(kernel_unsent_bytes=54321))
    run_until(loop, lambda: protocol.events)
    sock = protocol.connection.socket
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == 54321
    close_connection(loop, protocol)


def test_a_server_that_speaks_first_is_heard(start, loop):
    class First(Protocol):
        def on_connect(self) -> bytes:
            self.connection.close()
            return b"welcome"

    server = start(First)
    protocol = recorder()()
    loop.connect(protocol, *server.address)
    run_until(loop, lambda: "close" in protocol.events)
    assert protocol.received() == b"welcome"


def test_refused(loop):
    protocol = recorder()()
    port = closed_port()
    loop.connect(protocol, "127.0.0.1", port)
    assert protocol.events == []
    run_until(loop, lambda: protocol.events)
    for _ in range(3):
        run_pass(loop)
    text = f"cannot connect to 127.0.0.1:{port}: {os.strerror(errno.ECONNREFUSED)}"
    assert protocol.events == [("connect error", text)]


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "x" * 70 + ".invalid"])
def test_unresolvable(loop, host):
    protocol = recorder()()
    loop.connect(protocol, host, 1)
    run_until(loop, lambda: protocol.events)
    ((kind, text),) = protocol.events
    assert kind == "connect error"
    assert text.startswith(f"cannot connect to {host}:1: cannot resolve {host!r}: ")
    assert "\n" not in text


@pytest.fixture
def full_listener() -> Iterator[tuple[str, int]]:
    """An address that does not answer."""
    with silent_listener() as sock:
        yield sock.getsockname()


def test_timeout(loop, full_listener):
    protocol = recorder()()
    loop.connect(protocol, *full_listener, timeout_s=0.03)
    started = loop.clock()
    run_until(loop, lambda: protocol.events)
    assert loop.clock() - started >= 0.03
    assert protocol.events == [
        ("connect error", f"cannot connect to 127.0.0.1:{full_listener[1]}: no answer in 0.03 s")
    ]


def test_cancel_while_it_waits(loop, full_listener):
    protocol = recorder()()
    attempt = loop.connect(protocol, *full_listener, timeout_s=0.02)
    run_pass(loop)
    attempt.cancel()
    attempt.cancel()
    over = []
    loop.call_later(0.05, over.append, 1)
    run_until(loop, lambda: over)
    assert protocol.events == []


def test_cancel_before_it_began(loop, listener):
    protocol = recorder()()
    loop.connect(protocol, *listener.getsockname()).cancel()
    for _ in range(3):
        run_pass(loop)
    assert protocol.events == []
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.accept()


def test_cancel_when_the_error_is_about_to_be_told(loop, listener):
    class Unusable(recorder()):
        def data_handler(self):
            loop.call_soon(attempt.cancel)  # before the call that tells the error is queued
            loop.call_later(0, over.append, 1)
            raise OSError("not today")

    over = []
    protocol = Unusable()
    attempt = loop.connect(protocol, *listener.getsockname())
    run_until(loop, lambda: over)
    assert protocol.events == []


def test_cancel_after_it_is_open_changes_nothing(loop, listener):
    protocol = recorder()()
    attempt = loop.connect(protocol, *listener.getsockname(), timeout_s=0.02)
    run_until(loop, lambda: protocol.events)
    attempt.cancel()
    over = []
    loop.call_later(0.05, over.append, 1)
    run_until(loop, lambda: over)  # nor does the time-out
    assert protocol.events == ["connect"]
    assert not protocol.connection.closing
    close_connection(loop, protocol)


def test_no_timer_is_left_behind(loop, listener, full_listener):
    connected, refused, cancelled = recorder()(), recorder()(), recorder()()
    loop.connect(connected, *listener.getsockname(), timeout_s=60)
    loop.connect(refused, "127.0.0.1", closed_port(), timeout_s=60)
    attempt = loop.connect(cancelled, *full_listener, timeout_s=60)
    run_pass(loop)
    assert loop.timers >= 1
    attempt.cancel()
    run_until(loop, lambda: connected.events and refused.events)
    assert loop.timers == 0
    close_connection(loop, connected)


def test_an_exception_in_on_connect_error_is_logged(loop, logged):
    logged.expect("raised")

    class Bad(Protocol):
        called = 0

        def on_connect_error(self, error: ConnectError) -> None:
            Bad.called += 1
            raise ValueError

    loop.connect(Bad(), "127.0.0.1", closed_port())
    run_until(loop, lambda: Bad.called)
    run_pass(loop)
    assert Bad.called == 1


def test_an_exception_in_on_connect_aborts(loop, listener, logged):
    logged.expect("its protocol raised")

    class Bad(Recorder):
        def on_connect(self) -> None:
            super().on_connect()
            raise ValueError

    protocol = recorder(Bad)()
    loop.connect(protocol, *listener.getsockname())
    run_until(loop, lambda: len(protocol.events) == 2)
    assert protocol.events == ["connect", ("close", "ValueError")]


def test_an_exception_in_data_handler_does_not_end_the_loop(loop, listener, logged):
    logged.expect("its protocol could not be used")

    class Bad(Recorder):
        def data_handler(self) -> None:  # type: ignore[override]
            raise ValueError("no handler")

    protocol = recorder(Bad)()
    loop.connect(protocol, *listener.getsockname())
    run_until(loop, lambda: protocol.events)
    ((kind, text),) = protocol.events
    assert kind == "connect error"
    assert "no handler" in text


def test_many_connections_at_once(start, loop):
    class Echo(Protocol):
        def on_data(self, data: bytes) -> bytes:
            return data

    class Asks(Recorder):
        def on_connect(self) -> bytes:
            super().on_connect()
            return b"x"

        def on_data(self, data: bytes) -> None:
            super().on_data(data)
            self.connection.close()

    server = start(Echo)
    protocol = recorder(Asks)
    for _ in range(100):
        loop.connect(protocol(), *server.address)
    run_until(loop, lambda: protocol.events.count("close") == 100)
    assert protocol.events.count("connect") == 100
    assert len(protocol.received()) == 100
    server.wait_empty()
    run_until(loop, lambda: len(loop.poller.handlers) == 1, "the last descriptors closed")


def test_a_client_and_its_server_in_one_loop(loop, listener):
    class Echo(Protocol):
        def on_data(self, data: bytes) -> bytes:
            return data

    server = Server(loop, Echo, small_limits())
    server.listen()
    host, port = server.listeners[0].socket.getsockname()
    protocol = recorder()()
    loop.connect(protocol, host, port)
    run_until(loop, lambda: protocol.events)
    protocol.connection.write(b"round trip")
    run_until(loop, lambda: protocol.received() == b"round trip")
    with Client((host, port)) as other:
        run_until(loop, lambda: len(server.connections) == 2)
        assert other.socket.getpeername() == (host, port)
    protocol.connection.abort()
    server.abort()
    run_pass(loop)

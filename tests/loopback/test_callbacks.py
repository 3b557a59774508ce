"""Which callbacks are called, how often and in what order, and what becomes of what they return."""

from __future__ import annotations

import socket

from evloop import Protocol, State
from servers import Recorder, recorder
from waiting import wait_until


def test_callbacks_in_order_and_once_when_the_client_closes(start):
    protocol = recorder()
    server = start(protocol)
    with server.connect() as client:
        client.send(b"hello")
        wait_until(lambda: protocol.received() == b"hello")
    server.wait_empty()
    assert protocol.events == ["connect", ("data", b"hello"), "eof", "close"]


def test_callbacks_in_order_and_once_when_the_server_closes(start):
    class Closing(Recorder):
        def on_data(self, data: bytes) -> bytes | None:
            super().on_data(data)
            self.connection.close()
            self.connection.close()
            return None

    protocol = recorder(Closing)
    server = start(protocol)
    client = server.connect()
    client.send(b"hello")
    assert client.receive_rest() == b""
    client.close()
    server.wait_empty()
    assert protocol.events == ["connect", ("data", b"hello"), "close"]


def test_callbacks_in_order_and_once_when_the_server_aborts(start):
    class Aborting(Recorder):
        def on_data(self, data: bytes) -> bytes | None:
            super().on_data(data)
            self.connection.abort()
            self.connection.abort()
            return b"never sent"

    protocol = recorder(Aborting)
    server = start(protocol)
    client = server.connect()
    client.send(b"hello")
    assert client.receive_rest() == b""
    server.wait_empty()
    assert protocol.events == ["connect", ("data", b"hello"), "close"]


def test_a_reset_by_the_peer_closes_with_its_error_and_is_not_logged(start):
    protocol = recorder()
    server = start(protocol)
    client = server.connect()
    client.send(b"x")
    wait_until(lambda: protocol.received() == b"x")
    client.reset()
    server.wait_empty()
    assert protocol.events == ["connect", ("data", b"x"), ("close", "ConnectionResetError")]


def test_a_client_that_connects_and_goes_is_no_error(start):
    protocol = recorder()
    server = start(protocol)
    for _ in range(3):
        server.connect().close()
    wait_until(lambda: server.server.stats.closed == 3)
    assert protocol.events.count("connect") == protocol.events.count("close") == 3
    assert server.server.stats.failed == 0


def test_closed_by_on_connect(start):
    class Goodbye(Recorder):
        def on_connect(self) -> bytes:
            super().on_connect()
            self.connection.close()
            return b"goodbye\n"

    protocol = recorder(Goodbye)
    server = start(protocol)
    client = server.connect()
    assert client.receive_rest() == b"goodbye\n"
    client.close()
    server.wait_empty()
    assert protocol.events == ["connect", "close"]


def test_aborted_by_on_connect(start):
    class Away(Recorder):
        def on_connect(self) -> bytes:
            super().on_connect()
            self.connection.abort()
            return b"never sent"

    protocol = recorder(Away)
    server = start(protocol)
    assert server.connect().receive_rest() == b""
    server.wait_empty()
    assert protocol.events == ["connect", "close"]


def test_a_connection_tells_about_itself(start):
    protocol = recorder()
    server = start(protocol)
    client = server.connect()
    client.send(b"12345")
    wait_until(lambda: protocol.received() == b"12345")
    connection = server.connection()
    host, port = client.socket.getsockname()
    assert connection.peer == f"{host}:{port}"
    assert connection.bytes_received == 5
    assert connection.protocol is protocol.last
    assert connection.loop is server.loop
    assert connection.opened_at <= server.loop.now
    assert connection.state is State.OPEN
    assert not connection.closing
    assert repr(connection) == f"<Connection {host}:{port} open unsent=0>"
    server.call(connection.write, b"abc")
    assert client.receive_exactly(3) == b"abc"
    assert server.call(lambda: connection.bytes_sent) == 3
    assert server.server.stats.bytes_sent == 0
    assert server.call(server.server.totals) == (5, 3)
    client.close()
    server.wait_empty()
    assert connection.closing
    assert connection.state is State.CLOSED
    assert server.call(server.server.totals) == (5, 3)


def test_streams_have_no_delay_and_keepalive(start):
    server = start(Protocol)
    client = server.connect()
    sock = server.connection().socket
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert not sock.getblocking()
    client.close()

"""Which callbacks are called, how often and in what order, and what becomes of what they return."""

from __future__ import annotations

import socket

from evloop import Protocol, State
from harness import Recorder, recorder, wait_until


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


def test_each_callback_can_return_bytes_or_write(start):
    class Chatty(Protocol):
        def on_connect(self) -> bytes:
            self.connection.write(b"connect 1\n")
            return b"connect 2\n"

        def on_data(self, data: bytes) -> bytes:
            self.connection.write(b"data 1\n")
            self.connection.write(b"data 2\n")
            return b"data 3\n"

        def on_eof(self) -> bytes:
            self.connection.write(b"eof 1\n")
            return b"eof 2\n"

    client = start(Chatty).connect()
    assert client.receive_exactly(20) == b"connect 1\nconnect 2\n"
    assert client.ask(b"x", 21) == b"data 1\ndata 2\ndata 3\n"
    client.half_close()
    assert client.receive_rest() == b"eof 1\neof 2\n"


def test_what_a_callback_returns_after_close_is_sent_and_what_it_writes_is_not(start):
    class Last(Protocol):
        def on_data(self, data: bytes) -> bytes:
            self.connection.write(b"before ")
            self.connection.close()
            self.connection.write(b"too late ")
            return b"last"

    client = start(Last).connect()
    client.send(b"x")
    assert client.receive_rest() == b"before last"


def test_on_close_may_write_and_close_without_effect(start):
    class Stubborn(Recorder):
        def on_close(self, error: Exception | None) -> None:
            super().on_close(error)
            self.connection.write(b"ghost")
            self.connection.close()
            self.connection.abort()
            self.connection.pause_reading()
            self.connection.resume_reading()

    protocol = recorder(Stubborn)
    server = start(protocol)
    with server.connect() as client:
        client.half_close()
        assert client.receive_rest() == b""
    server.wait_empty()
    server.passes()
    assert protocol.events == ["connect", "eof", "close"]


def test_writes_of_other_callbacks_reach_their_connection(start):
    everyone: list[Protocol] = []

    class Chat(Protocol):
        def on_connect(self) -> None:
            everyone.append(self)

        def on_data(self, data: bytes) -> None:
            for one in everyone:
                one.connection.write(data)

        def on_close(self, error: Exception | None) -> None:
            everyone.remove(self)

    server = start(Chat)
    clients = [server.connect() for _ in range(5)]
    wait_until(lambda: len(everyone) == 5)
    for client in clients:
        client.send(b"hello")
        for other in clients:
            assert other.receive_exactly(5) == b"hello"


def test_another_connection_can_be_closed_from_a_callback(start):
    class Takeover(Protocol):
        current: Protocol | None = None

        def on_connect(self) -> bytes:
            if Takeover.current is not None:
                Takeover.current.connection.close()
            Takeover.current = self
            return b"yours\n"

    server = start(Takeover)
    clients = []
    for _ in range(4):
        clients.append(server.connect())
        assert clients[-1].receive_line() == b"yours\n"
    for client in clients[:-1]:
        assert client.receive_rest() == b""
        client.close()
    wait_until(lambda: len(server.connections()) == 1)


def test_empty_writes_and_replies_do_nothing(start):
    class Silent(Protocol):
        def on_data(self, data: bytes) -> bytes:
            self.connection.write(b"")
            return b"" if data != b"end" else b"."

    client = start(Silent).connect()
    client.send(b"x")
    assert client.receives_nothing()
    assert client.ask(b"end", 1) == b"."


def test_data_goes_to_the_receiver_that_the_protocol_names(start):
    class Direct(Protocol):
        def __init__(self) -> None:
            self.seen: list[bytes] = []

        def data_handler(self):
            return self.receive

        def receive(self, data: bytes) -> bytes:
            self.seen.append(data)
            return b"%d" % len(self.seen)

        def on_data(self, data: bytes) -> bytes:
            raise AssertionError("not called")

    client = start(Direct).connect()
    assert client.ask(b"a", 1) == b"1"
    assert client.ask(b"b", 1) == b"2"


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


def test_pipelined_messages_are_answered_in_order_in_one_stream(start):
    class Double(Protocol):
        def on_data(self, data: bytes) -> bytes:
            return data + data.upper()

    class Count(Protocol):
        def __init__(self) -> None:
            self.total = 0

        def on_data(self, data: bytes) -> bytes:
            self.total += len(data)
            return b"" if self.total < 100_000 else b"%d\n" % self.total

    client = start(Count).connect()
    for _ in range(100):
        client.send(b"x" * 1000)
    assert client.receive_line() == b"100000\n"
    assert start(Double).connect().ask(b"abc", 6) == b"abcABC"

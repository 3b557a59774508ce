"""Connections that come through a trusted proxy: as if the client itself had connected, from its own address."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from typing import Any

import pytest

from clients import Client
from evloop import Connection, Limits, LineProtocol, Protocol, Server
from evloop.charcount.server import CharCountServer, ServiceSettings
from proxyheaders import ssl_tlv, tlv, v1, v2
from servers import RunningServer, recorder, small_limits
from waiting import DEADLINE_S, wait_until

FOUR = ("192.0.2.1", 56324), ("198.51.100.1", 443)
SIX = ("2001:db8::1", 1), ("2001:db8::2", 65535)

Start = Callable[..., RunningServer]


class Whoami(LineProtocol):
    """Answers each line with the peer's address."""

    def on_line(self, line: bytes) -> bytes:
        return f"{self.connection.peer} {self.connection.proxy_header}\n".encode()


@pytest.fixture
def behind(start: Start) -> Start:
    """Starts servers that trust the proxies given."""

    def start_one(protocol: Any, proxy_from: Any = "127.0.0.1", limits: Limits | None = None, **where: Any) -> Any:
        chosen = small_limits() if limits is None else limits
        return start(make_server=lambda loop: Server(loop, protocol, chosen, proxy_from=proxy_from), **where)

    return start_one


def counts(server: RunningServer) -> tuple[int, ...]:
    """Connections accepted, closed, probes among them, failed, and failed for want of a header."""
    stats = server.server.stats
    return server.call(
        lambda: (stats.accepted, stats.closed, stats.probes, stats.failed, stats.bad_proxy_headers)  # type: ignore[return-value]
    )


# ---------------------------------------------------------------------- whom it speaks for


def test_the_peer_is_the_client(behind):
    server = behind(Whoami)
    for header, peer in (
        (v1(*FOUR), "192.0.2.1:56324"),
        (v1(*SIX), "[2001:db8::1]:1"),
        (v2(*FOUR), "192.0.2.1:56324"),
        (v2(*SIX, tlv(2, b"www.example"), checksum=True), "[2001:db8::1]:1"),
        (v2("/run/client", "/run/cc"), "unix:/run/client"),
        (v2("", "/run/cc"), "unix:unnamed"),
    ):
        for cut in (0, 1, 15, len(header) - 1):
            with server.connect() as client:
                client.send(header[:cut])
                if cut:
                    wait_until(lambda: server.server._gate.waiting, "it waits for the rest")
                    server.passes(2)
                    assert not server.connections()
                client.send(header[cut:] + b"one\ntwo\n")
                said = client.receive_line()
                assert said.startswith(f"{peer} PROXY v".encode())
                assert client.receive_line() == said
                connection = server.connection()
                assert connection.peer == peer
                assert connection.proxy_header.sender == "{}:{}".format(*client.socket.getsockname())
                assert repr(connection).startswith(f"<Connection {peer} ")
            server.wait_empty()


@pytest.mark.parametrize("header", [b"PROXY UNKNOWN\r\n", v2(None), v2(None, local=True)])
def test_an_unknown_client_has_the_address_of_its_proxy(behind, header):
    server = behind(Whoami)
    client = server.connect()
    client.send(header + b"\n")
    address = "{}:{}".format(*client.socket.getsockname())
    assert client.receive_line().startswith(f"{address} PROXY v".encode())


def test_what_else_the_proxy_says_is_kept(behind):
    server = behind(Whoami)
    client = server.connect()
    tlvs = (
        tlv(2, b"www.example") + tlv(5, b"id-7") + ssl_tlv(inner=[(0x21, b"TLSv1.3"), (0x23, b"X")]) + tlv(0xEA, b"!")
    )
    client.send(v2(*FOUR, tlvs) + b"\n")
    client.receive_line()
    header = server.connection().proxy_header
    assert (header.authority, header.unique_id, header.tls.version) == ("www.example", b"id-7", "TLSv1.3")
    assert (0xEA, b"!") in header.tlvs


def test_every_byte_after_the_header_is_the_clients_and_comes_in_order(behind):
    """Also when the end of the stream has come with it, and when it looks like a header itself."""
    protocol = recorder()
    server = behind(protocol)
    client = server.connect()
    data = v1(*SIX) + bytes(range(256)) * 64
    release = server.hold()
    client.send(v2(*FOUR) + data)
    client.half_close()
    release.set()
    server.wait_empty()
    assert protocol.received() == data
    assert protocol.events[0] == "connect"
    assert protocol.events[-2:] == ["eof", "close"]
    assert counts(server) == (1, 1, 0, 0, 0)


def test_a_server_that_speaks_first_waits_for_the_header(behind):
    class Greeter(Protocol):
        def on_connect(self) -> bytes:
            return f"hello {self.connection.peer}\n".encode()

    server = behind(Greeter)
    client = server.connect()
    client.send(b"PROXY TCP4 192.0.2.")
    assert client.receives_nothing()
    client.send(b"1 198.51.100.1 56324 443\r\n")
    assert client.receive_line() == b"hello 192.0.2.1:56324\n"


# ---------------------------------------------------------------------- who is trusted


def test_a_header_of_who_is_not_trusted_is_data(behind, logged):
    logged.expect(r"127.0.0.1:\d+ begins with what looks like a PROXY header, .* add its address to proxy_from")
    protocol = recorder()
    server = behind(protocol, "127.0.0.2,10.0.0.0/8,unix")
    client = server.connect()
    client.send(v1(*FOUR))
    wait_until(lambda: protocol.received() == v1(*FOUR), "it is data")
    (connection,) = server.connections()
    assert connection.peer == "{}:{}".format(*client.socket.getsockname())
    assert connection.proxy_header is None


@pytest.mark.parametrize("proxy_from", ["::1", "::/0", "127.0.0.1,::1"])
def test_ipv6_proxies(behind, proxy_from):
    server = behind(Whoami, proxy_from, host="::1")
    client = server.connect()
    client.send(v1(*FOUR) + b"\n")
    assert client.receive_line().startswith(b"192.0.2.1:56324")


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets here")
@pytest.mark.parametrize("trusted", [True, False])
def test_unix_sockets_are_trusted_if_that_is_asked_for(start, logged, tmp_path, trusted):
    if not trusted:
        logged.expect("connection unix:unnamed .*begins with what looks like a PROXY header")

    path = str(tmp_path / "s")

    def make(loop):
        server = Server(loop, Whoami, small_limits(), proxy_from=["0.0.0.0/0", "unix"] if trusted else "0.0.0.0/0,::/0")
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(path)
        sock.listen()
        sock.setblocking(False)
        server.add_listener(sock)
        return server

    start(make_server=make)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(DEADLINE_S)
        client.connect(path)
        client.sendall(v1(*FOUR) + b"\n")
        said = client.recv(1000)
    assert said.startswith(b"192.0.2.1:56324 PROXY v1" if trusted else b"unix:unnamed")
    assert trusted or said.endswith(b" None\n")


def test_nobody_is_trusted_by_default(start, logged):
    logged.expect("looks like a PROXY header")
    server = start(Whoami)
    client = server.connect()
    client.send(v2(*FOUR)[:12] + b"\n")
    assert b" None\n" in client.receive_line()


@pytest.mark.parametrize("first", [b"PROXY is a word\n", b"P", b"\r\n\r\n", b"hello PROXY TCP4 \n"])
def test_only_what_looks_like_a_header_is_called_one(start, first):
    protocol = recorder()
    server = start(protocol)
    client = server.connect()
    client.send(first)
    wait_until(lambda: protocol.received() == first, "received")
    client.send(v1(*FOUR))  # not the first bytes
    wait_until(lambda: protocol.received() == first + v1(*FOUR), "received")


def test_what_a_protocol_does_with_its_data_handler_goes_on(start):
    """That somebody looks at the first bytes is not to be seen in it."""

    class Changing(Protocol):
        def on_connect(self) -> None:
            self.connection.set_data_handler(self.second)

        def second(self, data: bytes) -> bytes:
            before = self.connection.set_data_handler(self.third)
            assert before == self.second
            return b"2" + data

        def third(self, data: bytes) -> bytes:
            return b"3" + data

    client = start(Changing).connect()
    assert client.ask(b"P", 2) == b"2P"
    assert client.ask(b"x", 2) == b"3x"


# ---------------------------------------------------------------------- the service


def test_the_service_logs_the_client_and_what_its_proxy_says(start, caplog):
    caplog.set_level("DEBUG", "charcount")
    settings = ServiceSettings(limits=small_limits(), proxy_from="127.0.0.0/8")
    server = start(make_server=lambda loop: CharCountServer(loop, settings))
    client = server.connect()
    client.send(v2(*FOUR, tlv(2, "\x1b[31mZoë\n".encode()), checksum=True) + b"hello\n")
    assert client.receive_line() == b"5\n"
    client.close()
    wait_until(lambda: len(caplog.messages) == 2, "both lines")
    connect, disconnect = caplog.messages
    assert re.fullmatch(
        r"connect 192\.0\.2\.1:56324 through 127\.0\.0\.1:\d+: PROXY v2 from 192\.0\.2\.1:56324 to 198\.51\.100\.1:443 "
        r"authority='\\x1b\[31mZo\\xeb\\n'",
        connect,
    )
    assert disconnect.startswith("disconnect 192.0.2.1:56324 messages=1 errors=0 received=6 sent=2 ")


@pytest.mark.parametrize("level", ["INFO", "WARNING"])
@pytest.mark.parametrize("framing", ["line", "raw"])
def test_the_service_says_that_a_header_was_taken_for_a_message(start, logged, caplog, level, framing):
    logged.expect(r"127.0.0.1:\d+ begins with what looks like a PROXY header, .* add its address to --proxy-from")
    caplog.set_level(level, "charcount")
    settings = ServiceSettings(limits=small_limits(), framing=framing)
    server = start(make_server=lambda loop: CharCountServer(loop, settings))
    client = server.connect()
    client.send(v1(*FOUR))
    assert client.receive_exactly(2) == b"%d" % (len(v1(*FOUR)) - (0 if framing == "raw" else 2))


@pytest.mark.parametrize("level", ["INFO", "ERROR"])
def test_the_service_looks_at_the_first_bytes_only(start, caplog, level):
    caplog.set_level(level, "charcount")
    server = start(make_server=lambda loop: CharCountServer(loop, ServiceSettings(limits=small_limits())))
    client = server.connect()
    assert client.ask(b"abc\n", 2) == b"3\n"
    connection = server.connection()
    assert connection._on_data == connection.protocol.session.feed


def test_a_kind_of_connection_that_says_something_first_has_its_turn_after_the_header(start):
    """As TLS has: whatever a connection does when it opens, it finds the socket after the header."""
    opened: list[bytes] = []

    class Peeking(Connection):
        __slots__ = ()

        def open(self) -> None:
            opened.append(self._socket.recv(100, socket.MSG_PEEK))
            super().open()

    server = start(make_server=lambda loop: Server(loop, Whoami, small_limits(), proxy_from="127.0.0.1"))
    server.call(lambda: server.server.listen(connection_factory=Peeking))
    host, port = server.server.listeners[1].socket.getsockname()
    with Client((host, port)) as client:
        client.send(v2(*FOUR) + b"\n")
        assert client.receive_line().startswith(b"192.0.2.1:56324")
        assert opened == [b"\n"]

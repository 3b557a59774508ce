"""TLS through a proxy that speaks for its clients: 69 of docs/reliability.md."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from typing import Any

import pytest

from evloop import Protocol, Server
from faults.proxied import FOUR, counts, waiting
from proxyheaders import tlv, v1, v2
from servers import RunningServer, small_limits
from tlsworld import TLSServer, world
from waiting import DEADLINE_S, wait_until


class Whoami(Protocol):
    def on_data(self, data: bytes) -> bytes:
        tls = self.connection.tls
        assert tls is not None
        return f"{self.connection.peer} {tls.version} {data.decode()}\n".encode()


@pytest.fixture
def behind_tls(start: Callable[..., RunningServer]) -> Callable[..., RunningServer]:
    """Starts a TLS server that trusts the proxies given."""

    class ProxiedTLSServer(TLSServer):
        def __init__(self, loop: Any, proxy_from: str, limits: Any) -> None:
            Server.__init__(self, loop, Whoami, limits, proxy_from=proxy_from)
            self.tls = world().settings()

    def start_one(proxy_from: str = "127.0.0.1", **limits: Any) -> RunningServer:
        return start(make_server=lambda loop: ProxiedTLSServer(loop, proxy_from, small_limits(**limits)))

    return start_one


def speak_tls(sock: socket.socket) -> ssl.SSLSocket:
    return world().client_context().wrap_socket(sock, server_hostname="localhost")


def connect(server: RunningServer, header: bytes) -> socket.socket:
    sock = socket.create_connection(server.address, DEADLINE_S)
    sock.sendall(header)
    return sock


@pytest.mark.parametrize("header", [v1(*FOUR), v2(*FOUR, tlv(2, b"localhost"), checksum=True)], ids=["v1", "v2"])
def test_69_tls_begins_after_the_header(behind_tls, header):
    server = behind_tls()
    with speak_tls(connect(server, header)) as client:
        client.sendall(b"hello")
        assert client.recv(100).startswith(b"192.0.2.1:56324 TLSv1.3 hello")
        assert server.connection().proxy_header.source == FOUR[0]


def test_69_tls_that_comes_together_with_the_header(behind_tls):
    """In one segment: not a byte of the handshake is lost."""
    server = behind_tls()
    ours, theirs = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = world().client_context().wrap_bio(ours, theirs, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    with connect(server, v1(*FOUR) + theirs.read()) as sock:
        while True:
            ours.write(sock.recv(65536))
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                pass
        tls.write(b"x")
        sock.sendall(theirs.read())
        while True:
            ours.write(sock.recv(65536))
            try:
                assert tls.read(100) == b"192.0.2.1:56324 TLSv1.3 x\n"
                break
            except ssl.SSLWantReadError:
                pass


def test_69_tls_without_the_header_that_is_expected(behind_tls, logged):
    logged.expect(r"connection of proxy 127\.0\.0\.1:\d+ closed: no PROXY header, but .\\x16\\x03")
    server = behind_tls()
    with pytest.raises((ssl.SSLError, ConnectionError)):
        speak_tls(connect(server, b""))
    assert counts(server)["bad_proxy_headers"] == 1


def test_69_tls_port_to_which_a_header_comes_unexpectedly(behind_tls, logged):
    logged.expect(r"127\.0\.0\.1:\d+: TLS failed: the client begins with what looks like a PROXY header, .*proxy_from")
    server = behind_tls("10.0.0.0/8")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        speak_tls(connect(server, v2(*FOUR)))


def test_69_tls_limit_for_each_address_is_for_the_clients(behind_tls, logged):
    logged.expect(r"connection 192\.0\.2\.1:56324 refused: too-many-connections-from-address limit 1")
    server = behind_tls(max_connections_per_address=1)
    with speak_tls(connect(server, v1(*FOUR))) as first:
        with speak_tls(connect(server, v1(*FOUR))) as second:
            assert second.recv(100) == b"ERR too-many-connections-from-address limit 1\n"
        first.sendall(b"x")
        assert first.recv(100).startswith(b"192.0.2.1:56324")


def test_69_tls_probe_of_a_proxy(behind_tls):
    """Before the header, or after one that says LOCAL: no handshake has failed."""
    server = behind_tls()
    for header in (b"", v2(None, local=True)):
        connect(server, header).close()
    wait_until(lambda: counts(server)["closed"] == 2 and not waiting(server), "closed")
    assert counts(server) == {"accepted": 2, "closed": 2, "probes": 2, "failed": 0, "bad_proxy_headers": 0}

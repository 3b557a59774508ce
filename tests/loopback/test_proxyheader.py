"""A PROXY header on a real connection: the first data handler of it, which replaces itself."""

from __future__ import annotations

import pytest

from evloop import Protocol
from evloop.net.proxyheader import ProxyHeader, ProxyHeaderReader
from proxyheaders import tlv, v1, v2

FOUR = ("192.0.2.1", 56324), ("198.51.100.1", 443)


class BehindProxy(Protocol):
    """Echoes what comes after the header."""

    header: ProxyHeader | None = None

    def on_connect(self) -> None:
        self.reader = ProxyHeaderReader()
        self.connection.set_data_handler(self.read_header)

    def read_header(self, data: bytes) -> bytes | None:
        if (found := self.reader.feed(data)) is None:
            return None
        self.header, rest = found
        self.connection.set_data_handler(self.echo)
        return self.echo(rest) if rest else None

    def echo(self, data: bytes) -> bytes:
        return data


@pytest.mark.parametrize("header", [v1(*FOUR), v2(*FOUR, tlv(4, bytes(3000)), checksum=True)], ids=["v1", "v2"])
@pytest.mark.parametrize("size", [1, 10, 100000])
def test_what_comes_after_the_header_is_the_clients(start, header, size):
    server = start(BehindProxy)
    client = server.connect()
    data = header + b"the client's own"
    if size == 1:
        data = data[-40:] if len(data) > 200 else data
        client.send(header[: len(header) + len(b"the client's own") - len(data)])
    for at in range(0, len(data), size):
        client.send(data[at : at + size])
    assert client.receive_exactly(16) == b"the client's own"
    protocol = server.connection().protocol
    assert isinstance(protocol, BehindProxy)
    assert protocol.header is not None
    assert protocol.header.source == FOUR[0]


def test_what_is_no_header_ends_its_connection_only(start, logged):
    logged.expect("its protocol raised")
    server = start(BehindProxy)
    other = server.connect()
    other.send(v1(*FOUR))
    client = server.connect()
    client.send(b"hello\n")
    client.was_reset()  # or ended in order: nothing was unsent. In any case it is over.
    assert len(server.connections()) == 1
    assert other.ask(b"x", 1) == b"x"

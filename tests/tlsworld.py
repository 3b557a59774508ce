"""What tests of TLS share: certificates made for a run, and clients, of which one decides about each record.

Certificates are made once for each process of a run, by `trustme`: making them takes longer than a test.
"""

from __future__ import annotations

import atexit
import shutil
import socket
import ssl
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from evloop import EventLoop, Limits, Protocol, Server
from evloop.net.tlsinfo import HandshakeTally
from evloop.net.tlssettings import TLSServerSettings
from servers import RunningServer
from waiting import DEADLINE_S

trustme = pytest.importorskip("trustme", reason="trustme makes the certificates")


class World:
    """An authority, and files of what it has issued."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tls-"))
        atexit.register(shutil.rmtree, self.folder, ignore_errors=True)
        self.authority = trustme.CA()
        self.ca = str(self.folder / "ca.pem")
        self.authority.cert_pem.write_to_path(self.ca)
        self.pair = self.issue("server", "localhost", "127.0.0.1", "example.org")

    def issue(self, file: str, *names: str, by: Any = None, **options: Any) -> tuple[str, str]:
        """A certificate with its chain, and its key: the names of two files that only we can read."""
        found = (self.authority if by is None else by).issue_cert(*names, **options)
        certificate, key = self.folder / f"{file}.pem", self.folder / f"{file}.key"
        certificate.write_bytes(b"".join(part.bytes() for part in found.cert_chain_pems))
        found.private_key_pem.write_to_path(str(key))
        key.chmod(0o600)
        return str(certificate), str(key)

    def settings(self, **options: Any) -> TLSServerSettings:
        """A server's settings with the certificate for localhost."""
        return TLSServerSettings([self.pair], **options)

    def client_context(self, **options: Any) -> ssl.SSLContext:
        """A client's context that trusts the authority; ``maximum_version`` and such can be given."""
        context = ssl.create_default_context(cafile=self.ca)
        for name, value in options.items():
            setattr(context, name, value)
        return context


@cache
def world() -> World:
    """That of this process."""
    return World()


class TLSServer(Server):
    """A server that listens for TLS only.

    Attributes:
        tls: its settings.
    """

    def __init__(
        self, loop: EventLoop, protocol_factory: Callable[[], Protocol], limits: Limits, tls: TLSServerSettings
    ) -> None:
        super().__init__(loop, protocol_factory, limits)
        self.tls = tls

    def listen(self, *where: Any, **options: Any) -> list[str]:
        return super().listen(*where, tls=self.tls, **options)


def tally(server: RunningServer) -> HandshakeTally:
    """What a server of `TLSServer`'s kind has counted."""
    assert isinstance(server.server, TLSServer)
    return server.server.tls.tally


def hello() -> bytes:
    """A client's first words."""
    outgoing = ssl.MemoryBIO()
    try:
        world().client_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost").do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()


def connect_tls(
    address: tuple[str, int], context: ssl.SSLContext | None = None, name: str = "localhost", **options: Any
) -> ssl.SSLSocket:
    """A client of the standard library, with a deadline on each call."""
    sock = socket.create_connection(address, timeout=DEADLINE_S)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        context = world().client_context() if context is None else context
        return context.wrap_socket(sock, server_hostname=name, **options)
    except BaseException:
        sock.close()
        raise


class RecordClient:
    """A client that decides what bytes leave, and when: TLS over buffers, and a blocking socket.

    Attributes:
        tls: the TLS object.
        socket: the socket.
    """

    def __init__(
        self,
        address: tuple[str, int],
        context: ssl.SSLContext | None = None,
        name: str = "localhost",
        *,
        receive_buffer: int | None = None,
    ) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(DEADLINE_S)
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.connect(address)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = world().client_context() if context is None else context
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name)

    def take(self) -> bytes:
        """What TLS wants to send, which is not sent then."""
        return self._outgoing.read()

    def push(self) -> None:
        """Send what TLS wants to send."""
        self.socket.sendall(self.take())

    def receive_some(self) -> bool:
        """Receive something for TLS; False at the end of the stream."""
        data = self.socket.recv(65536)
        self._incoming.write(data)
        return bool(data)

    def step(self) -> bool:
        """Go on with the handshake with what has come. Whether it is done."""
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def shake_hands(self, *, finish: bool = True) -> None:
        """Have the handshake. The client's last words are left to be sent unless ``finish``."""
        while not self.step():
            self.push()
            assert self.receive_some(), "the server ended the handshake"
        if finish:
            self.push()

    def seal(self, *messages: bytes) -> bytes:
        """A record for each message, as they would be sent."""
        for message in messages:
            self.tls.write(message)
        return self.take()

    def send(self, *messages: bytes) -> None:
        """Send a record for each message, all at once."""
        self.socket.sendall(self.seal(*messages))

    def read(self, size: int = 65536) -> bytes:
        """The next plaintext, or nothing at TLS's goodbye.

        Raises:
            EOFError: the stream ended without it.
        """
        while True:
            try:
                return self.tls.read(size)
            except ssl.SSLWantReadError:
                if not self.receive_some():
                    raise EOFError from None
            except ssl.SSLZeroReturnError:
                return b""

    def receive_exactly(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        parts = bytearray()
        while len(parts) < size:
            part = self.read(size - len(parts))
            assert part, f"the end after {len(parts)} of {size} bytes"
            parts += part
        return bytes(parts)

    def receive_rest(self) -> bytes:
        """All up to TLS's goodbye."""
        parts = bytearray()
        while part := self.read():
            parts += part
        return bytes(parts)

    def say_goodbye(self) -> None:
        """Send TLS's goodbye, and wait for nothing."""
        try:
            self.tls.unwrap()
        except ssl.SSLError:
            pass
        self.push()

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> RecordClient:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

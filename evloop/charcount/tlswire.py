"""A `Wire` over TLS.

Theory of operation
-------------------
OpenSSL does no I/O here; it works between two buffers in memory. That a socket is readable says nothing about
plaintext, and plaintext can wait where no selector sees it. So whatever comes is opened to its end at once, and nothing
is left inside. And a message has left when the record that it is in has left, not when it was sealed: until then `send`
says that nothing has, and whoever calls it does so again with the same bytes when the socket can be written.
"""

from __future__ import annotations

import socket
import ssl
import time

from evloop.charcount.wire import RECV_BYTES, ClientTimeoutError, Deadline, Wire
from evloop.errors import TLSError, TLSSettingsError
from evloop.net.endpoint import Endpoint
from evloop.net.tlsfailure import explain, truncated
from evloop.net.tlssettings import TLSClientSettings

# The most plaintext in a record.
_RECORD_BYTES = 16384


class TLSWire(Wire):
    """As `Wire`, after `shake_hands`.

    Args:
        sock: a connected socket. Owned.
        endpoint: where to.
        settings: whom to trust.

    Raises:
        TLSSettingsError: the name of the server can't be one.
    """

    def __init__(self, sock: socket.socket, endpoint: Endpoint, settings: TLSClientSettings) -> None:
        super().__init__(sock, endpoint)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        name = settings.server_name or getattr(endpoint, "host", "localhost").partition("%")[0]
        try:
            self._tls = settings.context.wrap_bio(self._incoming, self._outgoing, server_hostname=name)
        except ValueError as error:  # a UnicodeError, too
            self.close()
            raise TLSSettingsError(f"{name!r} can't be the name of a TLS server: {error}") from None
        self._sealed = b""  # what the socket has not taken
        self._in_sealed = 0  # bytes of plaintext in it
        self._failure: TLSError | None = None  # came after the plaintext that was handed over last
        self._early = b""  # plaintext that came with the end of the handshake
        self._goodbye = False  # of the server
        self._ending = False

    def shake_hands(self, ends: float, timeout_s: float) -> None:
        """Have the handshake.

        Args:
            ends: until when, by the monotonic clock.
            timeout_s: how long all has taken by then.

        Raises:
            TLSError: it failed.
            ClientTimeoutError: it took longer than that.
        """
        deadline = Deadline(max(ends - time.monotonic(), 0))
        deadline.start()
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                done = False
            except ssl.SSLError as error:
                self.send(b"")  # the alert that says why
                raise self._failed(explain(error, of_server=False)) from None
            else:
                done = True
            self.send(b"")
            if done:
                self._early = self._open()
                return
            if not deadline.select(self.watch(b""))[0]:
                raise ClientTimeoutError(
                    f"cannot connect to {self.endpoint}: no answer to the TLS handshake in {timeout_s:g} s; does the "
                    "server speak TLS there?"
                )
            try:
                received = self._socket.recv(RECV_BYTES)
            except BlockingIOError:
                continue
            except OSError:
                received = b""
            if not received:
                ended = TLSError("ended", "the server ended the stream in the handshake; does it speak TLS there?")
                raise self._failed(ended)
            self._incoming.write(received)

    def _failed(self, error: TLSError) -> TLSError:
        return TLSError(error.kind, f"cannot connect to {self.endpoint}: {error}")

    @property
    def holds_back(self) -> bool:
        return bool(self._sealed) and not self._in_sealed and not self.broken

    def send(self, data: bytes | memoryview) -> int:
        if self._in_sealed and not data:
            return 0  # no message may leave without whoever sends it being told
        while not self.broken:
            if not self._sealed:
                self._in_sealed = self._seal(data)
                self._sealed = self._outgoing.read()
                if not self._sealed:
                    break
            self._sealed = self._sealed[super().send(self._sealed) :]
            if self._sealed:
                break
            if self._ending:
                super().end()
            if self._in_sealed:
                left, self._in_sealed = self._in_sealed, 0
                return left
        return 0

    def _seal(self, data: bytes | memoryview) -> int:
        """A record of its beginning. What OpenSSL has to say by itself goes first."""
        if self._outgoing.pending or not data:
            return 0
        try:
            return self._tls.write(data[:_RECORD_BYTES])
        except ssl.SSLError:
            self.broken = True  # the next read says why
            return 0

    def receive(self) -> bytes | None:
        if self._early:
            early, self._early = self._early, b""
            return early
        if self._failure is not None:
            raise self._failure
        try:
            received = self._socket.recv(RECV_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            return b""
        if not received:
            if self._goodbye:
                return b""
            raise truncated()
        self._incoming.write(received)
        opened = self._open()
        if self._outgoing.pending:
            self.send(b"")
        if opened or self._goodbye:
            return opened
        if self._failure is not None:
            raise self._failure
        return None

    def _open(self) -> bytes:
        """All plaintext that has come."""
        parts: list[bytes] = []
        try:
            while part := self._tls.read(_RECORD_BYTES):
                parts.append(part)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._goodbye = True
            try:
                self._socket.shutdown(socket.SHUT_RD)  # or a server that keeps its end open would be waited for
            except OSError:
                pass
        except ssl.SSLError as error:
            self._failure = explain(error, of_server=False)
        return b"".join(parts)

    def end(self) -> None:
        self._say_goodbye()
        self._ending = True
        self.send(b"")

    def close(self) -> None:
        if not self.closed and not self.broken and not self._ending:
            self._say_goodbye()
            self.send(b"")
        super().close()

    def _say_goodbye(self) -> None:
        try:
            self._tls.unwrap()
        except ssl.SSLError:
            pass  # the server's has not come, and it may still answer; or there is no TLS yet

"""TLS: how such a connection is made, and what comes of what goes wrong.

Theory of operation
-------------------
Opening a `Connection` has a step more here: the handshake. Until it is done the protocol knows of nothing, and what is
written waits. A server's connection that fails in it is gone without a word to its protocol; a client's is told by
`Protocol.on_connect_error`.

A handshake costs a hundred times what a message does, so those of one pass of the loop share a budget
(`evloop.net.tlsinfo.HandshakeTally`); who comes too late for it is ready again in the next pass. All of it has to be
done within a deadline, which is a timer: handshakes are rare beside messages.

What is wrong is told to the peer, by an alert of OpenSSL's, and what the peer still sends is then dropped for a moment,
as a reset would destroy the alert on its way. It is counted by kind, and logged by a server, at a limited rate.

How bytes are moved is below, in `evloop.net.tlsstream`; what contexts are made from is above, in
`evloop.net.tlssettings`. `Connection.bytes_received` and `bytes_sent` count what is on the wire.
"""

from __future__ import annotations

import sys
from ssl import SSLError, SSLObject, SSLWantReadError

from evloop.errors import RETRY, ConnectError, LimitError, TLSError
from evloop.log import INFO, WARNING
from evloop.net.buffers import NOTHING_MORE
from evloop.net.connection import NOBODY
from evloop.net.linger import Linger
from evloop.net.state import State
from evloop.net.tlsfailure import explain, plaintext
from evloop.net.tlsinfo import HandshakeTally, TLSInfo, server_name
from evloop.net.tlsstream import PAUSED_BY_HANDSHAKE, SealedConnection

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Any

    from evloop.net.tlsstream import Wrap

_OPEN = State.OPEN
_LINGERING = State.LINGERING
_CLOSED = State.CLOSED

# What is received at once in the handshake, in which little is said.
_HANDSHAKE_RECV_BYTES = 4096
# The first byte of all that a client of TLS says.
_HANDSHAKE_RECORD = 22
# What a client that does not speak TLS is told: fatal, unexpected message.
_ALERT_UNEXPECTED = b"\x15\x03\x03\x00\x02\x02\x0a"
# A server that stops lets a handshake that is under way go on for so long, and no longer.
DRAIN_HANDSHAKE_S = 1.0


class TLSConnection(SealedConnection):
    """A `Connection` that speaks TLS. Made by settings (`evloop.net.tlssettings`).

    Args:
        connection: what a `Connection` is made from.
        tally: where handshakes are counted.
        wrap, handshake_timeout_s: as for `SealedConnection`.
    """

    __slots__ = ("_drains", "_failure", "_tally")

    def __init__(self, *connection: Any, tally: HandshakeTally, wrap: Wrap, handshake_timeout_s: float) -> None:
        super().__init__(*connection, wrap=wrap, handshake_timeout_s=handshake_timeout_s)
        self._tally = tally
        self._drains = False  # as soon as the handshake is done
        self._failure: TLSError | None = None

    @property
    def tls(self) -> TLSInfo | None:
        """What was agreed on; None before the handshake is done. Made anew each time: keep it."""
        return None if self._deadline is not None else TLSInfo(self._tls, server_name(self._tls))

    @property
    def in_handshake(self) -> bool:
        """Whether it is still being made."""
        return self._deadline is not None

    # ------------------------------------------------------------------ the handshake

    def open(self) -> None:
        try:
            self._register(self._handle_handshake)
        except OSError:
            self._end_handshake()
            raise
        if not self._tls.server_side:
            self._go_on_with_handshake()

    def _handle_handshake(self) -> None:
        if self._tally.has_time(self.loop.passes):  # else: readiness is a hint, it will be ready in the next pass
            self._receive_handshake()

    def _receive_handshake(self) -> None:
        try:
            data = self._socket.recv(_HANDSHAKE_RECV_BYTES)
        except OSError as error:
            self._io_failed(error)
            return
        if not data:
            self._ended_in_handshake()
            return
        first = not self.bytes_received
        self.bytes_received += len(data)
        if first and self._tls.server_side and data[0] != _HANDSHAKE_RECORD:
            # OpenSSL would wait for five bytes before it says so.
            self._fail(plaintext(of_server=True, begins=data), _ALERT_UNEXPECTED)
            return
        self._put(data)
        began = self.loop.clock()
        self._go_on_with_handshake()
        self._tally.spend(self.loop.clock() - began)

    def _go_on_with_handshake(self) -> None:
        try:
            shake_hands(self._tls)
        except SSLWantReadError:
            self._push()
        except SSLError as error:
            self._tls_failed(error)
        else:
            self._handshake_done()

    def _handshake_done(self) -> None:
        if self.closing and not self._unsent:
            self._finish()  # closed before it was made, and nothing is to be sent
            return
        self._end_handshake()
        self._pause &= ~PAUSED_BY_HANDSHAKE
        self._tally.succeeded(self._tls)
        self._established()
        parts: list[bytes] = []
        ended = False
        if self.state is not _CLOSED and self._incoming.pending:  # it came together with the end of the handshake
            try:
                ended = self._read_records(parts)
            except SSLError as error:
                self._tls_failed(error)
                return
            self._deliver(b"".join(parts), ended)
        if self.state is _CLOSED or self.state is _LINGERING:
            return
        self._push()
        if self._unsent or self.state is not _OPEN:
            self.loop.pending_writes.append(self)  # what was written, or asked for, meanwhile
        self._update_interest()
        if self._drains:
            self.drain()

    def _end_handshake(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _ended_in_handshake(self) -> None:
        if self._tls.server_side and not self.bytes_received:
            self._teardown(None)  # a probe
        else:
            self._fail(TLSError("ended", "the peer ended the stream in the handshake"))

    def _handshake_timed_out(self) -> None:
        if self._drains:
            self._fail(TLSError("stopped", "the handshake was not done when the server stopped"))
            return
        self._tally.failures["timeout"] += 1
        error = LimitError("tls-handshake-timeout", "the TLS handshake took too long")
        self._log_failure(INFO, error)
        self._teardown(error)

    def drain(self, up_to_bytes: int | None = None) -> None:
        if self._deadline is not None and not self.closing:
            self._receive_handshake()
            if self._deadline is not None:
                # What has come does not complete the handshake, so no request is among it. A client that has begun may
                # finish, and gets an orderly end; one that said nothing is no client yet.
                self._drains = True
                self._end_handshake()
                wait_s = DRAIN_HANDSHAKE_S if self.bytes_received else 0
                self._deadline = self.loop.call_later(wait_s, self._handshake_timed_out)
                return
        if self.state is not _CLOSED and self.state is not _LINGERING:
            super().drain(up_to_bytes)

    # ------------------------------------------------------------------ what goes wrong

    def _tls_failed(self, error: SSLError) -> None:
        failure = explain(error, of_server=self._tls.server_side)
        self._fail(failure, self._take() if self._outgoing.pending else b"")

    def _io_failed(self, error: OSError) -> None:
        is_probe = self._tls.server_side and not self.bytes_received
        if self._deadline is not None and error.errno not in RETRY and not is_probe:
            self._tally.failures["ended"] += 1
        super()._io_failed(error)

    def _fail(self, failure: TLSError, alert: bytes = b"") -> None:
        """End it because of this; tell the peer, if it can be told."""
        if self.state is _CLOSED or self.state is _LINGERING:
            return
        self._tally.failures[failure.kind] += 1
        self._log_failure(WARNING if failure.kind == "plaintext" else INFO, failure)
        if not alert or self.stalled:
            self._teardown(failure)
            return
        # A close with unread input is a reset, and the alert would not be read: what is still coming is dropped first.
        self._failure = failure
        try:
            self.bytes_sent += self._socket.send(alert)
            self._linger = Linger(self.loop, self._socket, self.limits, self._linger_over)
        except OSError:
            self._teardown(failure)
            return
        self.state = _LINGERING
        self._rest = b""
        self._unsent = NOTHING_MORE
        self._over(failure)
        self._update_interest()

    def _log_failure(self, level: int, error: Exception) -> None:
        if self._tls.server_side:
            self.loop.log_limited(level, "connection %s: TLS failed: %s", self.peer, error)

    def _over(self, error: Exception | None) -> None:
        if self._deadline is None:
            super()._over(error)
            return
        # Nobody knows of it yet, so nobody is told that it is over; but who asked for it is told that it can't be made.
        self._end_handshake()
        protocol, self.protocol = self.protocol, NOBODY
        self._on_data = NOBODY.on_data
        if error is not None and not self._tls.server_side:
            try:
                protocol.on_connect_error(ConnectError(f"cannot connect to {self.peer}: {error}"))
            except Exception as raised:
                self.loop.log_exception(raised, "connection %s: on_connect_error raised", self.peer)

    def _gone(self, error: Exception | None) -> None:
        super()._gone(self._failure if error is None else error)


def shake_hands(tls: SSLObject) -> None:
    """Go on with a handshake.

    A server asks its settings for a certificate on the way, by a callback. If the name that the client asks for is not
    even ASCII, the callback is not called: Python prints a traceback with that name to stderr, for everyone who cares
    to send one. Here it fails in silence, and the handshake with it.

    Raises:
        ssl.SSLError: more is to come (`ssl.SSLWantReadError`), or it has failed.
    """
    before = sys.unraisablehook

    def keep_quiet(unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, UnicodeError):
            before(unraisable)

    sys.unraisablehook = keep_quiet
    try:
        tls.do_handshake()
    finally:
        sys.unraisablehook = before

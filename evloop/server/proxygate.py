"""Where connections wait until the proxy that made them has said whom it speaks for.

Theory of operation
-------------------
A proxy that is trusted sends a header first (`evloop.net.proxyheader`). Before it is there nothing is known of the
client, so there is no connection yet either: no protocol, no TLS, no limit for its address. The socket waits here. When
the header has come, the socket is accepted as if the client itself had connected, from its own address.

So nothing behind this gate needs to know of proxies, and the header comes before whatever a connection does first, a
TLS handshake for one. For that not a byte too many may be taken from the socket: what has come is looked at while it
stays in the kernel (MSG_PEEK), and then as much is received as the header has. What comes after it is there when the
connection is made.

How a wait may end, but for a header:

- nothing has come, and the proxy closes: it looked whether somebody listens. A probe, no error.
- what comes is no header: somebody is not what he was taken for, or a proxy is not set up to send one. An error,
  counted, logged, and not answered: an answer would go to a client that has done nothing wrong.
- nothing or not all has come in time: a limit that was hit.
- the server stops: it looks a last time, and else the client gets an end of stream.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable

from evloop.core.loop import Loop
from evloop.core.poller import READ
from evloop.core.timers import Timer
from evloop.errors import DISCONNECTED, RETRY, LimitError
from evloop.limits import Limits
from evloop.log import WARNING
from evloop.net.proxyheader import ProxyHeader, ProxyHeaderError, ProxyHeaderReader
from evloop.net.sockets import peer_text
from evloop.net.trustedpeers import TrustedPeers
from evloop.server.stats import ServerStats

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Any

    # Accepts a socket: called with the family of the client's address (AF_UNSPEC if none is known), the socket, which
    # it owns then, that address, and the header.
    Admit = Callable[[int, socket.socket, Any, ProxyHeader], None]

_AF_UNIX = getattr(socket, "AF_UNIX", socket.AF_UNSPEC)  # Windows has none


class ProxyGate:
    """Lets connections of trusted proxies in when they have sent their header.

    Args:
        loop: the loop to live in.
        proxy_from: who sends a header first, each time; as for `TrustedPeers`.
        limits: bound the time and the bytes of a header.
        stats: where those are counted that are not let in.
        on_closed: called when one was closed here.

    Attributes:
        waiting: those that have not sent all of their header yet.
    """

    def __init__(
        self,
        loop: Loop,
        proxy_from: str | Iterable[str],
        limits: Limits,
        stats: ServerStats,
        on_closed: Callable[[], object],
    ) -> None:
        self.loop = loop
        self.limits = limits
        self.stats = stats
        self.on_closed = on_closed
        self.waiting: set[WaitingSocket] = set()
        self.expects_header = TrustedPeers(proxy_from).contains

    def take(self, sock: socket.socket, address: Any, admit: Admit) -> None:
        """Wait for the header of a new connection.

        Args:
            sock: connected, from a trusted address. Owned from here on.
            address: that address.
            admit: called when the header is there, perhaps at once. Not called if it doesn't come.
        """
        WaitingSocket(self, sock, address, admit).open()

    def drain(self) -> None:
        """The server stops: let those in whose header has arrived, and close the others."""
        for waiting in list(self.waiting):
            waiting.look()
            waiting.close()

    def abort(self) -> None:
        """Close them all."""
        for waiting in list(self.waiting):
            waiting.close()


class WaitingSocket:
    """A connection of a proxy of whose client nothing is known yet."""

    __slots__ = ("_address", "_admit", "_gate", "_reader", "_socket", "_timer")

    def __init__(self, gate: ProxyGate, sock: socket.socket, address: Any, admit: Admit) -> None:
        self._gate = gate
        self._socket = sock
        self._address = address
        self._admit = admit
        self._reader = ProxyHeaderReader(gate.limits.proxy_header_bytes)
        self._timer: Timer | None = None

    def open(self) -> None:
        """Wait, unless it need not."""
        gate = self._gate
        gate.waiting.add(self)
        self.look()  # the header often comes with the connection
        if self not in gate.waiting:
            return
        try:
            gate.loop.poller.register(self._socket.fileno(), READ, self.look)
        except OSError as error:
            self.close(error)
            return
        self._timer = gate.loop.call_later(gate.limits.proxy_header_timeout_s, self._timed_out)

    def look(self) -> None:
        """Take what has come of the header."""
        try:
            data = self._socket.recv(self._gate.limits.proxy_header_bytes, socket.MSG_PEEK)
        except OSError as error:
            if error.errno not in RETRY:
                self.close(error)
            return
        try:
            if not data:
                self._ended()
                return
            found = self._reader.feed(data)
            self._drop(len(data) if found is None else len(data) - len(found[1]))
        except Exception as error:
            self.close(error)
            return
        if found is not None:
            self._let_in(found[0])

    def _drop(self, size: int) -> None:
        """Receive what was looked at."""
        while size:
            size -= len(self._socket.recv(size)) or size

    def _let_in(self, header: ProxyHeader) -> None:
        header.sender = peer_text(self._address)
        source = header.source
        if source is not None and source == self._address[:2]:
            header.local = True  # HAProxy's health checks of version 1 say so, as that has no word for it
        self._leave()
        if source is None or header.local:
            self._admit(socket.AF_UNSPEC, self._socket, self._address, header)
        elif isinstance(source, str):
            self._admit(_AF_UNIX, self._socket, source, header)
        else:
            self._admit(socket.AF_INET6 if ":" in source[0] else socket.AF_INET, self._socket, source, header)

    # ------------------------------------------------------------------ those that are not let in

    def _ended(self) -> None:
        received = self._reader.received
        self.close(ProxyHeaderError(f"a PROXY header that ends after {received} bytes") if received else None)

    def _timed_out(self) -> None:
        timeout_s = self._gate.limits.proxy_header_timeout_s
        self.close(LimitError("proxy-header-timeout", f"no whole PROXY header in {timeout_s:g} s"))

    def close(self, error: Exception | None = None) -> None:
        """Close it, because of that error if there is one. Nothing happens if it is not waiting any more."""
        gate = self._gate
        if self not in gate.waiting:
            return
        self._leave()
        gate.loop.close_later(self._socket)
        stats = gate.stats
        stats.accepted += 1
        stats.closed += 1
        gone = error is None or (isinstance(error, OSError) and error.errno in DISCONNECTED)
        if gone and not self._reader.received:
            stats.probes += 1
        elif error is not None:
            stats.failed += 1
        if not gone:
            assert error is not None
            self._tell(error)
        gate.on_closed()

    def _tell(self, error: Exception) -> None:
        gate = self._gate
        proxy = peer_text(self._address)
        if isinstance(error, ProxyHeaderError):
            gate.stats.bad_proxy_headers += 1
        elif isinstance(error, LimitError):
            gate.stats.limits[error.limit] += 1
        elif not isinstance(error, OSError):
            gate.loop.log_exception(error, "connection of proxy %s closed: its header could not be read", proxy)
            return
        gate.loop.log_limited(WARNING, "connection of proxy %s closed: %s", proxy, error)

    def _leave(self) -> None:
        gate = self._gate
        gate.waiting.discard(self)
        gate.loop.poller.watch(self._socket.fileno(), 0, self.look)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

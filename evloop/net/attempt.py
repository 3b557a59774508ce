"""One address that is being connected to."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Callable

from evloop.core.poller import WRITE
from evloop.core.timers import Timer
from evloop.errors import CONNECTING, RETRY
from evloop.net.sockets import peer_text, reset_when_closed

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from evloop.core.loop import Loop
    from evloop.net.resolver import Address

UNIX = getattr(socket, "AF_UNIX", None)  # Windows has none

# A Unix socket whose listener's queue is full can't be waited for, only be tried again.
_RETRY_S = 0.01

# Linux: choose the local port when the other end is known. Otherwise each local port could be used for one connection
# only, whatever the other end, and there could be no more than 28,000 connections from an address.
_BIND_ADDRESS_NO_PORT = 24 if sys.platform == "linux" else None


class Attempt:
    """A socket on its way to an address. Owns it until it is connected; then ``on_connected`` owns it.

    Args:
        loop: the loop it lives in.
        family, address: where to.
        source: a family and the local address to bind to, or None.
        on_connected: called with this when it is connected.
        on_failed: called with this and a reason when it can't be. It is to be closed then.

    Attributes:
        peer: the other end as text once it is connected; empty for a Unix socket, whose other end has no name.

    Raises:
        OSError: it is known at once that it can't be connected.
    """

    __slots__ = ("_loop", "_on_connected", "_on_failed", "_retry", "address", "family", "peer", "socket")

    def __init__(
        self,
        loop: Loop,
        family: int,
        address: object,
        source: Address | None,
        on_connected: Callable[[Attempt], object],
        on_failed: Callable[[Attempt, str], object],
    ) -> None:
        self.family = family
        self.address = address
        self.peer = ""
        self._loop = loop
        self._on_connected = on_connected
        self._on_failed = on_failed
        self._retry: Timer | None = None
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            self.socket.setblocking(False)
            if source is not None:
                _bind(self.socket, source[1])
            self._connect()
        except BaseException:
            self.socket.close()
            raise

    def _connect(self) -> None:
        self._retry = None
        code = self.socket.connect_ex(self.address)  # type: ignore[arg-type]
        if code and code not in CONNECTING:
            if code in RETRY and self.family == UNIX:
                self._retry = self._loop.call_later(_RETRY_S, self.look)
                return
            raise OSError(code, os.strerror(code))
        # Also when it is connected already: one way for both.
        self._loop.poller.register(self.socket.fileno(), WRITE, self.look)

    def look(self) -> None:
        """See how it stands: when the socket is writable, or whenever one wants to know."""
        if self._retry is not None:
            self._retry.cancel()
            try:
                self._connect()
            except OSError as error:
                self._on_failed(self, error.strerror or str(error))
                return
        code = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._on_failed(self, os.strerror(code))
            return
        try:
            peer = self.socket.getpeername()
        except OSError:
            return  # not connected yet: readiness is a hint
        if self.family != UNIX:
            if peer == self.socket.getsockname():
                # The kernel chose the local port that was to be connected to, as nobody listens there, and connected
                # the socket to itself. Nothing must be left of it, or who wants to listen finds the port taken.
                reset_when_closed(self.socket)
                self._on_failed(self, os.strerror(errno.ECONNREFUSED))
                return
            self.peer = peer_text(peer)
        self._stop_watching()
        self._on_connected(self)

    def _stop_watching(self) -> None:
        self._loop.poller.watch(self.socket.fileno(), 0, self.look)

    def close(self) -> None:
        """It is over: stop all that is under way, and close the socket at the end of the pass."""
        if self._retry is not None:
            self._retry.cancel()
        self._stop_watching()
        self._loop.close_later(self.socket)


def _bind(sock: socket.socket, address: object) -> None:
    if _BIND_ADDRESS_NO_PORT is not None:
        sock.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
    try:
        sock.bind(address)  # type: ignore[arg-type]
    except OSError as error:
        host = address[0] if isinstance(address, tuple) else address
        raise OSError(error.errno, f"{error.strerror} (for source_address {host})") from None

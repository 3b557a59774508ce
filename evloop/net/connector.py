"""Outgoing connections, opened without blocking."""

from __future__ import annotations

import errno
import os
import socket

from evloop.core.poller import WRITE
from evloop.core.timers import Timer
from evloop.errors import CONNECTING, ConnectError
from evloop.limits import Limits
from evloop.net.connection import Connection
from evloop.net.protocol import Protocol
from evloop.net.sockets import peer_text, set_stream_options

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Any

    from evloop.core.loop import Loop


def _is_connected_to_itself(sock: socket.socket) -> bool:
    """Where nobody listens on a port of the range of local ports, the kernel may choose that very port for our end."""
    try:
        return bool(sock.getsockname() == sock.getpeername())
    except OSError:
        return False


class Connector:
    """One attempt to connect; see `EventLoop.connect`. Owns the socket until a `Connection` takes it over."""

    def __init__(
        self,
        loop: Loop,
        protocol: Protocol,
        host: str,
        port: int,
        timeout_s: float | None,
        limits: Limits,
    ) -> None:
        self._loop = loop
        self._protocol = protocol
        self._target = peer_text((host, port))
        self._timeout_s = timeout_s
        self._limits = limits
        self._addresses: list[tuple[int, Any]] = []
        self._error = "no address"
        self._socket: socket.socket | None = None
        self._timer: Timer | None = None
        self._cancelled = False
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError, OverflowError) as error:  # UnicodeError: a name with an empty or overlong label
            self._error = f"cannot resolve {host!r}: {getattr(error, 'strerror', None) or error}"
        else:
            self._addresses = [(family, address) for family, _, _, _, address in found]
        loop.call_soon(self._try_next)

    def cancel(self) -> None:
        """Give up. No callback of the protocol is called any more, unless the connection is open already."""
        self._cancelled = True
        self._release()

    def _try_next(self) -> None:
        if self._cancelled:
            return
        while self._addresses:
            family, address = self._addresses.pop(0)
            try:
                sock = socket.socket(family, socket.SOCK_STREAM)
            except OSError as error:
                self._error = error.strerror or str(error)
                continue
            sock.setblocking(False)
            code = sock.connect_ex(address)
            if code != 0 and code not in CONNECTING:
                self._error = os.strerror(code)
                sock.close()
                continue
            # Also when it is connected already (loopback): one way for both.
            try:
                self._loop.poller.register(sock.fileno(), WRITE, self._handle_writable)
            except OSError as error:
                self._error = error.strerror or str(error)
                sock.close()
                continue
            self._socket = sock
            if self._timeout_s is not None:
                self._timer = self._loop.call_later(self._timeout_s, self._handle_timeout)
            return
        self._failed(f"cannot connect to {self._target}: {self._error}")

    def _failed(self, text: str) -> None:
        if not self._cancelled:
            self._protocol.on_connect_error(ConnectError(text))

    def _handle_writable(self) -> None:
        sock = self._socket
        assert sock is not None
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if not code and _is_connected_to_itself(sock):
            code = errno.ECONNREFUSED
        if code:
            self._error = os.strerror(code)
            self._release()
            self._loop.call_soon(self._try_next)
            return
        try:
            peer = peer_text(sock.getpeername())
        except OSError:
            return  # readiness is a hint: not connected yet
        self._socket = None
        self._release(sock)
        try:
            set_stream_options(sock)
            connection = Connection(self._loop, sock, peer, self._protocol, self._limits)
            connection.open()
        except Exception as error:
            if not isinstance(error, OSError):  # an error of the protocol's data_handler; on_connect's is not seen here
                self._loop.log_exception(error, "connection to %s closed: its protocol could not be used", self._target)
            self._loop.close_later(sock)
            self._loop.call_soon(self._failed, f"cannot use the connection to {self._target}: {error}")

    def _handle_timeout(self) -> None:
        self._error = f"no answer in {self._timeout_s:g} s"
        self._release()
        self._try_next()

    def _release(self, keep: socket.socket | None = None) -> None:
        """Stop timer and watch, and close the socket at the end of the pass unless it is kept."""
        if self._timer is not None:
            self._timer.cancel()
        sock = keep if keep is not None else self._socket
        if sock is not None:
            self._loop.poller.watch(sock.fileno(), 0, self._handle_writable)
            if keep is None:
                self._loop.close_later(sock)
        self._socket = None

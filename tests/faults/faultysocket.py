"""Sockets that misbehave to order: real ones, with a wrapper that makes some calls fail or do less than they could.

The kernel does all of this to a server sooner or later; here it does so on a schedule.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from typing import Any


def os_error(code: int) -> OSError:
    """The exception that a system call with this errno raises, of the right subclass."""
    return OSError(code, os.strerror(code))


class FaultyListener:
    """A listening socket whose accept fails for a number of times, and then works."""

    def __init__(self, code: int, times: int) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.setblocking(False)
        self._code = code
        self._left = times
        self.accepts = 0

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept, or fail as planned."""
        self.accepts += 1
        if self._left:
            self._left -= 1
            raise os_error(self._code)
        return self._socket.accept()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)


class FaultySocket:
    """A connected socket with a schedule for recv and one for send.

    A schedule is called before each operation with the number of bytes it could move. It returns how many bytes it
    may move at most, or a negative errno with which it fails.

    Attributes:
        sends, receives: how many calls there were, failed ones included.
        sent: the bytes the kernel took.
        closes: how often it was closed.
    """

    def __init__(
        self,
        sock: socket.socket,
        send_plan: Callable[[int], int] | None = None,
        receive_plan: Callable[[int], int] | None = None,
    ) -> None:
        self._socket = sock
        self._send_plan = send_plan
        self._receive_plan = receive_plan
        self.sends = 0
        self.receives = 0
        self.sent = bytearray()
        self.closes = 0

    def send(self, data: bytes | memoryview) -> int:
        """Send some of it, or fail, as planned."""
        self.sends += 1
        allowed = len(data) if self._send_plan is None else self._send_plan(len(data))
        if allowed < 0:
            raise os_error(-allowed)
        count = self._socket.send(data[: max(allowed, 1)])
        self.sent += data[:count]
        return count

    def recv(self, size: int) -> bytes:
        """Receive some of it, or fail, as planned."""
        self.receives += 1
        allowed = size if self._receive_plan is None else self._receive_plan(size)
        if allowed < 0:
            raise os_error(-allowed)
        return self._socket.recv(min(max(allowed, 1), size))

    def close(self) -> None:
        """Close, and count it."""
        self.closes += 1
        self._socket.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)


TRANSIENT = (errno.EAGAIN, errno.EINTR)
FATAL = (errno.ECONNRESET, errno.EPIPE, errno.ENOBUFS, errno.ETIMEDOUT)

"""A kernel in memory: sockets without descriptors, a selector that knows which are ready, a clock that stands still.

For tests; see `evloop.testing`, which runs the real connection and the real loop on them. That these sockets behave as
TCP does is shown by tests that run on them and on real sockets.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
from collections.abc import Callable, Mapping
from typing import Any

# No descriptor has a number like these, so nothing real can be mistaken for a socket in memory.
_FIRST_NUMBER = 1_000_000_000
# A program that always has something to do at once would keep a test waiting for ever.
_MAX_PASSES_AT_A_MOMENT = 100_000


class FakeClock:
    """A clock that stands still until ``now`` is changed. Call it to read it.

    Attributes:
        now: its time in seconds. A callback that adds to it is a slow one.
    """

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class MemorySocket(socket.socket):
    """One end of a connected pair. It has what a `Connection` uses of a socket; the rest fails with EBADF.

    Attributes:
        room: how many bytes it still takes from the other end; None for any number.
    """

    family: socket.AddressFamily = socket.AF_INET
    type: socket.SocketKind = socket.SOCK_STREAM

    def __init__(self, kernel: MemoryKernel, number: int) -> None:
        # Not that of the base, which would open a descriptor.
        self.other: MemorySocket = self
        self.room: int | None = None
        self.is_closed = False
        self.ended = False  # the other end has said that nothing more will come
        self.error = 0  # what the next call is to be told
        self._kernel = kernel
        self._number = number
        self._received = bytearray()
        self._has_ended = False  # this end has
        self._options: dict[tuple[int, int], Any] = {}

    def fileno(self) -> int:
        return -1 if self.is_closed else self._number

    @property
    def readable(self) -> bool:
        """Whether `recv` has something to tell."""
        return bool(self._received or self.ended or self.error)

    @property
    def writable(self) -> bool:
        """Whether `send` takes something, or has an error to tell."""
        return bool(self.error or self._has_ended or self.other.is_closed or self.other.room != 0)

    def recv(self, size: int, flags: int = 0) -> bytes:
        if self._received:
            data = bytes(self._received[:size])
            if not flags & socket.MSG_PEEK:
                del self._received[:size]
            return data
        self._raise_error()
        if self.ended:
            return b""
        raise _os_error(errno.EAGAIN)

    def send(self, data: Any, flags: int = 0) -> int:
        self._raise_error()
        if self._has_ended:
            raise _os_error(errno.EPIPE)
        other = self.other
        if other.is_closed:  # it answers with a reset
            self.error, self.ended = errno.EPIPE, True
            return len(data)
        taken = bytes(data) if other.room is None else bytes(data[: other.room])
        if not taken:
            raise _os_error(errno.EAGAIN)
        if other.room is not None:
            other.room -= len(taken)
        other._received += taken
        return len(taken)

    def shutdown(self, how: int) -> None:
        if self.error or self.other.is_closed:
            raise _os_error(errno.ENOTCONN)
        if how != socket.SHUT_RD:
            self._has_ended = self.other.ended = True

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            self._kernel.forget(self._number)
            # As TCP does: bytes that nobody has read, or that are not to be sent any more, are answered with a reset.
            if self._received or self._options.get((socket.SOL_SOCKET, socket.SO_LINGER)):
                self.other.error = errno.ECONNRESET
            self.other.ended = True

    def setsockopt(self, level: int, optname: int, value: Any, optlen: Any = None) -> None:
        if self.is_closed:
            raise _os_error(errno.EBADF)
        self._options[level, optname] = value

    def getsockopt(self, level: int, optname: int, buflen: int = 0) -> Any:
        if (level, optname) == (socket.SOL_SOCKET, socket.SO_ERROR):
            code, self.error = self.error, 0
            return code
        if (level, optname) == (socket.SOL_SOCKET, socket.SO_RCVBUF):
            return max(len(self._received), 65536)  # room for all that waits, since the other end could send it
        return self._options.get((level, optname), 0)

    def setblocking(self, flag: bool) -> None:
        pass  # it never blocks

    def getsockname(self) -> tuple[str, int]:
        return "192.0.2.0", self._number % 65536

    def getpeername(self) -> tuple[str, int]:
        return self.other.getsockname()

    def __repr__(self) -> str:
        return f"<MemorySocket {self._number}{' closed' if self.is_closed else ''}>"

    def _raise_error(self) -> None:
        if self.is_closed:
            raise _os_error(errno.EBADF)
        if self.error:
            code, self.error = self.error, 0
            raise _os_error(code)


class MemoryKernel(selectors.BaseSelector):
    """Knows the sockets in memory and which of them are ready; moves the clock instead of waiting.

    Args:
        on_rest: called when nothing is ready and no timer is due until the moment asked for.
    """

    def __init__(self, clock: FakeClock, on_rest: Callable[[], None]) -> None:
        self.until = clock.now
        self._clock = clock
        self._on_rest = on_rest
        self._sockets: dict[int, MemorySocket] = {}
        self._watched: dict[int, selectors.SelectorKey] = {}
        self._next_number = _FIRST_NUMBER
        self._passes_at = (clock.now, 0)  # this moment, and how many passes there have been in it

    def pair(self) -> tuple[MemorySocket, MemorySocket]:
        """Two connected sockets."""
        one, other = (MemorySocket(self, self._next_number + place) for place in range(2))
        one.other, other.other = other, one
        self._sockets |= {self._next_number: one, self._next_number + 1: other}
        self._next_number += 2
        return one, other

    def forget(self, number: int) -> None:
        """A socket is closed."""
        self._sockets.pop(number, None)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        moment, passes = self._passes_at
        self._passes_at = (moment, passes + 1) if moment == self._clock.now else (self._clock.now, 1)
        if passes > _MAX_PASSES_AT_A_MOMENT:
            self._passes_at = (moment, 0)
            raise AssertionError(f"not at rest after {passes} passes of the loop: something goes on without end")
        ready = [(key, events) for key in self._watched.values() if (events := self._ready(key))]
        if ready or timeout == 0:
            return ready
        left_s = self.until - self._clock.now
        if timeout is not None and timeout <= left_s:
            self._clock.now += timeout
        else:
            self._clock.now = max(self._clock.now, self.until)
            self._on_rest()
        return []

    def _ready(self, key: selectors.SelectorKey) -> int:
        sock = self._sockets[key.fd]
        if sock.error:  # told whatever was asked for
            return key.events
        readable = selectors.EVENT_READ if sock.readable else 0
        writable = selectors.EVENT_WRITE if sock.writable else 0
        return key.events & (readable | writable)

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        if fileobj not in self._sockets:
            raise ValueError(f"only sockets in memory can be watched here, not descriptor {fileobj!r}")
        if fileobj in self._watched:
            raise KeyError(f"{fileobj} is watched already")
        return self._watched.setdefault(fileobj, selectors.SelectorKey(fileobj, fileobj, events, data))

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._watched.pop(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        self.unregister(fileobj)
        return self.register(fileobj, events, data)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._watched


def _os_error(code: int) -> OSError:
    return OSError(code, os.strerror(code))

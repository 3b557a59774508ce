"""Running a protocol on bytes, in memory and on a clock of its own: for tests.

Theory of operation
-------------------
Nothing is imitated but what is not ours: the kernel and the time. The connection, the loop and its timers are the
real ones. Their sockets are `MemorySocket`s, whose bytes go straight to the other end of their pair; their selector is
a `MemoryKernel`, which knows which of those are ready. It is also what the loop asks to wait, so it moves the clock: a
wait for the next timer takes no time, and when there is nothing left to wait for, or it would wait beyond the moment
that the test asked for, it stops the loop. So a test says what the peer does or how much time passes, and when that
call returns all that follows from it has happened; nothing sleeps, and each run is like the last one.

What a callback raises, or returns and must not, costs its connection as it always does, and is raised to the test.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from evloop.errors import LimitError
from evloop.limits import Limits
from evloop.log import ERROR
from evloop.net.connection import Connection
from evloop.net.connector import Connector
from evloop.net.eventloop import EventLoop
from evloop.net.protocol import Protocol

__all__ = ["FakeClock", "MemoryLoop", "MemoryStream"]

# An address for documentation (RFC 5737): nobody has it.
_PEER = "192.0.2.1:1024"
# No descriptor has a number like these, so nothing real can be mistaken for a socket in memory.
_FIRST_NUMBER = 1_000_000_000
# A program that never comes to rest would be waited for without end.
_MAX_PASSES_AT_A_MOMENT = 100_000


class FakeClock:
    """A clock that stands still until it is told otherwise. Call it to read it.

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
        return self._options.get((level, optname), 65536 if optname == socket.SO_RCVBUF else 0)

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


class MemoryLoop(EventLoop):
    """An `EventLoop` that runs when a test says so, on a clock that doesn't run. It needs no `close`.

    Attributes:
        clock: the `FakeClock`.
    """

    clock: FakeClock

    def __init__(self) -> None:
        clock = FakeClock()
        self._kernel = MemoryKernel(clock, self.stop)
        self._fault: BaseException | None = None
        super().__init__(selector=self._kernel, clock=clock)

    def advance(self, seconds: float = 0.0) -> None:
        """Let this much time pass, and do what is due meanwhile, each thing at its time; then what is ready now.

        Raises:
            Exception: what a callback, a timer or a queued call raised.
            AssertionError: it never comes to rest, as something calls itself again and again.
        """
        if seconds < 0:
            raise ValueError(f"time does not run backwards: {seconds}")
        self._kernel.until = self.clock.now + seconds
        self.run()
        fault, self._fault = self._fault, None
        if fault is not None:
            try:
                raise fault
            finally:
                del fault  # this frame is in its traceback: a cycle

    def pair(self) -> tuple[MemorySocket, MemorySocket]:
        """Two sockets that are connected with each other, for what takes a socket."""
        return self._kernel.pair()

    def join(self, client: Protocol, server: Protocol, limits: Limits | None = None) -> None:
        """Connect two protocols with each other, and let them speak until both wait."""
        for protocol, sock in zip((server, client), self.pair(), strict=True):
            Connection(self, sock, _PEER, protocol, Limits() if limits is None else limits).open()
        self.advance()

    def connect(self, *args: Any, **named: Any) -> Connector:
        """Not here.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("in memory there is nobody to connect to: use MemoryLoop.join with both protocols")

    def log_exception(self, error: BaseException, text: str, *args: object) -> None:
        """Raised by `advance`, and only logged if it isn't the first."""
        if self._fault is None:
            self._fault = error
        else:
            super().log_exception(error, text, *args)

    def log_limited(self, level: int, text: str, *args: object) -> None:
        """An error is raised by `advance`, as above."""
        if level >= ERROR and self._fault is None:
            raised = [argument for argument in args if isinstance(argument, Exception)]
            self._fault = raised[0] if raised else AssertionError(text % args)
        else:
            super().log_limited(level, text, *args)

    def _wakeup_pair(self) -> tuple[socket.socket, socket.socket]:
        return self.pair()


class MemoryStream:
    """A connection in memory, whose peer is the test.

    It is open when it is made, and ``on_connect`` has been called. Each method is something that the peer does, or time
    that passes; it returns what was sent to the peer meanwhile, and raises what a callback raised.

    Args:
        protocol: whose connection it is.
        limits: what bounds it. Time-outs are a server's affair: none is kept here but ``linger_timeout_s``.
        loop: the loop to live in, for streams that belong together. Default: one of its own.
        peer_reads: how many bytes the peer reads before it stops; None for all.
        peer: the peer's address as text, for logs.

    Attributes:
        connection: the connection.
        loop, clock: its loop, and the clock of that.
        limits_hit: how often which limit was hit, by its name.
    """

    def __init__(
        self,
        protocol: Protocol,
        *,
        limits: Limits | None = None,
        loop: MemoryLoop | None = None,
        peer_reads: int | None = None,
        peer: str = _PEER,
    ) -> None:
        self.loop = MemoryLoop() if loop is None else loop
        self.clock = self.loop.clock
        self.limits_hit: Counter[str] = Counter()
        self._sent = bytearray()
        self._has_ended = False
        sock, self._peer = self.loop.pair()
        self._peer.room = peer_reads
        limits = Limits() if limits is None else limits
        self.connection = Connection(self.loop, sock, peer, protocol, limits, self._count_limit, self.limits_hit)
        self.connection.open()
        self.loop.advance()

    def feed(self, data: bytes) -> bytes:
        """The peer sends this. If the connection is over it is lost, as it would be in a network.

        Raises:
            ValueError: the peer has said that it sends nothing more.
        """
        if self._has_ended:
            raise ValueError("the peer has ended its stream: it can't send any more")
        if data and not self._peer.error:
            self._peer.send(data)
        return self.advance()

    def eof(self) -> bytes:
        """The peer says that it sends nothing more; it still reads."""
        self._has_ended = True
        if not self._peer.error and not self._peer.other.is_closed:
            self._peer.shutdown(socket.SHUT_WR)
        return self.advance()

    def reset(self) -> bytes:
        """The peer breaks off: a reset, as when its program is killed. It reads no more."""
        self._has_ended = True
        self._sent += self._take()
        self._peer.other.error = errno.ECONNRESET
        self._peer.close()
        return self.advance()

    def peer_reads(self, size: int | None) -> bytes:
        """From now on the peer reads this many bytes more, and no others; all if it is None."""
        self._peer.room = size
        return self.advance()

    def advance(self, seconds: float = 0.0) -> bytes:
        """Time passes, for all that live in this loop."""
        before = len(self.sent)
        self.loop.advance(seconds)
        return self.sent[before:]

    @property
    def sent(self) -> bytes:
        """All that was sent to the peer so far."""
        self._sent += self._take()
        return bytes(self._sent)

    @property
    def closed(self) -> bool:
        """Whether the peer has been told that nothing more will come, in whatever way."""
        return self._peer.ended or self._peer.is_closed

    @property
    def was_reset(self) -> bool:
        """Whether it was told so by a reset: there was more to be sent, or something that it had sent was not read."""
        return self._peer.error == errno.ECONNRESET

    def __repr__(self) -> str:
        return f"<MemoryStream {self.connection!r} sent={len(self.sent)}>"

    def _count_limit(self, connection: Connection, error: Exception | None) -> None:
        if isinstance(error, LimitError):
            self.limits_hit[error.limit] += 1

    def _take(self) -> bytes:
        if self._peer.is_closed:
            return b""
        taken = bytes(self._peer._received)
        self._peer._received.clear()
        return taken


def _os_error(code: int) -> OSError:
    return OSError(code, os.strerror(code))

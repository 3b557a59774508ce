"""For tests: a protocol runs in memory, without sockets, and with a clock that the test moves.

Theory of operation
-------------------
Only the kernel and the time are imitated (`evloop.net.memory`). The connection, the loop and its timers are the real
ones. Their sockets are `MemorySocket`s, whose bytes go straight to the other end of their pair; their selector is a
`MemoryKernel`, which knows which of those sockets are ready. The loop also asks it to wait, so it can move the clock: a
wait for the next timer takes no time. When there is nothing left to wait for, or the wait would go beyond the moment
that the test asked for, it stops the loop. So a test says what the peer does or how much time passes, and when that
call returns, everything that follows from it has happened. Nothing sleeps, and each run is like the last one.

If a callback raises, or returns what it must not, its connection is aborted as always, and the test gets the exception.
"""

from __future__ import annotations

import errno
import socket
from collections import Counter
from typing import Any

from evloop.errors import LimitError
from evloop.eventloop import EventLoop
from evloop.limits import Limits
from evloop.log import ERROR
from evloop.net.connection import Connection
from evloop.net.connector import Connector
from evloop.net.memory import FakeClock, MemoryKernel, MemorySocket
from evloop.net.protocol import Protocol

__all__ = ["FakeClock", "MemoryLoop", "MemorySocket", "MemoryStream"]

# An address for documentation (RFC 5737): nobody has it.
_PEER = "192.0.2.1:1024"


class MemoryLoop(EventLoop):
    """An `EventLoop` that runs only when a test says so, with a clock that only the test moves. It needs no `close`.

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
        """Let so much time pass and do what is due meanwhile, each thing at its time; then do what is ready.

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

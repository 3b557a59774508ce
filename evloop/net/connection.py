"""One connection as its protocol sees it: callbacks, pauses, water marks, limits, and the ways to end it.

Theory of operation
-------------------
`evloop.net.stream.Stream`, on which this is built, moves the bytes; here is what follows from that. A protocol's
callbacks are called, and what they return is sent. When the kernel does not take all that it is offered, and too much
is left, the peer is not read until less is left (water marks). When the peer has sent all that it wants to send, the
connection is closed as soon as everything is answered; a protocol that answers later says so (`Connection.hold`).

For the protocol the connection is over when nothing more will be received or sent. The descriptor may stay open a
little longer, so that our last bytes reach the peer; only the server knows of that.

Where others plug in: a kind of connection that does more than move bytes, such as TLS, is a subclass, chosen by the one
who makes connections. Opening has two steps, `_register` and `_established`, and a subclass can put something between
them. It can also end a connection in its own way (`_end_output`, `_finish`).
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable

from evloop.core.loop import Loop
from evloop.errors import CallbackResultError, LimitError
from evloop.limits import Limits
from evloop.log import ERROR
from evloop.net.buffers import NOTHING_MORE, SendQueue, as_bytes
from evloop.net.linger import Linger
from evloop.net.protocol import Protocol
from evloop.net.receiving import RECV_BYTES
from evloop.net.state import State
from evloop.net.stream import (
    PAUSED_BY_DRAIN,
    PAUSED_BY_HIGH_WATER,
    PAUSED_BY_TURN,
    PAUSED_BY_USER,
    Stream,
)

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from evloop.net.proxyheader import ProxyHeader
    from evloop.net.tlsinfo import TLSInfo

_OPEN, _FLUSHING, _LINGERING, _CLOSED = State.OPEN, State.FLUSHING, State.LINGERING, State.CLOSED
_HALF_OPEN, _HALF_CLOSED = State.HALF_OPEN, State.HALF_CLOSED

# The protocol of a connection that is over.
NOBODY = Protocol()

# How often a connection that is paused is looked at again while its server stops.
_DRAIN_RETRY_S = 0.01


class Connection(Stream):
    """A connected stream socket and the protocol that speaks on it.

    Made by a server or by `EventLoop.connect`, not by users. Owns the socket and closes it. All methods belong to the
    loop's thread.

    Attributes:
        loop: the loop it lives in.
        protocol: whose callbacks it calls.
        limits: what bounds it.
        peer: the other end as text, ``host:port``, for logs.
        proxy_header: what a trusted proxy has said of this client (`evloop.net.proxyheader`); None without one.
        state: where it is in its life (`evloop.net.state`). Read it only.
        bytes_received, bytes_sent: totals so far.
        opened_at: when it was opened, in seconds of ``loop.now``.
    """

    __slots__ = (
        "_holds",
        "_limits_hit",
        "_on_closed",
        "_peer_ended",
        "active_at",
        "activity",
        "opened_at",
        "peer",
        "protocol",
        "proxy_header",
    )

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        peer: str,
        protocol: Protocol,
        limits: Limits,
        on_closed: Callable[[Connection, Exception | None], None] | None = None,
        limits_hit: Counter[str] | None = None,
    ) -> None:
        super().__init__(loop, sock, limits)
        self.protocol = protocol
        self.peer = peer
        self.proxy_header: ProxyHeader | None = None  # set before it is opened
        self.opened_at = loop.now
        # Kept for the server's sweep: bytes moved when it last looked, and when it saw that number change.
        self.activity = 0
        self.active_at = loop.now
        self._peer_ended = False
        self._holds = 0  # answers that the protocol says it owes
        self._on_closed = on_closed
        self._limits_hit = limits_hit  # the server's: those limits are counted here that don't end with a `LimitError`
        if protocol.wants_whole_chunks:
            self._recv_bytes = RECV_BYTES
        protocol.connection = self
        self._on_data = protocol.data_handler()

    def open(self) -> None:
        """Start: call the protocol's ``on_connect`` and read from now on. To be called by the maker of the connection.

        Raises:
            OSError: the poller can't watch one more descriptor. The connection is closed then.
        """
        self._register(self._handle_readable)
        self._established()

    def _established(self) -> None:
        """The protocol can speak: the second step of opening."""
        self._call(self.protocol.on_connect)

    # ------------------------------------------------------------------ what a protocol uses

    def write(self, data: bytes) -> None:
        """Send ``data``, after all that was written before. Never blocks; ignored once `close`, `write_eof` or `abort`
        was called.

        It is given to the kernel at the end of this pass of the loop. The connection is aborted if more than
        ``limits.max_unsent_bytes`` are unsent.

        Raises:
            TypeError: it is not bytes, nor anything else with a buffer (``bytearray``, ``memoryview``).
        """
        data = as_bytes(data)
        if self.state is _OPEN or self.state is _HALF_OPEN:
            if self.batch is None:
                self._enqueue(data)
            else:
                self.batch.append(data)

    def write_eof(self) -> None:
        """Send what was written, then say that nothing more will come. What the peer still says is received.

        The connection ends when the peer has said the same. To wait for no more than that, use `close`.
        """
        if self.state is _OPEN:
            self.state = _HALF_CLOSED
            self.loop.pending_writes.append(self)
        else:
            self.close()

    def close(self) -> None:
        """Send what was written, then close. Input is not read any more. What the calling callback returns is sent."""
        if not self.closing:
            self.state = _FLUSHING
            self._rest = b""
            self._update_interest()
            self.loop.pending_writes.append(self)

    def abort(self) -> None:
        """Close at once, and drop what is unsent; if that is anything, the peer sees a reset."""
        self._teardown(None)

    def pause_reading(self) -> None:
        """Stop reading: no ``on_data`` until `resume_reading`. The peer is held back by TCP's flow control."""
        self._set_pause(self._pause | PAUSED_BY_USER)

    def resume_reading(self) -> None:
        """Read again."""
        self._set_pause(self._pause & ~PAUSED_BY_USER)

    def hold(self) -> None:
        """Say that an answer is still owed. Until it is given, neither the peer's end of stream nor a drain closes the
        connection.

        For a protocol that answers later: from a timer, a thread, another server. For each call, call `release` once,
        after the answer was written. The server's time-outs apply meanwhile, too.
        """
        self._holds += 1

    def release(self) -> None:
        """The answer for which `hold` was called is written. Nothing happens if the connection is over by now.

        Raises:
            RuntimeError: it was called more often than `hold`.
        """
        if not self._holds:
            raise RuntimeError("release() without a hold()")
        self._holds -= 1
        if not self._holds and (
            self._pause & PAUSED_BY_DRAIN or (self.state is _HALF_OPEN and not self.protocol.keep_half_open)
        ):
            self.close()

    def end_for(self, error: Exception) -> None:
        """End it because of a limit or a fault; the server calls this. Unsent bytes are dropped; ``on_close`` gets the
        error."""
        self._teardown(error)

    def set_data_handler(self, handler: Callable[[bytes], bytes | None]) -> Callable[[bytes], bytes | None]:
        """From now on call ``handler`` with received bytes, and no longer what this returns."""
        before, self._on_data = self._on_data, handler
        return before

    def drain(self, up_to_bytes: int | None = None) -> None:
        """Answer all requests that have reached this machine, then `close`: for a server that stops.

        Reads until the kernel has nothing more. From a peer that never stops sending, it reads no more than the receive
        buffer can have held when this was called. Then it waits for answers that are owed (`hold`).

        Args:
            up_to_bytes: the value of `bytes_received` to stop at. Only this method itself passes it.
        """
        if self.state is _OPEN or self.state is _HALF_CLOSED:
            if up_to_bytes is None:
                room = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
                up_to_bytes = self.bytes_received + room
            before = self.bytes_received
            if not self._pause:
                self._handle_readable()
            if self._pause or before < self.bytes_received < up_to_bytes:
                # While it is paused, come back now and then; else in the next pass.
                self.loop.call_later(_DRAIN_RETRY_S if self.paused else 0, self.drain, up_to_bytes)
                return
        if self._holds and not self.closing:
            self._set_pause(self._pause | PAUSED_BY_DRAIN)
            self._call(self.protocol.on_drain)
        else:
            self.close()

    def count_limit(self, limit: str) -> None:
        """Count in the server's statistics that a limit was hit: for protocols that have some of their own."""
        if self._limits_hit is not None:
            self._limits_hit[limit] += 1

    @property
    def closing(self) -> bool:
        """True once `close` or `abort` was called or the connection is gone."""
        state = self.state
        return state is not _OPEN and state is not _HALF_OPEN and state is not _HALF_CLOSED

    @property
    def is_probe(self) -> bool:
        """Whether nobody has used it so far: no byte has come, or a proxy speaks for itself."""
        return not self.bytes_received or (self.proxy_header is not None and self.proxy_header.local)

    @property
    def tls(self) -> TLSInfo | None:
        """What was agreed on with TLS, the peer's certificate too; None on a connection without, or not made yet."""
        return None

    @property
    def unsent_bytes(self) -> int:
        """Written and not yet taken by the kernel; also what it has not been offered yet."""
        waiting = 0 if self.batch is None else sum(map(len, self.batch))
        return len(self._unsent) + waiting

    @property
    def paused(self) -> bool:
        """True while it is not read, because the protocol asked for that or because too much is unsent."""
        return self._pause & ~PAUSED_BY_TURN != 0

    @property
    def socket(self) -> socket.socket:
        """The socket, for its options and addresses. Don't read, write or close it."""
        return self._socket

    @property
    def is_legal(self) -> bool:
        """Whether state and all that goes with it are one of the combinations listed in `evloop.net.state`."""
        state, unsent = self.state, len(self._unsent)
        return (
            (self._peer_ended if state is _HALF_OPEN else not self._peer_ended or state in (_FLUSHING, _CLOSED))
            and (not self._rest or (self._pause != 0 and state in (_OPEN, _HALF_CLOSED)))
            and (self._linger is not None) <= (state in (_LINGERING, _CLOSED))
            and (self._linger is not None) >= (state is _LINGERING)
            and (unsent == 0 or state not in (_LINGERING, _CLOSED))
        )

    def __repr__(self) -> str:
        return f"<Connection {self.peer} {self.state.value} unsent={self.unsent_bytes}>"

    # ------------------------------------------------------------------ what has happened to the stream

    def _message_end(self) -> bytes | None:
        return None if self.protocol.wants_whole_chunks else self.protocol.message_end

    def _handle_eof(self) -> None:
        self._peer_ended = True
        if self.state is _OPEN:
            self.state = _HALF_OPEN
        self._call(self.protocol.on_eof)
        if self.state is _CLOSED:
            return
        if self.state is _HALF_OPEN and (self.protocol.keep_half_open or self._holds):
            self._update_interest()  # an end that is not taken off the poller would be reported for ever
        elif not len(self._unsent):
            self._finish()  # the common end of a connection: nothing is left to be said
        else:
            self.state = _FLUSHING
            self._update_interest()

    def _queued(self, queue: SendQueue, before: int) -> None:
        limit = self.limits.max_unsent_bytes
        if len(queue) > limit:
            self._teardown(LimitError("unsent", f"more than {limit} bytes unsent: the peer does not read"))
        elif before <= self.limits.high_water_bytes < len(queue):
            # The socket may not have been tried for long, and nobody else would notice that the mark is crossed.
            self.loop.pending_writes.append(self)

    def _sent(self) -> None:
        """Water marks, interest in writability, and the end of a close."""
        unsent = len(self._unsent)
        if unsent > self.limits.high_water_bytes:
            if not self._pause & PAUSED_BY_HIGH_WATER:
                self._pause |= PAUSED_BY_HIGH_WATER
                self.count_limit("high-water")
                self._call(self.protocol.on_high_water)
        elif self._pause & PAUSED_BY_HIGH_WATER and unsent <= self.limits.low_water_bytes:
            self._pause &= ~PAUSED_BY_HIGH_WATER
            if self._rest:
                self._go_on_if_not_paused()
            self._call(self.protocol.on_low_water)
        if not len(self._unsent):
            if self.state is _FLUSHING:
                self._finish()
                return
            if self.state is _HALF_CLOSED and self._unsent is not NOTHING_MORE:
                try:
                    self._end_output()
                except OSError as error:
                    self._io_failed(error)
                    return
        self._update_interest()

    def _finish(self) -> None:
        """All is sent and the protocol has closed: say goodbye, and wait for the peer's unless it has come."""
        if self._peer_ended:
            self._teardown(None)
            return
        try:
            self._linger = Linger(self.loop, self._socket, self.limits, self._linger_over)
        except OSError:
            self._teardown(None)
            return
        self.state = _LINGERING
        self._unsent = NOTHING_MORE
        self._update_interest()
        self._over(None)

    def _linger_over(self, limit: str | None) -> None:
        if limit is not None:
            self.count_limit(limit)
        self._teardown(None)

    # ------------------------------------------------------------------ callbacks

    def _call(self, callback: Callable[[], bytes | None]) -> None:
        """Run a callback of the protocol and send what it returns."""
        try:
            reply = callback()
        except Exception as error:
            self._callback_failed(error)
        else:
            if reply:
                self._enqueue_reply(callback, reply)

    def _callback_failed(self, error: Exception) -> None:
        if isinstance(error, CallbackResultError):
            self.loop.log_limited(ERROR, "connection %s aborted: %s", self.peer, error)
        else:
            self.loop.log_exception(error, "connection %s aborted: its protocol raised", self.peer)
        self._teardown(error)

    def _over(self, error: Exception | None) -> None:
        protocol = self.protocol
        if protocol is NOBODY:
            return
        # Connection, protocol and handler refer to each other: cut here, so that they go now and not when the collector
        # comes round. Nothing is called back after on_close anyway.
        self.protocol = NOBODY
        self._on_data = NOBODY.on_data
        try:
            result: object = protocol.on_close(error)  # type: ignore[func-returns-value]
        except Exception as raised:
            self.loop.log_exception(raised, "connection %s: on_close raised", self.peer)
        else:
            if result is not None:
                self.loop.log_limited(
                    ERROR, "connection %s: %s", self.peer, CallbackResultError(protocol.on_close, result)
                )

    def _gone(self, error: Exception | None) -> None:
        if self._on_closed is not None:
            self._on_closed(self, error)

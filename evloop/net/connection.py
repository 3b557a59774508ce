"""One stream: bytes arrive, the protocol answers, bytes leave.

Theory of operation
-------------------
A connection is read at most once per pass of the loop. What its protocol returns is sent at once; what it writes by
other ways is sent near the end of the pass (`flush`, called by the loop), in one piece. Only
when the kernel does not take all of it is a `SendQueue` made and the descriptor registered for writability. So the
common exchange is one recv, one call of the protocol, one send, and an idle connection holds no buffer at all.

Its states are in `evloop.net.state`; `_teardown` is the only way to the last of them, and runs once. The descriptor
itself is closed by the loop at the end of the pass, so no number is used again while events of this pass that mention
it may still be waiting.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections import Counter
from collections.abc import Callable

from evloop.core.poller import READ, WRITE, Handler
from evloop.errors import DISCONNECTED, RETRY, LimitError
from evloop.limits import Limits
from evloop.log import WARNING
from evloop.net.buffers import NOTHING_MORE, SendQueue
from evloop.net.linger import Linger
from evloop.net.protocol import Protocol
from evloop.net.receiving import (
    FIRST_RECV_BYTES,
    LARGE_RECV_BYTES,
    MAX_TURN_REPLY_BYTES,
    RECV_BYTES,
    next_recv_bytes,
)
from evloop.net.state import State

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from evloop.core.loop import Loop

# Looking up a member of an enum costs as much as a method call in Python 3.11, a global does not.
_OPEN = State.OPEN
_HALF_OPEN = State.HALF_OPEN
_FLUSHING = State.FLUSHING
_LINGERING = State.LINGERING
_CLOSED = State.CLOSED

# For SO_LINGER: on, with no time.
_RESET_ON_CLOSE = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)

# The protocol of a connection that is closed.
NOBODY = Protocol()

# Why a connection is not being read; may be combined.
_PAUSED_BY_USER = 1
_PAUSED_BY_HIGH_WATER = 2


class Connection:
    """A connected stream socket and the protocol that speaks on it.

    Made by a server or by `EventLoop.connect`, not by users. Owns the socket and closes it. All methods belong to the
    loop's thread.

    Attributes:
        loop: the loop it lives in.
        protocol: whose callbacks it calls.
        limits: what bounds it.
        peer: the other end as text, ``host:port``, for logs.
        bytes_received, bytes_sent: totals so far.
        opened_at: when it was opened, in seconds of ``loop.now``.
    """

    __slots__ = (
        "_limits_hit",
        "_linger",
        "_on_closed",
        "_on_data",
        "_pause",
        "_peer_ended",
        "_recv_bytes",
        "_socket",
        "_state",
        "_unsent",
        "active_at",
        "activity",
        "bytes_received",
        "bytes_sent",
        "limits",
        "loop",
        "opened_at",
        "peer",
        "protocol",
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
        self.loop = loop
        self.protocol = protocol
        self.limits = limits
        self.peer = peer
        self.bytes_received = 0
        self.bytes_sent = 0
        self.opened_at = loop.now
        # Kept for the server's sweep: bytes moved when it last looked, and when it saw that number change.
        self.activity = 0
        self.active_at = loop.now
        self._socket = sock
        self._state = _OPEN
        self._pause = 0
        self._peer_ended = False
        self._recv_bytes = RECV_BYTES if protocol.wants_whole_chunks else FIRST_RECV_BYTES
        # Nothing (b""), one reply that waits for the end of the pass (bytes), or what the kernel did not take yet.
        self._unsent: bytes | SendQueue = b""
        self._linger: Linger | None = None
        self._on_closed = on_closed
        self._limits_hit = limits_hit  # the server's: those limits are counted here that don't end with a `LimitError`
        protocol.connection = self
        self._on_data = protocol.data_handler()

    def open(self) -> None:
        """Start: call the protocol's ``on_connect`` and read from now on. For whoever made the connection.

        Raises:
            OSError: the poller can't watch one more descriptor. The connection is closed then.
        """
        try:
            self.loop.poller.register(self._socket.fileno(), READ, self._handle_readable)
        except OSError:
            self._state = _CLOSED
            self._socket.close()
            raise
        self._call(self.protocol.on_connect)

    # ------------------------------------------------------------------ what a protocol uses

    def write(self, data: bytes) -> None:
        """Send ``data``, after all that was written before. Never blocks; ignored once `close` or `abort` was called.

        The connection is aborted if more than ``limits.max_unsent_bytes`` are unsent.
        """
        if self._state is _OPEN or self._state is _HALF_OPEN:
            self.reply(data)

    def close(self) -> None:
        """Send what was written, then close. Input is not read any more. What the calling callback returns is sent."""
        if self._state is _OPEN or self._state is _HALF_OPEN:
            self._state = _FLUSHING
            self._update_interest()
            self.loop.pending_writes.append(self)

    def abort(self) -> None:
        """Close at once, and drop what is unsent; if that is anything, the peer sees a reset."""
        self._teardown(None)

    def pause_reading(self) -> None:
        """Stop reading: no ``on_data`` until `resume_reading`. The peer is held back by TCP's flow control.

        Not even a reset of the peer is noticed meanwhile, unless there is something to write.
        """
        self._set_pause(self._pause | _PAUSED_BY_USER)

    def resume_reading(self) -> None:
        """Read again."""
        self._set_pause(self._pause & ~_PAUSED_BY_USER)

    def end_for(self, error: Exception) -> None:
        """End it because of a limit or fault: for the server. Unsent bytes are dropped; ``on_close`` gets the error."""
        self._teardown(error)

    def set_data_handler(self, handler: Callable[[bytes], bytes | None]) -> None:
        """From now on call ``handler`` with received bytes, instead of what `Protocol.data_handler` named."""
        self._on_data = handler

    def drain(self, up_to_bytes: int | None = None) -> None:
        """Answer all requests that have reached this machine, then `close`: for a server that stops.

        Reads until the kernel has nothing more, or, from a peer that never stops sending, what its receive buffer can
        have held when this was called.

        Args:
            up_to_bytes: the value of `bytes_received` to stop at; for calls of its own.
        """
        if self._state is _OPEN:
            if up_to_bytes is None:
                room = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
                up_to_bytes = self.bytes_received + room
            before = self.bytes_received
            if not self._pause:
                self._handle_readable()
            if self._pause or before < self.bytes_received < up_to_bytes:
                # While it is paused, come back now and then; else in the next pass.
                self.loop.call_later(0.01 if self._pause else 0, self.drain, up_to_bytes)
                return
        self.close()

    def count_limit(self, limit: str) -> None:
        """Count in the server's statistics that a limit was hit: for protocols that have some of their own."""
        if self._limits_hit is not None:
            self._limits_hit[limit] += 1

    @property
    def state(self) -> State:
        """Where it is in its life."""
        return self._state

    @property
    def closing(self) -> bool:
        """True once `close` or `abort` was called or the connection is gone: nothing more can be written."""
        return self._state is not _OPEN and self._state is not _HALF_OPEN

    @property
    def unsent_bytes(self) -> int:
        """Written and not yet taken by the kernel."""
        return len(self._unsent)

    @property
    def paused(self) -> bool:
        """True while it is not read, because the protocol asked for that or because too much is unsent."""
        return self._pause != 0

    @property
    def stalled(self) -> bool:
        """True when the kernel did not take all that was written: the peer reads slower than we write.

        Also between several writes in one pass and the end of that pass.
        """
        return type(self._unsent) is SendQueue

    @property
    def socket(self) -> socket.socket:
        """The socket, for its options and addresses. Don't read, write or close it."""
        return self._socket

    def __repr__(self) -> str:
        return f"<Connection {self.peer} {self._state.value} unsent={self.unsent_bytes}>"

    # ------------------------------------------------------------------ the hot path: one recv, one feed, one send

    def _handle_readable(self) -> None:
        # Budget: under 0.7 us of Python for a short message, beside some 5 us of kernel. The state is not looked at:
        # whoever changes it to one that must not read changes the handler as well.
        try:
            data = self._socket.recv(self._recv_bytes)
        except OSError as error:
            self._io_failed(error)
            return
        if not data:
            self._handle_eof()
            return
        size = len(data)
        self.bytes_received += size
        try:
            reply = self._on_data(data)
        except Exception as error:
            self._callback_failed(error)
            return
        if (
            size >= FIRST_RECV_BYTES  # less never changes anything, and most receives are less
            and (size == self._recv_bytes or (size > LARGE_RECV_BYTES and reply and len(reply) > MAX_TURN_REPLY_BYTES))
            and not self.protocol.wants_whole_chunks
        ):
            self._recv_bytes = next_recv_bytes(self._recv_bytes, size, len(reply or b""))
        if reply:
            if self._unsent:
                self.reply(reply)
                return
            try:
                sent = self._socket.send(reply)
            except OSError:
                sent = 0  # the flush at the end of the pass tries again, and deals with what is wrong
            self.bytes_sent += sent
            if sent != len(reply):
                self.reply(reply[sent:])

    # ------------------------------------------------------------------ reading, off the hot path

    def _handle_eof(self) -> None:
        self._peer_ended = True
        self._state = _HALF_OPEN
        self._call(self.protocol.on_eof)
        if self._unsent or self.protocol.keep_half_open:
            self._update_interest()  # an end that is not taken off the poller would be reported for ever
            if not self.protocol.keep_half_open:
                self.close()
        elif self._state is _HALF_OPEN or self._state is _FLUSHING:
            self._teardown(None)  # the common end of a connection: nothing is left to be said

    def _set_pause(self, pause: int) -> None:
        if pause != self._pause:
            self._pause = pause
            self._update_interest()

    # ------------------------------------------------------------------ writing, off the hot path

    def reply(self, data: bytes) -> None:
        """Like `write`, but also after `close`, while what was written is still leaving: for replies of a callback."""
        if self._state is _LINGERING or self._state is _CLOSED or not data:
            return
        if type(data) is not bytes:
            data = bytes(data)  # a queue keeps what it is given, so that must not change
        unsent = self._unsent
        if not unsent:
            self._unsent = data
            self.loop.pending_writes.append(self)
            return
        if isinstance(unsent, bytes):
            queue = SendQueue()
            queue.append(unsent)
            self._unsent = unsent = queue
        before = len(unsent)
        unsent.append(data)
        if not self._abort_if_over_cap(unsent) and before <= self.limits.high_water_bytes < before + len(data):
            # The socket may not have been tried for long, and nobody else would notice that the mark is crossed.
            self.loop.pending_writes.append(self)

    def flush(self) -> None:
        """Send what was written in this pass: for the loop, in step 5 of a pass."""
        data = self._unsent
        if type(data) is not bytes or not data:
            self._flush()
            return
        try:
            sent = self._socket.send(data)
        except OSError as error:
            if error.errno not in RETRY:
                self._io_failed(error)
                return
            sent = 0
        if sent == len(data):
            self._unsent = b""
            self.bytes_sent += sent
            if self._state is _FLUSHING:
                self._finish()
        else:
            self._send_was_short(data, sent)

    def _flush(self) -> None:
        """Send what the socket takes of the queue, and do what follows from how much is left."""
        if self._state is _CLOSED:
            return
        queue = self._unsent
        if type(queue) is SendQueue:
            before = len(queue)
            failed: OSError | None = None
            try:
                queue.send_to(self._socket.send)
            except OSError as error:
                if error.errno not in RETRY:
                    failed = error
            self.bytes_sent += before - len(queue)
            if failed is not None:
                self._io_failed(failed)
                return
            if not queue:
                self._unsent = b""
        self._unsent_changed()

    def _send_was_short(self, data: bytes, sent: int) -> None:
        queue = SendQueue()
        queue.append(data[sent:])
        self._unsent = queue
        self.bytes_sent += sent
        if not self._abort_if_over_cap(queue):
            self._unsent_changed()

    def _abort_if_over_cap(self, queue: SendQueue) -> bool:
        """Abort the connection, and return True, if it holds more unsent bytes than a connection may."""
        limit = self.limits.max_unsent_bytes
        if len(queue) <= limit:
            return False
        self._teardown(LimitError("unsent", f"more than {limit} bytes unsent: the peer does not read"))
        return True

    def _unsent_changed(self) -> None:
        """After a send: water marks, interest in writability, and the end of a close."""
        unsent = len(self._unsent)
        if unsent > self.limits.high_water_bytes:
            if not self._pause & _PAUSED_BY_HIGH_WATER:
                self._pause |= _PAUSED_BY_HIGH_WATER
                self.count_limit("high-water")
                self._call(self.protocol.on_high_water)
        elif self._pause & _PAUSED_BY_HIGH_WATER and unsent <= self.limits.low_water_bytes:
            self._pause &= ~_PAUSED_BY_HIGH_WATER
            self._call(self.protocol.on_low_water)
        if not self._unsent and self._state is _FLUSHING:
            self._finish()
        else:
            self._update_interest()

    def _finish(self) -> None:
        """All is sent: say FIN, and wait for the peer's unless it has come."""
        if self._peer_ended:
            self._teardown(None)
            return
        try:
            self._linger = Linger(self.loop, self._socket, self.limits, self._linger_over)
        except OSError:
            self._teardown(None)
            return
        self._state = _LINGERING
        self._update_interest()

    def _linger_over(self, limit: str | None) -> None:
        if limit is not None:
            self.count_limit(limit)
        self._teardown(None)

    # ------------------------------------------------------------------ interest

    def _update_interest(self) -> None:
        """Bring what the poller watches for in line with state, pauses and unsent bytes."""
        state = self._state
        if state is _CLOSED:
            return
        events = 0
        handler: Handler = self._handle_readable
        if self._linger is not None:
            events, handler = READ, self._linger.handle_readable
        elif state is _OPEN and not self._pause:
            events = READ
        if type(self._unsent) is SendQueue:
            # Also registered when the queue has yet to be tried: then this costs one more pass, and nothing else.
            handler = self._handle_both if events else self._flush
            events |= WRITE
        try:
            self.loop.poller.watch(self._socket.fileno(), events, handler)
        except OSError as error:  # the kernel is out of memory for watches
            self._io_failed(error)

    def _handle_both(self) -> None:
        # Which of the two the descriptor is ready for is not worth knowing here: the other costs an EAGAIN.
        self._flush()
        if self._state is _OPEN and not self._pause:
            self._handle_readable()

    # ------------------------------------------------------------------ the end

    def _call(self, callback: Callable[[], bytes | None]) -> None:
        """Run a callback of the protocol and send what it returns."""
        try:
            reply = callback()
        except Exception as error:
            self._callback_failed(error)
        else:
            if reply:
                self.reply(reply)

    def _callback_failed(self, error: Exception) -> None:
        self.loop.log_exception(error, "connection %s aborted: its protocol raised", self.peer)
        self._teardown(error)

    def _io_failed(self, error: OSError) -> None:
        if error.errno in RETRY:
            return
        if error.errno not in DISCONNECTED:
            self.loop.log_limited(WARNING, "connection %s lost: %s", self.peer, error)
        self._teardown(error)

    def _teardown(self, error: Exception | None) -> None:
        """The only way to the CLOSED state. Safe to call twice."""
        if self._state is _CLOSED:
            return
        self._state = _CLOSED
        if self._unsent:
            # The peer must not take what it has got for all there was: it gets a reset, not an orderly end.
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            except OSError:
                pass
        self._unsent = NOTHING_MORE
        if self._linger is not None:
            self._linger.cancel()
            self.bytes_received += self._linger.dropped_bytes
        self.loop.poller.watch(self._socket.fileno(), 0, self._flush)
        self.loop.close_later(self._socket)
        try:
            self.protocol.on_close(error)
        except Exception as raised:
            self.loop.log_exception(raised, "connection %s: on_close raised", self.peer)
        if self._on_closed is not None:
            self._on_closed(self, error)
        # Connection, protocol and handler refer to each other: cut here, so that they go now and not when the collector
        # comes round. Nothing is called back after on_close anyway.
        self.protocol = NOBODY
        self._on_data = NOBODY.on_data

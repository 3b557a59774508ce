"""What moves the bytes of one connection: receive, hand over, send; a queue, and an end that comes once.

Theory of operation
-------------------
A stream is read at most once per pass of the loop. What its data handler returns is sent at once; what is written by
other ways is sent near the end of the pass (`flush`, called by the loop), in one piece. Only when the kernel does not
take all of it is a `SendQueue` made and the descriptor registered for writability. So the common exchange is one recv,
one call of the handler, one send, and an idle stream holds no buffer at all.

A receive that is large, or that took all it was allowed to, takes another path (`_take_turn`): it is handled piece by
piece until the turn is over, and the rest is held for the next pass (see `evloop.net.receiving`). While a
callback runs that may answer many messages, what is returned and what is written are collected in one list (`batch`),
so that they leave in one piece and in their order.

Its states are in `evloop.net.state`; `_teardown` is the only way to the last of them, and runs once. The descriptor
itself is closed by the loop at the end of the pass, so no number is used again while events of this pass that mention
it may still be waiting.

What it means to a protocol is told by `evloop.net.connection.Connection`, in the methods that are abstract here.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from evloop.core.poller import READ, WRITE, Handler
from evloop.errors import DISCONNECTED, RETRY, CallbackResultError
from evloop.limits import Limits
from evloop.log import WARNING
from evloop.net.buffers import NOTHING_MORE, SendQueue, as_bytes
from evloop.net.linger import Linger
from evloop.net.receiving import (
    FIRST_RECV_BYTES,
    MAX_PIECE_BYTES,
    MAX_TURN_REPLY_BYTES,
    TURN_S,
    larger_recv_bytes,
    piece_end,
    smaller_recv_bytes,
)
from evloop.net.sockets import reset_when_closed
from evloop.net.state import State

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from evloop.core.loop import Loop

# Looking up a member of an enum costs as much as a method call in Python 3.11, a global does not.
_OPEN = State.OPEN
_HALF_CLOSED = State.HALF_CLOSED
_LINGERING = State.LINGERING
_CLOSED = State.CLOSED

# Why a stream is not being read; may be combined.
PAUSED_BY_USER = 1
PAUSED_BY_HIGH_WATER = 2
PAUSED_BY_TURN = 4  # a rest of what was received is held, and the next turn is arranged for
PAUSED_BY_DRAIN = 8  # all has been read that is to be read


class Stream:
    """A connected stream socket, received from and sent to. Owns the socket and closes it.

    Attributes:
        loop: the loop it lives in.
        state: where it is in its life. Read it only.
        bytes_received, bytes_sent: totals so far.
        batch: None, or a list to which what is written is appended instead of being sent. For a callback that answers
            many messages: it puts a list here, puts back what was there, and returns what the list holds, joined.
    """

    __slots__ = (
        "_linger",
        "_on_data",
        "_pause",
        "_recv_bytes",
        "_rest",
        "_socket",
        "_unsent",
        "batch",
        "bytes_received",
        "bytes_sent",
        "limits",
        "loop",
        "state",
    )

    def __init__(self, loop: Loop, sock: socket.socket, limits: Limits) -> None:
        self.loop = loop
        self.limits = limits
        self.state = _OPEN
        self.bytes_received = 0
        self.bytes_sent = 0
        self.batch: list[bytes] | None = None
        self._socket = sock
        self._pause = 0
        self._recv_bytes = FIRST_RECV_BYTES
        # Received, and to be handed over in the next turn.
        self._rest = b""
        # Nothing (b""), one reply that waits for the end of the pass (bytes), or what the kernel did not take yet.
        self._unsent: bytes | SendQueue = b""
        self._linger: Linger | None = None
        self._on_data: Callable[[bytes], bytes | None]

    def _register(self, handler: Handler) -> None:
        """Watch the socket and call ``handler`` when it is readable: the first of the two steps of opening.

        Raises:
            OSError: the poller can't watch one more descriptor. The stream is closed then.
        """
        try:
            self.loop.poller.register(self._socket.fileno(), READ, handler)
        except OSError:
            self.state = _CLOSED
            self._socket.close()
            raise

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
        if size >= FIRST_RECV_BYTES and (size == self._recv_bytes or size > MAX_PIECE_BYTES):
            if size == self._recv_bytes:
                self._recv_bytes = larger_recv_bytes(size)
            self._take_turn(data)
            return
        try:
            reply = self._on_data(data)
        except Exception as error:
            self._callback_failed(error)
            return
        if reply:
            if self._unsent:
                self._enqueue_reply(self._on_data, reply)
                return
            try:
                sent = self._socket.send(reply)
            except OSError:
                sent = 0  # the flush at the end of the pass tries again, and deals with what is wrong
            except TypeError:
                self._callback_failed(CallbackResultError(self._on_data, reply))
                return
            self.bytes_sent += sent
            if sent != len(reply):
                self._enqueue(as_bytes(reply)[sent:])

    # ------------------------------------------------------------------ a turn of some length

    def _take_turn(self, data: bytes) -> None:
        """Hand over what was received piece by piece, until the turn is over; hold the rest for the next one."""
        size = len(data)
        message_end = self._message_end()
        end = size if message_end is None else piece_end(data, 0, message_end)
        try:
            if end == size:
                reply = self._on_data(data)
            else:
                assert message_end is not None
                reply, end = self._hand_over_pieces(data, end, message_end)
        except Exception as error:
            self._callback_failed(error)
            return
        if end < size and (self.state is _OPEN or self.state is _HALF_CLOSED):
            self._rest = data[end:]
            self._recv_bytes = smaller_recv_bytes(self._recv_bytes)
            self._go_on_if_not_paused()
            self._update_interest()
        if reply:
            self._enqueue_reply(self._on_data, reply)

    def _hand_over_pieces(self, data: bytes, end: int, message_end: bytes) -> tuple[bytes, int]:
        """Hand over pieces, of which the first one ends there, and return the replies and where the last one ended."""
        size = len(data)
        clock = self.loop.clock
        over_at = clock() + TURN_S
        most = MAX_TURN_REPLY_BYTES - len(self._unsent)
        replies: list[bytes] = []
        replied = start = 0
        try:
            while True:
                self.batch = batch = []
                reply = self._on_data(data[start:end])
                start = end
                if reply:
                    batch.append(as_bytes(reply, self._on_data))
                if batch:
                    written = b"".join(batch)
                    replied += len(written)
                    replies.append(written)
                if start == size or replied > most or self._pause or clock() > over_at:
                    break
                if self.state is not _OPEN and self.state is not _HALF_CLOSED:
                    break
                end = piece_end(data, start, message_end)
        finally:
            self.batch = None
        return b"".join(replies), start

    def _go_on_if_not_paused(self) -> None:
        """Arrange for the next turn, in which the rest that is held is handled."""
        if not self._pause:
            self._pause = PAUSED_BY_TURN
            self.loop.call_later(0, self._go_on)  # not call_soon, which may be in this pass

    def _go_on(self) -> None:
        self._pause &= ~PAUSED_BY_TURN
        if not self._rest or self._pause:
            return  # closed since, or paused: `_set_pause` arranges for it again
        data, self._rest = self._rest, b""
        self._take_turn(data)
        if not self._rest:
            self._update_interest()

    # ------------------------------------------------------------------ writing, off the hot path

    def _enqueue(self, data: bytes) -> None:
        """Send this after all that was written before, unless nothing can be sent any more.

        A queue keeps what it is given, so it must be bytes, which don't change.
        """
        unsent = self._unsent
        if unsent is NOTHING_MORE or not data:
            return
        if not unsent:
            self._unsent = data
            self.loop.pending_writes.append(self)
            return
        if isinstance(unsent, bytes):
            unsent = self._queue_of(unsent)
        before = len(unsent)
        unsent.append(data)
        self._queued(unsent, before)

    def _enqueue_reply(self, callback: Callable[..., object], reply: bytes) -> None:
        """Send what a callback returned, or end the stream if that can't be sent."""
        try:
            data = as_bytes(reply, callback)
        except CallbackResultError as error:
            self._callback_failed(error)
            return
        self._enqueue(data)

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
        self.bytes_sent += sent
        if sent == len(data):
            self._unsent = b""
        else:
            self._queued(self._queue_of(data[sent:]), len(data) - sent)
        self._sent()

    def _queue_of(self, data: bytes) -> SendQueue:
        self._unsent = queue = SendQueue()
        queue.append(data)
        return queue

    def _flush(self) -> None:
        """Send what the socket takes of the queue, and see what follows from how much is left."""
        if self.state is _CLOSED:
            return
        queue = self._unsent
        if isinstance(queue, SendQueue) and queue is not NOTHING_MORE:
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
        self._sent()

    # ------------------------------------------------------------------ interest

    @property
    def stalled(self) -> bool:
        """True when the kernel did not take all that was written: the peer reads slower than we write. Also between
        several writes in one pass and the end of that pass."""
        return type(self._unsent) is not bytes and self._unsent is not NOTHING_MORE

    def _set_pause(self, pause: int) -> None:
        if pause != self._pause:
            self._pause = pause
            if self._rest:
                self._go_on_if_not_paused()
            self._update_interest()

    def _update_interest(self) -> None:
        """Bring what the poller watches for in line with state, pauses and unsent bytes."""
        state = self.state
        if state is _CLOSED:
            return
        events = 0
        handler: Handler = self._handle_readable
        if self._linger is not None:
            events, handler = READ, self._linger.handle_readable
        elif not self._pause and (state is _OPEN or state is _HALF_CLOSED):
            events = READ
        if self.stalled:
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
        if not self._pause and (self.state is _OPEN or self.state is _HALF_CLOSED):
            self._handle_readable()

    # ------------------------------------------------------------------ the end

    def _end_output(self) -> None:
        """Say that nothing more will come, when all is sent. Replies are dropped from now on."""
        self._unsent = NOTHING_MORE
        self._socket.shutdown(socket.SHUT_WR)

    def _io_failed(self, error: OSError) -> None:
        if error.errno in RETRY:
            return
        if error.errno not in DISCONNECTED:
            self.loop.log_limited(WARNING, "%r lost: %s", self, error)
        self._teardown(error)

    def _teardown(self, error: Exception | None) -> None:
        """The only way to the CLOSED state. Safe to call twice."""
        if self.state is _CLOSED:
            return
        self.state = _CLOSED
        if len(self._unsent):
            # The peer must not take what it has got for all there was: it gets a reset, not an orderly end.
            reset_when_closed(self._socket)
        self._unsent = NOTHING_MORE
        self._rest = b""
        if self._linger is not None:
            self._linger.cancel()
            self.bytes_received += self._linger.dropped_bytes
        self.loop.poller.watch(self._socket.fileno(), 0, self._flush)
        self.loop.close_later(self._socket)
        self._over(error)
        self._gone(error)

    # ------------------------------------------------------------------ what follows from it, for the class above

    def _message_end(self) -> bytes | None:
        """What ends a message; None if what was received is always to be handed over whole."""
        raise NotImplementedError

    def _handle_eof(self) -> None:
        """The peer will send nothing more."""
        raise NotImplementedError

    def _callback_failed(self, error: Exception) -> None:
        """A callback raised, or returned what it must not return."""
        raise NotImplementedError

    def _queued(self, queue: SendQueue, before: int) -> None:
        """The queue has grown, from so many unsent bytes."""
        raise NotImplementedError

    def _sent(self) -> None:
        """The kernel has been offered what is unsent, and may have taken some or all of it."""
        raise NotImplementedError

    def _over(self, error: Exception | None) -> None:
        """Nothing more will be received, nor sent."""

    def _gone(self, error: Exception | None) -> None:
        """The descriptor is about to be closed."""

"""What moves the bytes of a TLS connection: open, hand over, seal; and its goodbyes.

Theory of operation
-------------------
OpenSSL does no I/O here. It sits between two buffers in memory (`ssl.MemoryBIO`): what the socket receives is put into
one, what it wants to send is taken from the other, and in between plaintext is read and written. Public names of the
standard library's `ssl` only. A ``SSLSocket`` would make a system call for each record; here all records of one receive
are one call of the protocol, and its reply is one record and one send.

* **Reading.** After one receive, all that OpenSSL can open is read from it, so nothing waits where no poller sees it.
  How much is received next follows from the plaintext that came out: a peer that sends much and says nothing
  (KeyUpdate, records of one byte) stays with small receives, but for the rest of a record that has begun. A buffer of
  OpenSSL's keeps the size it once had, so the most is a record.
* **Writing.** What is not sent at once waits in a `SealingQueue` and is sealed when its turn comes: many small writes
  become one record, and limits, water marks and time-outs see it as they see any queue.
* **The end.** Each side says goodbye in TLS (close_notify) before the end of the stream. A stream that ends without may
  have been cut by anybody, so that is an error and no `Protocol.on_eof`. Ours is sent before FIN; a peer that has said
  it may still be answered.

How such a connection is made, and what comes of what goes wrong, is told by the class built on it,
`evloop.net.tls.TLSConnection`.
"""

from __future__ import annotations

from collections.abc import Callable
from ssl import MemoryBIO, SSLError, SSLObject, SSLWantReadError, SSLZeroReturnError

from evloop.core.poller import READ, WRITE
from evloop.core.timers import Timer
from evloop.errors import RETRY, CallbackResultError, TLSError
from evloop.net.buffers import NOTHING_MORE
from evloop.net.connection import Connection
from evloop.net.receiving import FIRST_RECV_BYTES, MAX_PIECE_BYTES, larger_recv_bytes
from evloop.net.state import State
from evloop.net.tlsfailure import truncated
from evloop.net.tlsqueue import RECORD_BYTES, SealingQueue

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Any

    # What makes the TLS object between two buffers: what is received, and what is to be sent.
    Wrap = Callable[[MemoryBIO, MemoryBIO], SSLObject]

_OPEN = State.OPEN
_HALF_CLOSED = State.HALF_CLOSED
_FLUSHING = State.FLUSHING
_CLOSED = State.CLOSED

# Why a connection is not read, beside the reasons in `evloop.net.stream`: it is not made yet.
PAUSED_BY_HANDSHAKE = 16

# The most that is received at once: a record with all that it can have around it.
MAX_RECV_BYTES = 5 + RECORD_BYTES + 256
# How a record begins after the handshake; then comes its length, in two bytes.
_BEGINS = b"\x17\x03\x03"
_HEADER_BYTES = 5


class SealedConnection(Connection):
    """A `Connection` over a TLS object. Not to be made by itself: see `evloop.net.tls`.

    Args:
        connection: what a `Connection` is made from.
        wrap: makes the TLS object.
        handshake_timeout_s: how long the handshake may take.
    """

    __slots__ = (
        "_deadline",
        "_ended",
        "_incoming",
        "_missing",
        "_outgoing",
        "_put",
        "_read",
        "_said_goodbye",
        "_simple_below",
        "_take",
        "_tls",
        "_write",
    )

    def __init__(self, *connection: Any, wrap: Wrap, handshake_timeout_s: float) -> None:
        super().__init__(*connection)
        self._incoming, self._outgoing = MemoryBIO(), MemoryBIO()
        self._tls = tls = wrap(self._incoming, self._outgoing)
        # Methods that each message needs.
        self._put = self._incoming.write
        self._take = self._outgoing.read
        self._read: Callable[[int], bytes] = tls.read
        self._write: Callable[[bytes], int] = tls.write
        self._missing = 0  # after plaintext; else how much of a record may be missing, 1 at least
        self._receive_at_most(FIRST_RECV_BYTES)
        self._pause = PAUSED_BY_HANDSHAKE
        # While the handshake lasts.
        self._deadline: Timer | None = self.loop.call_later(handshake_timeout_s, self._handshake_timed_out)
        self._ended = False  # the peer has said goodbye
        self._said_goodbye = False  # we have

    # ------------------------------------------------------------------ the hot path: one recv, one feed, one send

    def _handle_readable(self) -> None:
        try:
            sealed = self._socket.recv(self._recv_bytes)
        except OSError as error:
            self._io_failed(error)
            return
        if not sealed:
            self._fail(truncated())
            return
        size = len(sealed)
        self.bytes_received += size
        put, read = self._put, self._read  # called as locals: a slot called as a method is looked up in the class first
        put(sealed)
        try:
            data = read(size)
        except SSLWantReadError:
            self._nothing_to_read(sealed)
            return
        except SSLZeroReturnError:
            data = b""
        except SSLError as error:
            self._tls_failed(error)
            return
        # A record is longer than what is in it. So if all that was asked for came, it began earlier, and more of it may
        # be left inside of OpenSSL.
        if 0 < len(data) < size < self._simple_below and not self._incoming.pending:
            self._hand_over(data)
        else:
            self._read_more(data, size)

    def _hand_over(self, data: bytes) -> None:
        on_data = self._on_data
        try:
            reply = on_data(data)
        except Exception as error:
            self._callback_failed(error)
            return
        if not reply:
            if self._outgoing.pending:
                self._push()
            return
        try:
            if self._unsent or len(reply) > RECORD_BYTES:
                self._enqueue_reply(on_data, reply)
                return
            write, take = self._write, self._take
            write(reply)
        except TypeError:
            self._callback_failed(CallbackResultError(on_data, reply))
            return
        except SSLError as error:
            self._tls_failed(error)
            return
        sealed = take()
        try:
            sent = self._socket.send(sealed)
        except OSError:
            sent = 0  # the flush at the end of the pass tries again, and deals with what is wrong
        self.bytes_sent += sent
        if sent != len(sealed):
            self._keep(sealed[sent:])

    # ------------------------------------------------------------------ reading, off the hot path

    def _read_records(self, parts: list[bytes]) -> bool:
        """Read all that can be read. Whether the peer has said goodbye after it.

        Raises:
            ssl.SSLError: what came is not right.
        """
        incoming, read = self._incoming, self._read
        try:
            if self._tls.pending():
                parts.append(read(RECORD_BYTES))
            # Python allocates all that is asked for. No more can be in the next record than is left of what came.
            while size := incoming.pending:
                data = read(size)
                if not data:
                    return True
                parts.append(data)
        except SSLWantReadError:
            return False
        except SSLZeroReturnError:
            return True
        return False

    def _read_more(self, data: bytes, size: int) -> None:
        """Go on after one read of what was received, which was of that size."""
        parts = [data]
        try:
            ended = not data or self._read_records(parts)
        except SSLError as error:
            self._tls_failed(error)
            return
        data = b"".join(parts)
        recv_bytes = self._recv_bytes
        if len(data) < size // 8:
            recv_bytes = FIRST_RECV_BYTES
        elif (size == recv_bytes or self._missing) and len(data) >= recv_bytes // 4:
            recv_bytes = larger_recv_bytes(max(recv_bytes, len(data)))
        if self._missing or recv_bytes != self._recv_bytes:
            self._missing = 0
            self._receive_at_most(recv_bytes)
        self._deliver(data, ended)

    def _nothing_to_read(self, sealed: bytes) -> None:
        """What was received is a part of a record, or is not meant for the protocol."""
        recv_bytes, missing = self._recv_bytes, self._missing
        if not missing and sealed.startswith(_BEGINS):
            recv_bytes = missing = _HEADER_BYTES + int.from_bytes(sealed[3:_HEADER_BYTES], "big")
        elif not missing:  # its length came in an earlier receive
            missing = recv_bytes + MAX_RECV_BYTES
        self._missing = missing = max(missing - len(sealed), 1)
        self._receive_at_most(max(min(recv_bytes, missing), FIRST_RECV_BYTES))
        self._push()

    def _receive_at_most(self, recv_bytes: int) -> None:
        self._recv_bytes = min(recv_bytes, MAX_RECV_BYTES)
        # A receive of fewer bytes than this needs no second look: it was not filled, it is no more than a piece, and it
        # does not go on with a record.
        self._simple_below = 0 if self._missing else min(self._recv_bytes, MAX_PIECE_BYTES + 1)

    def _take_turn(self, data: bytes) -> None:
        super()._take_turn(data)
        self._receive_at_most(self._recv_bytes)  # it may be less now

    def _deliver(self, data: bytes, ended: bool) -> None:
        if data and (self.state is _OPEN or self.state is _HALF_CLOSED):
            if self._pause:
                self._rest = data
            elif len(data) > MAX_PIECE_BYTES:
                self._take_turn(data)
            else:
                self._hand_over(data)
        self._push()
        if ended:
            self._ended = True
            self._tell_end()
            self._update_interest()

    def _tell_end(self) -> None:
        """Tell the protocol that the peer has said goodbye, unless something that came before waits for its turn."""
        if (
            self._ended
            and not (self._peer_ended or self._pause or self._rest)
            and (self.state is _OPEN or self.state is _HALF_CLOSED)
        ):
            self._handle_eof()

    # ------------------------------------------------------------------ writing, off the hot path

    def _enqueue_reply(self, callback: Callable[..., object], reply: bytes) -> None:
        if not self._said_goodbye:  # else it is dropped, also while the goodbye itself waits to be sent
            super()._enqueue_reply(callback, reply)

    def _queue_of(self, data: bytes) -> SealingQueue:
        self._unsent = queue = SealingQueue(self._write, self._take)
        queue.append(data)
        return queue

    def _keep(self, sealed: bytes) -> None:
        """This was not sent, and goes before all that is written from now on."""
        queue = self._queue_of(b"")
        queue.append_sealed(sealed)
        self.loop.pending_writes.append(self)
        self._queued(queue, 0)

    def _push(self) -> None:
        """Send what OpenSSL itself has to say."""
        unsent = self._unsent
        if not self._outgoing.pending or unsent is NOTHING_MORE:
            return
        if isinstance(unsent, SealingQueue):
            before = len(unsent)
            unsent.append_sealed(self._take())
            self._queued(unsent, before)
        elif unsent and self._deadline is None:
            pass  # leaves with it at the end of this pass
        else:
            sealed = self._take()
            try:
                sent = self._socket.send(sealed)
            except OSError:
                sent = 0
            self.bytes_sent += sent
            if sent != len(sealed):
                assert isinstance(unsent, bytes)
                self._keep(sealed[sent:])
                if isinstance(self._unsent, SealingQueue):
                    self._unsent.append(unsent)

    def flush(self) -> None:
        unsent = self._unsent
        if type(unsent) is bytes and unsent:
            if self._deadline is not None:
                return  # not before the handshake is done
            self._queue_of(unsent)
        self._flush()

    def _flush(self) -> None:
        queue = self._unsent
        if isinstance(queue, SealingQueue) and self._deadline is None:
            try:
                queue.seal()
            except SSLError as error:
                self._tls_failed(error)
                return
        super()._flush()

    def _sent(self) -> None:
        if self._deadline is not None and len(self._unsent):
            self._update_interest()
        else:
            super()._sent()

    def _update_interest(self) -> None:
        in_handshake = self._deadline is not None
        reading = self.state is _OPEN or self.state is _HALF_CLOSED
        if self.state is _CLOSED or not (in_handshake or (self._ended and reading)):
            super()._update_interest()
            return
        events = READ if in_handshake else 0
        queue = self._unsent
        if isinstance(queue, SealingQueue) and (queue.sealed_bytes or not in_handshake):
            events |= WRITE
        try:
            self.loop.poller.watch(self._socket.fileno(), events, self._handle_special)
        except OSError as error:
            self._io_failed(error)
            return
        if self._ended and not (self._pause or self._rest):
            self.loop.call_later(0, self._tell_end)

    def _handle_special(self) -> None:
        """In the handshake, or after the peer's goodbye."""
        if isinstance(self._unsent, SealingQueue):
            self._flush()
        if self._deadline is not None:
            self._handle_handshake()

    # ------------------------------------------------------------------ the end

    def _finish(self) -> None:
        if self._deadline is not None:
            self._teardown(None)  # closed before it was made
            return
        if not self._said_goodbye:
            self.state = _FLUSHING
            self._say_goodbye()
            if self._unsent:
                self._update_interest()  # comes back when it is sent
                return
        super()._finish()

    def _end_output(self) -> None:
        if self._deadline is not None:
            return  # comes back when there is a connection
        if not self._said_goodbye:
            self._say_goodbye()
            if self._unsent:
                return
        super()._end_output()

    def _say_goodbye(self) -> None:
        self._said_goodbye = True
        try:
            self._tls.unwrap()
        except SSLError:
            pass  # it wants the peer's, too, for which nobody waits here; ours is ready to be sent
        sealed = self._take()
        try:
            sent = self._socket.send(sealed)
        except OSError as error:
            if error.errno not in RETRY:
                return  # who is gone misses nothing: all that was said to it has been given to the kernel
            sent = 0
        self.bytes_sent += sent
        if sent != len(sealed):
            self._keep(sealed[sent:])

    # ------------------------------------------------------------------ what follows from it, for the class above

    def _handle_handshake(self) -> None:
        """The socket is readable in the handshake."""
        raise NotImplementedError

    def _handshake_timed_out(self) -> None:
        """The handshake takes too long."""
        raise NotImplementedError

    def _tls_failed(self, error: SSLError) -> None:
        """OpenSSL is not content."""
        raise NotImplementedError

    def _fail(self, failure: TLSError, alert: bytes = b"") -> None:
        """End it because of this; tell the peer, if it can be told."""
        raise NotImplementedError

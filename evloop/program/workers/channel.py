"""The control channel: messages and descriptors between two processes, through a pair of Unix sockets.

Theory of operation
-------------------
The pair is a pair of streams. Packets (SOCK_SEQPACKET) would keep messages apart by themselves, but not every system
has them, and they can't be longer than the socket's buffer, which the state of a connection can. So each message says
how long it is (`evloop.program.workers.messages`).

Descriptors belong to the first byte of their message. The receiver reads a message's header by itself, so what comes
along with that belongs to this message and to no other. A process without a free descriptor would lose what comes: the
kernel drops it, without a word. So while there is none, nothing is read.

`Channel.send` never blocks. What the kernel does not take waits here, and descriptors wait as duplicates, so the caller
may close its own at once. Those of a message that is forwarded wait themselves: there may be none left to make a
duplicate. Not too many of them shall wait, so who forwards from one channel to another one does not read the first
while the second is behind (`Channel.rest_while`).

The kernel lets a user have about as many descriptors on their way as a process of his may have open. Beyond that it
takes no more until some have been received, though the socket counts as writable; so they are offered again after a
while.

Who has died may have said something before: at its end a channel is read until nothing more comes. Only then is its end
told.
"""

from __future__ import annotations

import array
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence

from evloop.core.loop import Loop
from evloop.core.poller import READ, WRITE
from evloop.core.timers import Timer
from evloop.errors import EXHAUSTED, RETRY
from evloop.program.workers.messages import HEADER_BYTES, MAX_DESCRIPTORS, Message, body_size, decode, encode

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Any

# Messages that are handled before others get their turn.
_MESSAGES_PER_PASS = 64

# How long reading rests while the process has no descriptor left.
_EXHAUSTED_PAUSE_S = 0.1

# When to offer again what the kernel has no means to pass on now.
_SEND_AGAIN_S = 0.01

# With more unsent messages than this, who reads the other end is behind.
_BEHIND = 32
# How often it is looked whether it still is.
_LOOK_AGAIN_S = 0.005

_DESCRIPTOR_BYTES = array.array("i").itemsize


def channel_pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a channel, as sockets."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


class Channel:
    """One end, in a loop. Owns the socket.

    Args:
        on_message: called with each message; owns its descriptors. What it raises is logged.
        on_end: called once when the other end is closed and everything that it has sent was handled; not after `close`.

    Attributes:
        unsent_bytes: what the kernel has not taken yet.
    """

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        on_message: Callable[[Message], object],
        on_end: Callable[[], object],
    ) -> None:
        sock.setblocking(False)
        self.unsent_bytes = 0
        self._loop = loop
        self._socket = sock
        self._reader = MessageReader(sock)
        self._on_message = on_message
        self._on_end = on_end
        self._unsent: deque[tuple[memoryview, list[int]]] = deque()
        self._pause: Timer | None = None  # of reading
        self._again: Timer | None = None  # offers again what the kernel could not pass on
        self._closed = self._ended = False
        loop.poller.register(sock.fileno(), READ, self._handle)

    # ------------------------------------------------------------------ sending

    def send(self, kind: str, payload: bytes = b"", descriptors: Sequence[int] = (), **fields: Any) -> None:
        """Send a message. If nobody is there to receive it, nothing happens.

        Args:
            kind, fields, payload: as in `Message`.
            descriptors: they are passed on; the caller still owns its own, and may close them.

        Raises:
            OSError: they would have to wait, and there are none left to keep them. Nothing is sent then.
        """
        data = encode(kind, fields, payload, len(descriptors))
        rest = self._send_now(data, descriptors)
        if rest:
            self._keep(rest, _duplicates(descriptors) if len(rest) == len(data) else [])

    def forward(self, message: Message) -> None:
        """Send a message that has come from elsewhere, with its descriptors, which are closed when they are sent."""
        descriptors, message.descriptors = message.descriptors, []
        data = encode(message.kind, message.fields, message.payload, len(descriptors))
        rest = self._send_now(data, descriptors)
        if len(rest) < len(data):
            _close_all(descriptors)
        if rest:
            self._keep(rest, descriptors)

    @property
    def behind(self) -> bool:
        """Whether so much is unsent that whoever brings more should wait."""
        return len(self._unsent) > _BEHIND

    def flush(self) -> bool:
        """Offer the kernel once more what it has not taken. Whether it has taken some now."""
        before = self.unsent_bytes
        self._flush()
        return self.unsent_bytes < before

    def _send_now(self, data: bytes, descriptors: Sequence[int]) -> memoryview:
        """Send what the kernel takes, if nothing waits. What is left; the descriptors are sent unless it is all."""
        view = memoryview(data)
        if self._closed or self._ended:
            return view[len(data) :]
        return view if self._unsent else view[self._send_some(view, descriptors) :]

    def _keep(self, data: memoryview, descriptors: list[int]) -> None:
        self._unsent.append((data, descriptors))
        self.unsent_bytes += len(data)
        self._watch()

    def _send_some(self, data: memoryview, descriptors: Sequence[int]) -> int:
        """How much of it need not be sent any more: what the kernel has taken; all if nobody is there."""
        try:
            if descriptors:
                return socket.send_fds(self._socket, [data], list(descriptors))
            return self._socket.send(data)
        except OSError as error:
            if error.errno in EXHAUSTED:
                self._again = self._again or self._loop.call_later(_SEND_AGAIN_S, self._offer_again)
            elif error.errno not in RETRY:
                self._forget_unsent()  # gone; what it has said before is still read
                return len(data)
            return 0

    def _flush(self) -> None:
        while self._unsent:
            data, descriptors = self._unsent[0]
            sent = self._send_some(data, descriptors)
            if not sent or not self._unsent:
                break
            self.unsent_bytes -= sent
            _close_all(descriptors)
            if sent < len(data):
                self._unsent[0] = data[sent:], []
                break
            self._unsent.popleft()
        if not self._closed and not self._ended:
            self._watch()

    def _offer_again(self) -> None:
        self._again = None
        self._flush()

    def _forget_unsent(self) -> None:
        for _, descriptors in self._unsent:
            _close_all(descriptors)
        self._unsent.clear()
        self.unsent_bytes = 0

    # ------------------------------------------------------------------ receiving

    def _handle(self) -> None:
        if self._unsent and self._again is None:
            self._flush()
        for _ in range(_MESSAGES_PER_PASS):
            if self._pause is not None or not self._receive_one():
                return

    def receive_all(self) -> None:
        """Handle now whatever has come: for the end of a process, which may have said something before it died."""
        while self._receive_one():
            pass

    def rest_while(self, is_behind: Callable[[], bool]) -> None:
        """Read nothing as long as this is so: where it goes to can't take it now. `receive_all` does not wait."""
        if is_behind() and not self._closed and not self._ended:
            self._rest(_LOOK_AGAIN_S, is_behind)

    @property
    def rests(self) -> bool:
        """What has come may not have been read: for want of a descriptor, or by `rest_while`."""
        return self._pause is not None

    def _receive_one(self) -> bool:
        """Handle a message. False when there was none left."""
        if self._closed or self._ended:
            return False
        if not self._has_room():
            self._rest(_EXHAUSTED_PAUSE_S)
            return False
        try:
            message = self._reader.read()
        except BlockingIOError:
            return False
        except OSError:
            message = None
        except Exception as error:
            self._loop.log_exception(error, "what another process of this service said makes no sense")
            message = None
        if message is None:
            self._end()
            return False
        try:
            self._on_message(message)
        except Exception as error:
            self._loop.log_exception(error, "handling the message %r raised", message.kind)
        return True

    def _has_room(self) -> bool:
        """Whether a descriptor that comes could be taken."""
        try:
            os.close(os.dup(self._socket.fileno()))
        except OSError:
            return False
        return True

    def _rest(self, seconds: float, is_behind: Callable[[], bool] = lambda: False) -> None:
        if self._pause is None:
            self._pause = self._loop.call_later(seconds, self._go_on, seconds, is_behind)
            self._watch()

    def _go_on(self, seconds: float, is_behind: Callable[[], bool]) -> None:
        self._pause = None
        if self._closed or self._ended:
            return
        if is_behind():
            self._rest(seconds, is_behind)
        else:
            self._watch()

    def _watch(self) -> None:
        events = (0 if self._pause is not None else READ) | (WRITE if self._unsent and self._again is None else 0)
        self._loop.poller.watch(self._socket.fileno(), events, self._handle)

    def _end(self) -> None:
        self._ended = True
        self._stop_watching()
        self._forget_unsent()
        try:
            self._on_end()
        except Exception as error:
            self._loop.log_exception(error, "what was to be called at the end of a channel raised")

    def _stop_watching(self) -> None:
        for timer in (self._pause, self._again):
            if timer is not None:
                timer.cancel()
        self._pause = self._again = None
        self._loop.poller.watch(self._socket.fileno(), 0, self._handle)

    def close(self) -> None:
        """Close it. What is unsent is lost. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._forget_unsent()
        if not self._ended:
            self._stop_watching()
        self._socket.close()
        self._reader.close()


class MessageReader:
    """Messages from a socket, with or without waiting, as the socket is.

    Args:
        sock: not owned.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._header = b""
        self._body = bytearray()
        self._descriptors: list[int] = []

    def read(self) -> Message | None:
        """The next message; None at the end.

        Raises:
            BlockingIOError: there is none yet.
            OSError, MessageError: it can't be read.
        """
        while len(self._header) < HEADER_BYTES:
            data, descriptors = _receive_with_descriptors(self._socket, HEADER_BYTES - len(self._header))
            self._descriptors += descriptors
            if not data:
                return None
            self._header += data
        missing = body_size(self._header) - len(self._body)
        while missing:
            data = self._socket.recv(min(missing, 1 << 20))
            if not data:
                return None
            self._body += data
            missing -= len(data)
        message = decode(self._header, bytes(self._body), self._descriptors)
        self._header, self._body, self._descriptors = b"", bytearray(), []
        return message

    def close(self) -> None:
        """Close descriptors of a message that has not come to its end."""
        _close_all(self._descriptors)


def _receive_with_descriptors(sock: socket.socket, size: int) -> tuple[bytes, list[int]]:
    """At most so many bytes, and the descriptors that came with them; not inherited by programs started from here."""
    data, ancillary, _, _ = sock.recvmsg(size, socket.CMSG_SPACE(MAX_DESCRIPTORS * _DESCRIPTOR_BYTES))
    found = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(content[: len(content) - len(content) % _DESCRIPTOR_BYTES])
    for descriptor in found:
        os.set_inheritable(descriptor, False)
    return data, list(found)


def _duplicates(descriptors: Sequence[int]) -> list[int]:
    """Others for the same.

    Raises:
        OSError: there can't be so many.
    """
    found: list[int] = []
    try:
        for descriptor in descriptors:
            found.append(os.dup(descriptor))
    except OSError:
        _close_all(found)
        raise
    return found


def _close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
    descriptors.clear()

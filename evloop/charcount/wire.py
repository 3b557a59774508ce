"""The client's end of a connection: both directions at the same time, and time-outs.

Theory of operation
-------------------
A client that writes all its messages and then reads all the replies works in every test and hangs in real life: once
the buffers of both kernels are full of replies nobody reads, the server stops reading, and the client's send never
returns. So `Wire` never waits for one direction only: while it has something to send it also takes what comes in.

A server is not trusted. `ReplyLines` knows how many messages still have to be answered. A reply that is too many is an
error; it is not taken for the answer to the next message, and it does not fill memory.

Before a time-out is declared, what has arrived is looked at. A process can be stopped, by a debugger, a container, a
closed lid, for longer than any time-out; then `Deadline` finds that its time has passed, although the answer came long
ago.
"""

from __future__ import annotations

import selectors
import socket
import time

from evloop.errors import EvloopError

_RECV_BYTES = 65536
# A reply is a few bytes; with a template of the server's it may be longer, but not for ever. Not less than what is
# received at once.
_MAX_REPLY_BYTES = 65536
# Of a reply that nobody asked for, so much is shown.
_SHOWN_BYTES = 60
# A wait that took so much longer than asked says that the process was stopped meanwhile.
OVERRUN_S = 0.1
# And then this is how long the server gets, at most, since it may have been stopped, too.
GRACE_S = 1.0


class ReplyTooLongError(EvloopError):
    """The server sent so much without a line end that it can't be a reply. What follows can't be understood."""


class UnexpectedReplyError(EvloopError):
    """The server sent a reply that no message asked for. Which reply answers which message is unknown from then on.

    Args:
        hint: what the reason may be, to be added to the text.

    Attributes:
        reply: the first such reply, or as much of it as has come.
    """

    def __init__(self, reply: bytes, hint: str = "") -> None:
        shown = reply[:_SHOWN_BYTES].decode("utf-8", "replace")
        more = " ..." if len(reply) > _SHOWN_BYTES else ""
        super().__init__(f"the server sent a reply that no message asked for: {shown!r}{more}{hint}")
        self.reply = reply


class ConnectionLostError(EvloopError):
    """The connection ended before all messages were answered."""


class ClientTimeoutError(EvloopError, TimeoutError):
    """The server did not answer in time."""


# ---------------------------------------------------------------------- time


class Deadline:
    """Until when the server has time for what is its turn to do. Not running at first.

    Args:
        timeout_s: how long it has, each time.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._ends: float | None = None

    def start(self) -> None:
        """It is the server's turn, unless it is already."""
        if self._ends is None:
            self.restart()

    def restart(self) -> None:
        """The server did what it had to do, and has to do something else now."""
        self._ends = time.monotonic() + self._timeout_s

    def stop(self) -> None:
        """The server has nothing to do."""
        self._ends = None

    def select(self, selector: selectors.BaseSelector) -> tuple[list[tuple[selectors.SelectorKey, int]], bool]:
        """Wait until something is ready or the time is over.

        Returns:
            what is ready, and whether the time was over before that was looked at.
        """
        if self._ends is None:
            return selector.select(), False
        began = time.monotonic()
        wait_s = max(self._ends - began, 0)
        ready = selector.select(wait_s)
        if not ready and time.monotonic() - began > wait_s + OVERRUN_S:
            ready = selector.select(min(self._timeout_s, GRACE_S))
        return ready, not ready or wait_s == 0

    def error(self) -> ClientTimeoutError:
        """That it is over."""
        return ClientTimeoutError(f"no answer from the server in {self._timeout_s:g} s; see --timeout")


# ---------------------------------------------------------------------- bytes


class Wire:
    """Both directions of one socket at once. Owns the socket.

    Args:
        sock: a connected socket.

    Attributes:
        broken: nothing can be sent any more; there may still be something to read.
        closed: `close` was called.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._selector = selectors.DefaultSelector()
        self._selector.register(sock, selectors.EVENT_READ)
        self.broken = False
        self.closed = False

    def exchange(self, data: bytes | memoryview, deadline: Deadline) -> tuple[int, bytes]:
        """Wait until some of ``data`` has left or something has come; with no data, until something has come.

        Returns:
            how many bytes of ``data`` have left, and what has come; with neither, the server has ended the stream.

        Raises:
            ClientTimeoutError: neither happened in time.
            ConnectionLostError: the wire is closed.
        """
        self.check_open()
        while True:
            # Nearly always the socket can be written at once, so try before asking.
            sent = self.send(data) if data else 0
            if sent:
                return sent, b""
            writing = selectors.EVENT_WRITE if data and not self.broken else 0
            self._selector.modify(self._socket, selectors.EVENT_READ | writing)
            ready, _ = deadline.select(self._selector)
            if not ready:
                raise deadline.error()
            if ready[0][1] & selectors.EVENT_READ:
                received = self.receive()
                if received is not None:
                    return 0, received

    def check_open(self) -> None:
        """Raise `ConnectionLostError` if the wire is closed."""
        if self.closed:
            raise ConnectionLostError("the connection is closed: by close(), or after an error or an interrupt")

    def send(self, data: bytes | memoryview) -> int:
        """Send what the socket takes now, and return how much that was."""
        try:
            return 0 if self.broken else self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            # The server may have said why before it hung up: what it sent is still to be read.
            self.broken = True
            return 0

    def receive(self) -> bytes | None:
        """What has come by now: None for nothing, empty at the end of the stream, also if the server has reset it."""
        try:
            return self._socket.recv(_RECV_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def fileno(self) -> int:
        """The socket's descriptor, to wait for it together with others."""
        return self._socket.fileno()

    def end(self) -> None:
        """Say that nothing more will be sent."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # reset; the next read says so

    def close(self) -> None:
        """Close the socket. Safe to call twice."""
        self.closed = True
        self._selector.close()
        self._socket.close()


class ReplyLines:
    """Cuts what comes from the server into reply lines, as many as there are messages; no I/O.

    Holds the beginning of the next line, of bounded length.

    Attributes:
        due: messages that have left and are not answered.
        answered: messages that are.
        unfinished: what has come of the next line.
    """

    def __init__(self) -> None:
        self.due = 0
        self.answered = 0
        self.unfinished = b""

    def ask(self, messages: int) -> None:
        """So many more messages have left, with their ends."""
        self.due += messages

    def feed(self, received: bytes) -> bytes:
        """The whole lines that end in what was received, with their LFs.

        Raises:
            ReplyTooLongError: a line is longer than a reply can be, ended or not.
            UnexpectedReplyError: there is more than answers to the messages that are due.
        """
        # Only the first line can be too long: the others began and ended in what was received at once.
        end = received.find(b"\n")
        if len(self.unfinished) + (len(received) if end < 0 else end) > _MAX_REPLY_BYTES:
            raise ReplyTooLongError(
                f"the server sent more than {_MAX_REPLY_BYTES} bytes without a line end: "
                "is that a charcount-server in line framing?"
            )
        whole, newline, rest = (self.unfinished + received).rpartition(b"\n")
        lines = whole + newline
        count = lines.count(b"\n")
        if count + bool(rest) > self.due:
            raise UnexpectedReplyError((lines + rest).split(b"\n", self.due + 1)[self.due].removesuffix(b"\r"))
        self.due -= count
        self.answered += count
        self.unfinished = rest
        return lines

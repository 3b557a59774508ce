"""A stream of lines to the server and the replies back, at the speed of the slowest of the four ends.

Theory of operation
-------------------
The bytes of a file of lines are the wire format already. So blocks are passed on as they come, and no line is ever
looked at; line ends are counted, to know how many replies are due.

At any time there is one block under way: the source is read again when the last one has left. What holds up the output
holds up everything, and no more than a block, a reply of bounded length and the kernel's buffers is ever in memory.

Waiting is limited only while the server has something to do: answer, take what we send, or close. The source may
be silent for as long as it likes.
"""

from __future__ import annotations

import os
import selectors
import time
from collections.abc import Callable

from evloop.charcount.client import ClientTimeoutError, ConnectionLostError, ReplyLines, Wire
from evloop.errors import EvloopError

_BLOCK_BYTES = 65536


class InputError(EvloopError):
    """The source, stdin, can't be read. The text says why."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"cannot read stdin: {error.strerror or error}")


class Pump:
    """Sends what comes from a descriptor, and hands over replies as they come, until both have ended.

    Args:
        wire: to the server, in line framing. Not owned.
        source: the descriptor to read: of a pipe, a file, a device. Not owned.
        on_replies: called with whole reply lines and the number of the message that the first of them answers, from 1.
        timeout_s: the longest wait for the server.
    """

    def __init__(self, wire: Wire, source: int, on_replies: Callable[[bytes, int], None], timeout_s: float) -> None:
        self._wire = wire
        self._source = source
        self._on_replies = on_replies
        self._timeout_s = timeout_s
        # poll, not epoll: epoll can't wait for a regular file.
        self._selector = getattr(selectors, "PollSelector", selectors.SelectSelector)()
        self._unsent = memoryview(b"")
        self._sent = 0  # messages, counted when they are read
        self._answered = 0
        self._in_line = False  # what was read last does not end in LF
        self._reply_lines = ReplyLines()
        self._source_ended = False
        self._server_ended = False
        self._waiting_since: float | None = None

    def run(self) -> None:
        """Do it all.

        Raises:
            ConnectionLostError: the server closed the connection before it had all and answered all.
            ClientTimeoutError: it did nothing for ``timeout_s``, though it was its turn.
            ReplyTooLongError: it sent a line that is longer than a reply can be.
            InputError: the source can't be read.
        """
        try:
            while not self._server_ended:
                self._run_pass()
        finally:
            self._selector.close()
        if self._reply_lines.unfinished:
            self._on_replies(self._reply_lines.unfinished + b"\n", self._answered + 1)
        if not self._source_ended or self._unsent or self._answered < self._sent:
            raise ConnectionLostError(f"the server closed the connection; messages answered: {self._answered}")

    def _run_pass(self) -> None:
        was_stuck = bool(self._unsent)
        self._watch(self._source, 0 if was_stuck or self._source_ended else selectors.EVENT_READ)
        writing = selectors.EVENT_WRITE if was_stuck and not self._wire.broken else 0
        self._watch(self._wire.fileno(), selectors.EVENT_READ | writing)
        ready = {key.fd: events for key, events in self._selector.select(self._wait_s())}

        moved = ready.get(self._wire.fileno(), 0) & selectors.EVENT_READ != 0 and self._receive()
        if self._source in ready:
            self._read()
        if self._unsent:
            sent = self._wire.send(self._unsent)
            self._unsent = self._unsent[sent:]
            # That the kernel takes bytes says nothing about the server, unless it had no room before.
            moved = moved or (was_stuck and sent > 0)
        self._keep_time(moved)

    def _watch(self, fd: int, events: int) -> None:
        key = self._selector.get_map().get(fd)
        if key is None:
            if events:
                self._selector.register(fd, events)
        elif not events:
            self._selector.unregister(fd)
        elif events != key.events:
            self._selector.modify(fd, events)

    def _receive(self) -> bool:
        """Take what has come from the server. False if that was nothing."""
        received = self._wire.receive()
        if received is None:
            return False
        if not received:
            self._server_ended = True
        lines = self._reply_lines.feed(received)
        if lines:
            first = self._answered + 1
            self._answered += lines.count(b"\n")
            self._on_replies(lines, first)
        return True

    def _read(self) -> None:
        try:
            block = os.read(self._source, _BLOCK_BYTES)
        except BlockingIOError:  # another process shares the source and was faster
            return
        except OSError as error:
            raise InputError(error) from None
        if block:
            self._unsent = memoryview(block)
            self._sent += block.count(b"\n")
            self._in_line = not block.endswith(b"\n")
        else:
            self._source_ended = True
            self._sent += self._in_line
            self._wire.end()

    def _wait_s(self) -> float | None:
        if self._waiting_since is None:
            return None
        return max(self._waiting_since + self._timeout_s - time.monotonic(), 0)

    def _keep_time(self, moved: bool) -> None:
        """After a pass in which the server has moved or not."""
        if not self._source_ended and not self._unsent and self._answered >= self._sent:
            self._waiting_since = None
            return
        now = time.monotonic()
        if moved or self._waiting_since is None:
            self._waiting_since = now
        elif now - self._waiting_since >= self._timeout_s:
            raise ClientTimeoutError(f"no answer from the server in {self._timeout_s:g} s; see --timeout")

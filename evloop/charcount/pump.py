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
from collections.abc import Callable

from evloop.charcount.wire import ConnectionLostError, Deadline, ReplyLines, Wire
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
        self._deadline = Deadline(timeout_s)
        # poll, not epoll: epoll can't wait for a regular file.
        self._selector = getattr(selectors, "PollSelector", selectors.SelectSelector)()
        self._block = b""
        self._unsent = memoryview(b"")  # of the block
        self._in_line = False  # what was read last does not end in LF
        self._reply_lines = ReplyLines()
        self._source_ended = False
        self._server_ended = False

    def run(self) -> None:
        """Do it all.

        Raises:
            ConnectionLostError: the server closed the connection before it had all and answered all.
            ClientTimeoutError: it neither answered a message nor took more of them for ``timeout_s``, though it was its
                turn.
            ReplyTooLongError: it sent a line that is longer than a reply can be.
            UnexpectedReplyError: it sent a line that answers no message.
            InputError: the source can't be read.
        """
        try:
            while not self._server_ended:
                self._run_pass()
        finally:
            self._selector.close()
        answered = f"messages answered: {self._reply_lines.answered}"
        if self._reply_lines.unfinished:
            # Not handed over: half a number is another number.
            raise ConnectionLostError(f"the server closed the connection in the middle of a reply; {answered}")
        if not self._source_ended or self._unsent or self._reply_lines.due:
            raise ConnectionLostError(f"the server closed the connection; {answered}")

    def _run_pass(self) -> None:
        was_stuck = bool(self._unsent)
        self._watch(self._source, 0 if was_stuck or self._source_ended else selectors.EVENT_READ)
        writing = selectors.EVENT_WRITE if was_stuck and not self._wire.broken else 0
        self._watch(self._wire.fileno(), selectors.EVENT_READ | writing)
        found, time_over = self._deadline.select(self._selector)
        ready = {key.fd: events for key, events in found}

        moved = ready.get(self._wire.fileno(), 0) & selectors.EVENT_READ != 0 and self._receive()
        if self._source in ready:
            self._read()
        if self._unsent:
            sent = self._send()
            # That the kernel takes bytes says nothing about the server, unless it had no room before.
            moved = moved or (was_stuck and sent > 0)
        self._keep_time(moved, time_over)

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
        """Take what has come from the server. False if that was no whole reply: the wait is for a whole one."""
        received = self._wire.receive()
        if received is None:
            return False
        if not received:
            self._server_ended = True
            return True
        first = self._reply_lines.answered + 1
        lines = self._reply_lines.feed(received)
        if lines:
            self._on_replies(lines, first)
        return lines != b""

    def _read(self) -> None:
        try:
            block = os.read(self._source, _BLOCK_BYTES)
        except BlockingIOError:  # another process shares the source and was faster
            return
        except OSError as error:
            raise InputError(error) from None
        if block:
            self._block = block
            self._unsent = memoryview(block)
            self._in_line = not block.endswith(b"\n")
        else:
            self._source_ended = True
            self._reply_lines.ask(self._in_line)
            self._wire.end()

    def _send(self) -> int:
        sent = self._wire.send(self._unsent)
        begin = len(self._block) - len(self._unsent)
        self._reply_lines.ask(self._block.count(b"\n", begin, begin + sent))
        self._unsent = self._unsent[sent:]
        return sent

    def _keep_time(self, moved: bool, time_over: bool) -> None:
        """After a pass.

        Args:
            moved: the server did something.
            time_over: its time had passed before it was looked at.
        """
        if not self._source_ended and not self._unsent and not self._reply_lines.due:
            self._deadline.stop()
        elif moved:
            self._deadline.restart()
        elif time_over:
            raise self._deadline.error()
        else:
            self._deadline.start()

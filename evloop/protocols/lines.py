"""A protocol whose messages are lines."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

from evloop.net.buffers import as_bytes
from evloop.net.protocol import Protocol
from evloop.net.state import State
from evloop.protocols.lineframer import LineFramer

_OPEN = State.OPEN


class LineProtocol(Protocol):
    """A protocol whose messages are lines.

    Attributes:
        max_line_bytes: the longest line accepted, without its terminator. 64 KiB, as an unfinished line is held in
            memory, for each connection. Longer ones are counted as ``max-line`` in the server's statistics.
    """

    __slots__ = ("_framer", "_lines")

    message_end = b"\n"
    max_line_bytes = 65536
    _framer: LineFramer
    _lines: int

    def __getattr__(self, name: str) -> object:
        # Made when they are first asked for, and not in __init__, which subclasses have and forget to call.
        if name == "_framer":
            self._framer = LineFramer(self.max_line_bytes)
            return self._framer
        if name == "_lines":
            self._lines = 0
            return 0
        return super().__getattr__(name)

    def on_line(self, line: bytes) -> bytes | None:
        """A line has arrived, without its LF or CR LF."""
        return None

    def on_lines(self, lines: list[bytes]) -> bytes | None:
        """Whole lines, in order: all of a received chunk, or of a piece of it. Override it instead of `on_line` for
        speed.

        The default calls `on_line` for each, until one of them closes the connection.
        """
        connection = self.connection
        on_line = self.on_line
        outer = connection.batch
        connection.batch = replies = []  # what on_line writes is to stand among what it returns
        try:
            for line in lines:
                reply = on_line(line)
                if reply:
                    replies.append(reply)
                if connection.state is not _OPEN and connection.closing:
                    break
        finally:
            connection.batch = outer
        try:
            return b"".join(replies)
        except TypeError:  # one of them is no bytes: say which
            return b"".join([as_bytes(reply, on_line) for reply in replies])

    def on_overlong_line(self) -> bytes | None:
        """A line of more than `max_line_bytes` has been dropped, in its place among the others."""
        return None

    def on_data(self, data: bytes) -> bytes | None:
        return self._deliver(self._framer.feed(data))

    def on_eof(self) -> bytes | None:
        """Delivers an unterminated last line. Call it if you override it."""
        return self._deliver(self._framer.finish())

    def held_bytes(self) -> int:
        return self._framer.held_bytes

    def message_in_progress(self) -> int | None:
        return self._lines if self._framer.in_line else None

    def dump_framing(self) -> bytes | None:
        return self._framer.dump()

    def restore_framing(self, state: bytes) -> None:
        self._framer.feed(state)

    def _deliver(self, lines: list[bytes | None]) -> bytes | None:
        self._lines += len(lines)
        if None not in lines:
            return as_bytes(self.on_lines(lines) or b"", self.on_lines) if lines else None  # type: ignore[arg-type]
        connection = self.connection
        outer = connection.batch
        connection.batch = replies = []
        try:
            for overlong, group in groupby(lines, lambda line: line is None):
                for batch in ([None] * len(list(group))) if overlong else [list(group)]:
                    if batch is None:
                        connection.count_limit("max-line")
                        reply = self.on_overlong_line()
                        callback: Callable[..., object] = self.on_overlong_line
                    else:
                        reply = self.on_lines(batch)  # type: ignore[arg-type]
                        callback = self.on_lines
                    if reply:
                        replies.append(as_bytes(reply, callback))
                    if connection.closing:
                        return b"".join(replies)
        finally:
            connection.batch = outer
        return b"".join(replies)

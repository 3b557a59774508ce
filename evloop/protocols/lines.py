"""A protocol whose messages are lines."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

from evloop.net.buffers import as_bytes
from evloop.net.protocol import Protocol
from evloop.protocols.answers import answer_each
from evloop.protocols.lineframer import LineFramer

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Self


class LineProtocol(Protocol):
    """A protocol whose messages are lines.

    Attributes:
        max_line_bytes: the longest line accepted, without its terminator. 64 KiB, as an unfinished line is held in
            memory, for each connection. Longer ones are counted as ``max-line`` in the server's statistics.
    """

    __slots__ = ("_framer", "_lines")

    message_end = b"\n"
    max_line_bytes = 65536
    _framer: LineFramer | None
    _lines: int

    # Not in __init__, which subclasses have and forget to call; and the framer when there is something for it to do, as
    # the limit may be set until then.
    def __new__(cls, *args: object, **named: object) -> Self:
        protocol = super().__new__(cls)
        protocol._framer = None
        protocol._lines = 0
        return protocol

    def on_line(self, line: bytes) -> bytes | None:
        """A line has arrived, without its LF or CR LF."""
        return None

    def on_lines(self, lines: list[bytes]) -> bytes | None:
        """Whole lines, in order: all of a received chunk, or of a piece of it. Override it instead of `on_line` for
        speed.

        The default calls `on_line` for each, until one of them closes the connection.
        """
        return answer_each(self.connection, self.on_line, lines)

    def on_overlong_line(self) -> bytes | None:
        """A line of more than `max_line_bytes` has been dropped, in its place among the others."""
        return None

    def on_data(self, data: bytes) -> bytes | None:
        framer = self._framer
        if framer is None:
            framer = self._framer = LineFramer(self.max_line_bytes)
        return self._deliver(framer.feed(data))

    def on_eof(self) -> bytes | None:
        """Delivers an unterminated last line. Call it if you override it."""
        return None if self._framer is None else self._deliver(self._framer.finish())

    def held_bytes(self) -> int:
        return 0 if self._framer is None else self._framer.held_bytes

    def message_in_progress(self) -> int | None:
        return self._lines if self._framer is not None and self._framer.in_line else None

    def dump_framing(self) -> bytes | None:
        return b"" if self._framer is None else self._framer.dump()

    def restore_framing(self, state: bytes) -> None:
        if state:
            self._framer = LineFramer(self.max_line_bytes)
            self._framer.feed(state)

    def _deliver(self, lines: list[bytes | None]) -> bytes | None:
        self._lines += len(lines)
        if None not in lines:
            if not lines:
                return None
            reply = self.on_lines(lines)  # type: ignore[arg-type]
            return reply if type(reply) is bytes or not reply else as_bytes(reply, self.on_lines)
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

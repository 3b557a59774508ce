"""A protocol whose messages are lines."""

from __future__ import annotations

from itertools import groupby

from evloop.net.protocol import Protocol
from evloop.protocols.lineframer import LineFramer


class LineProtocol(Protocol):
    """A protocol whose messages are lines.

    Attributes:
        max_line_bytes: the longest line accepted, without its terminator. 64 KiB, as an unfinished line is held in
            memory, for each connection. Longer ones are counted as ``max-line`` in the server's statistics.
    """

    __slots__ = ("_framer", "_lines")

    max_line_bytes = 65536

    def __init__(self) -> None:
        self._framer = LineFramer(self.max_line_bytes)
        self._lines = 0

    def on_line(self, line: bytes) -> bytes | None:
        """A line has arrived, without its LF or CR LF."""
        return None

    def on_lines(self, lines: list[bytes]) -> bytes | None:
        """All whole lines of one received chunk, in order. Override it instead of `on_line` for speed.

        The default calls `on_line` for each, until one of them closes the connection.
        """
        connection = self.connection
        for line in lines:
            reply = self.on_line(line)
            if reply:
                # Written one by one, not joined and returned: on_line may write, too, and replies must keep their
                # order. They leave in one send anyway.
                connection.reply(reply)
            if connection.closing:
                break
        return None

    def on_overlong_line(self) -> bytes | None:
        """A line of more than `max_line_bytes` has been dropped, in its place among the others."""
        return None

    def on_data(self, data: bytes) -> bytes | None:
        return self._deliver(self._framer.feed(data))

    def on_eof(self) -> bytes | None:
        """Delivers an unterminated last line. Call it if you override it."""
        return self._deliver(self._framer.finish())

    def message_in_progress(self) -> int | None:
        return self._lines if self._framer.in_line else None

    def _deliver(self, lines: list[bytes | None]) -> bytes | None:
        self._lines += len(lines)
        if None not in lines:
            return self.on_lines(lines) if lines else None  # type: ignore[arg-type]
        for overlong, group in groupby(lines, lambda line: line is None):
            for batch in ([None] * len(list(group))) if overlong else [list(group)]:
                if batch is None:
                    self.connection.count_limit("max-line")
                    reply = self.on_overlong_line()
                else:
                    reply = self.on_lines(batch)  # type: ignore[arg-type]
                if reply:
                    self.connection.reply(reply)
                if self.connection.closing:
                    return None
        return None

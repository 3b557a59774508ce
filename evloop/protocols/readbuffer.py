"""What has arrived on a stream and was not taken yet, as lines or as bytes. No I/O.

Theory of operation
-------------------
A chunk is cut into lines by one ``split``, and they are handed out by an iterator over that list: nothing is cheaper
for each line. The beginning of a line that has not ended is kept apart. Who wants bytes instead gets them from the chunk
that the remaining lines were cut from, so nothing is lost, and nothing is kept twice before that.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import length_hint

from evloop.errors import LimitError

_NO_LINES: Iterator[bytes] = iter(())


class ReadBuffer:
    """Lines or bytes, in order, none of them lost or given twice.

    Args:
        max_line_bytes: the longest line.

    Attributes:
        lines: those that were cut and not taken, without LF or CR LF. Taking the next one takes it out.
    """

    __slots__ = ("_chunk", "_max_line_bytes", "_rest", "_taken", "lines")

    def __init__(self, max_line_bytes: int) -> None:
        self._max_line_bytes = max_line_bytes
        self.lines = _NO_LINES
        self._chunk = b""  # from which the lines were cut
        self._rest: bytearray | None = None  # after them: the beginning of a line, or bytes that nobody took
        self._taken = 0  # lines cut so far, and looks at bytes

    def cut(self, data: bytes) -> None:
        """Cut the lines that end in ``data``, which has just arrived. None may be left from before.

        Raises:
            LimitError: a line is too long.
        """
        rest = self._rest
        if rest is not None:
            rest += data
            if 10 not in data:
                self._check(len(rest))
                return
            data = bytes(rest)
            self._rest = None
        lines = data.split(b"\n")
        tail = lines.pop()
        if tail:
            self._rest = bytearray(tail)
        if 13 in data:
            lines = [line.removesuffix(b"\r") for line in lines]
        if len(data) > self._max_line_bytes:
            self._check(max(map(len, [*lines, tail])))
        self._chunk = data
        self._taken += len(lines)
        self.lines = iter(lines)

    def cut_again(self) -> bool:
        """Cut the lines of what was left as bytes. False if there are none."""
        rest = self._rest
        if not rest or 10 not in rest:
            return False
        self._rest = None
        self.cut(bytes(rest))
        return True

    def cut_last(self) -> bool:
        """At the end of the stream: make an unterminated line the next one. False if there is none."""
        if not self._rest:
            return False
        self.lines, self._rest = iter((bytes(self._rest),)), None
        self._chunk = b""
        return True

    def nothing(self) -> None:
        """All lines were taken: forget what they were cut from."""
        self.lines, self._chunk = _NO_LINES, b""

    def as_bytes(self) -> bytearray:
        """All of it as bytes. Who takes some deletes them from the front; what arrives is added at the end."""
        self._taken += 1
        rest = self._rest
        if rest is None:
            rest = self._rest = bytearray()
        left = length_hint(self.lines)
        if left:
            chunk = self._chunk or next(self.lines)
            at = len(chunk) - len(rest)
            for _ in range(left + 1):
                at = chunk.rfind(b"\n", 0, max(at, 0))
            rest[:] = chunk[at + 1 :]
            self.nothing()
        return rest

    def message_in_progress(self) -> int | None:
        """As `Protocol.message_in_progress`."""
        return self._taken if self._rest else None

    def _check(self, size: int) -> None:
        if size > self._max_line_bytes:
            raise LimitError("max-line", f"a line of more than {self._max_line_bytes} bytes")

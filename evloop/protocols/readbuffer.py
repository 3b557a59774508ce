"""What has arrived on a stream and was not taken yet, as lines or as bytes. No I/O.

Theory of operation
-------------------
A chunk is cut into lines by one ``split``, and they are handed out by an iterator over that list: nothing is cheaper
for each line. The beginning of a line that has not ended is kept apart. Who wants bytes instead gets them from the
chunk that the remaining lines were cut from, so nothing is lost, and nothing is kept twice before that. What is left as
bytes then is cut line by line, so who takes lines and bytes in turn does not have the rest cut again and again.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import length_hint

from evloop.errors import LimitError

TYPE_CHECKING = False  # importing typing for it would slow down every start
if TYPE_CHECKING:
    from typing import Never

_NO_LINES: Iterator[bytes] = iter(())


class ReadBuffer:
    """Lines or bytes, in order, none of them lost or given twice.

    Args:
        max_line_bytes: the longest line, without its end.

    Attributes:
        lines: those that were cut and not taken, without LF or CR LF. Taking the next one takes it out.
    """

    __slots__ = ("_chunk", "_max_line_bytes", "_raw", "_rest", "_taken", "lines")

    def __init__(self, max_line_bytes: int) -> None:
        self._max_line_bytes = max_line_bytes
        self.lines = _NO_LINES
        self._chunk = b""  # from which the lines were cut: up to the last one's end, or with the rest
        self._raw = False  # the rest may have lines in it
        self._rest: bytearray | None = None  # after the lines: the beginning of another, or bytes that nobody took
        self._taken = 0  # lines cut so far, and looks at bytes

    def cut(self, data: bytes) -> None:
        """Cut the lines that end in ``data``, which has just arrived. None may be left from before.

        Raises:
            LimitError: the first of them is too long, or the one that has not ended. The same comes again and again.
        """
        rest = self._rest
        if rest is not None:
            rest += data
            if 10 not in data:
                self._check(rest)
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
            good = self._up_to_limit(lines)
            if good < len(lines):  # those before it are given first
                size = 0
                for _ in range(good):
                    size = data.find(b"\n", size) + 1
                lines, self._rest, data = lines[:good], bytearray(data[size:]), data[:size]
                self._raw = True
            elif self._rest is not None:
                self._raw = len(self._rest) > self._max_line_bytes
            if self._raw and not lines:
                self.cut_again()
                return
        self._chunk = data
        self._taken += len(lines)
        self.lines = iter(lines)

    def cut_again(self) -> bool:
        """Cut the first line of what was left as bytes, if it is needed. False if there is none.

        Raises:
            LimitError: it is too long.
        """
        rest = self._rest
        if not self._raw or rest is None:
            return False
        at = rest.find(b"\n")
        if at < 0:
            self._check(rest)
            self._raw = False
            return False
        line = bytes(rest[:at]).removesuffix(b"\r")
        if len(line) > self._max_line_bytes:
            self._fail()
        self._chunk = bytes(rest[: at + 1])
        del rest[: at + 1]
        self._taken += 1
        self.lines = iter((line,))
        return True

    def cut_last(self) -> bool:
        """At the end of the stream: make an unterminated line the next one. False if there is none.

        Raises:
            LimitError: it is too long.
        """
        if not self._rest:
            return False
        if len(self._rest) > self._max_line_bytes:
            self._fail()
        self._chunk = bytes(self._rest)
        self.lines, self._rest = iter((self._chunk,)), None
        return True

    def nothing(self) -> bool:
        """All lines were taken: forget what they were cut from. False if what is left as bytes may have more."""
        self.lines, self._chunk = _NO_LINES, b""
        return not self._raw

    def as_bytes(self) -> bytearray:
        """All of it as bytes. Who takes some deletes them from the front; what arrives is added at the end."""
        self._taken += 1
        rest = self._rest
        if rest is None:
            rest = self._rest = bytearray()
        left = length_hint(self.lines)
        if left:
            chunk = self._chunk
            apart = chunk.endswith(b"\n")  # the rest is not in it
            at = len(chunk) if apart else len(chunk) - len(rest)
            for _ in range(left + 1):
                at = chunk.rfind(b"\n", 0, max(at, 0))
            rest[: 0 if apart else len(rest)] = chunk[at + 1 :]
            for _ in self.lines:
                pass  # somebody may be going over them
        self.nothing()
        self._raw = True
        return rest

    @property
    def held_bytes(self) -> int:
        """How much is held for a line, or for bytes, that are not complete."""
        return len(self._rest or b"")

    def message_in_progress(self) -> int | None:
        """As `Protocol.message_in_progress`."""
        return self._taken if self._rest else None

    def _up_to_limit(self, lines: list[bytes]) -> int:
        """How many lines there are before the first one that is too long."""
        for number, line in enumerate(lines):
            if len(line) > self._max_line_bytes:
                return number
        return len(lines)

    def _check(self, line: bytearray) -> None:
        """A line that has not ended yet."""
        size = len(line)
        # One byte more may be the CR of the terminator.
        if size > self._max_line_bytes and not (size == self._max_line_bytes + 1 and line.endswith(b"\r")):
            self._fail()

    def _fail(self) -> Never:
        raise LimitError("max-line", f"a line of more than {self._max_line_bytes} bytes")

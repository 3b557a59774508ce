"""Sans-IO framing: bytes in, lines out.

Theory of operation
-------------------
A chunk that arrives holds any number of whole lines and perhaps the beginning of another. The whole ones are cut in C
by one ``bytes.split``. The unfinished one is held in a bytearray until its end arrives; only the new chunk is ever
searched for the terminator, so a line that is dribbled byte by byte costs linear time.
"""

from __future__ import annotations


class LineFramer:
    """Cuts a stream of bytes into lines that end in LF; one CR before the LF is not part of the line.

    A line of more than ``limit_bytes`` (not counting its terminator) is swallowed in constant memory. It stands as
    None in the list, so that the lines after it are in sync.

    Args:
        limit_bytes: the longest line that is delivered. No value suits everyone, but there must be one, for the
            unfinished line is held in memory.
    """

    __slots__ = ("_held", "_limit", "_overlong")

    def __init__(self, limit_bytes: int) -> None:
        if limit_bytes < 0:
            raise ValueError(f"limit_bytes must not be negative, got {limit_bytes}")
        self._limit = limit_bytes
        self._held = bytearray()  # the unfinished line
        self._overlong = False  # it is too long already, and no longer held

    @property
    def in_line(self) -> bool:
        """True when a line has begun and not ended."""
        return self._overlong or len(self._held) > 0

    @property
    def held_bytes(self) -> int:
        """How much of an unfinished line is held."""
        return len(self._held)

    def feed(self, data: bytes) -> list[bytes | None]:
        """The lines that end in ``data``, in order, without terminators; None for one over the limit."""
        lines: list[bytes | None] = []
        if self.in_line:
            head, newline, data = data.partition(b"\n")
            self._hold(head)
            if not newline:
                return lines
            lines.append(self._take(b"\r"))
        whole = data.split(b"\n")
        tail = whole.pop()
        if b"\r" in data:
            whole = [line.removesuffix(b"\r") for line in whole]
        if len(data) > self._limit:
            lines += [line if len(line) <= self._limit else None for line in whole]
        else:
            lines += whole
        self._hold(tail)
        return lines

    def finish(self) -> list[bytes | None]:
        """At end of stream: the unterminated last line in a list of one, or an empty list if there is none."""
        return [self._take(b"")] if self.in_line else []

    def dump(self) -> bytes | None:
        """What another one must be fed to go on from here; None within a line over the limit, as that is not held."""
        return None if self._overlong else bytes(self._held)

    def _hold(self, piece: bytes) -> None:
        # One byte more than the limit is let in: it may be the CR of the terminator.
        if self._overlong or len(self._held) + len(piece) > self._limit + 1:
            self._overlong = True
            self._held.clear()
        else:
            self._held += piece

    def _take(self, terminator: bytes) -> bytes | None:
        line = None if self._overlong else bytes(self._held).removesuffix(terminator)
        if line is not None and len(line) > self._limit:
            line = None
        self._held.clear()
        self._overlong = False
        return line

"""What the service must answer, written to be obviously right: one byte at a time, with no help from a decoder."""

from __future__ import annotations


def lines_of(stream: bytes) -> list[bytes]:
    """The messages of a stream in line framing, the unterminated last one included."""
    lines, line = [], bytearray()
    for byte in stream:
        if byte == 0x0A:
            if line and line[-1] == 0x0D:
                line.pop()
            lines.append(bytes(line))
            line.clear()
        else:
            line.append(byte)
    if line:
        lines.append(bytes(line))  # no terminator, so a CR at its end belongs to it
    return lines


# The table of RFC 3629, section 4: what a sequence begins with, what may come second, how many come after that.
_SEQUENCES = [
    ((0xC2, 0xDF), (0x80, 0xBF), 0),
    ((0xE0, 0xE0), (0xA0, 0xBF), 1),
    ((0xE1, 0xEC), (0x80, 0xBF), 1),
    ((0xED, 0xED), (0x80, 0x9F), 1),
    ((0xEE, 0xEF), (0x80, 0xBF), 1),
    ((0xF0, 0xF0), (0x90, 0xBF), 2),
    ((0xF1, 0xF3), (0x80, 0xBF), 2),
    ((0xF4, 0xF4), (0x80, 0x8F), 2),
]


def count_code_points(message: bytes) -> tuple[int, int | None]:
    """The number of code points, and the offset of the first sequence that is not UTF-8, or None."""
    count = position = 0
    while position < len(message):
        length = _sequence_length(message[position:])
        if length == 0:
            return count, position
        count += 1
        position += length
    return count, None


def _sequence_length(data: bytes) -> int:
    """How many bytes the code point at the start of ``data`` takes; 0 if there is none."""
    if data[0] < 0x80:
        return 1
    for (first, last), (low, high), more in _SEQUENCES:
        if first <= data[0] <= last:
            rest = data[1 : 2 + more]
            if len(rest) < 1 + more or not low <= rest[0] <= high:
                return 0
            if any(not 0x80 <= byte <= 0xBF for byte in rest[1:]):
                return 0
            return 2 + more
    return 0


def reply_to(message: bytes, limit: int | None) -> bytes:
    """The reply to one message, without what ends it."""
    if limit is not None and len(message) > limit:
        return b"ERR too-long limit %d" % limit
    count, bad_at = count_code_points(message)
    return b"%d" % count if bad_at is None else b"ERR invalid-utf8 at byte %d" % bad_at

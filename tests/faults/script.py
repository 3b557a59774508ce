"""A protocol that echoes and does as it is told, for lives of connections that Hypothesis draws."""

from __future__ import annotations

from evloop import Limits, Protocol
from evloop.net.state import State

# What the protocol does when it finds one of these in what it receives.
CLOSE, ABORT, FAIL, PAUSE, TALK = b"\1\2\3\4\5"

LIMITS = Limits(
    high_water_bytes=3000,
    low_water_bytes=1000,
    max_unsent_bytes=150_000,
    linger_bytes=20_000,
    linger_timeout_s=5,
    write_timeout_s=None,
)

# No two stretches of it that are near each other are alike, and no byte of it is an order.
_PATTERN = b"".join(b"%d," % number for number in range(20_000))


def pattern(offset: int, size: int) -> bytes:
    """Bytes that tell where in a stream they belong."""
    start = offset % (len(_PATTERN) - 10_000)
    return _PATTERN[start : start + size]


class Script(Protocol):
    """Echoes, and does what the bytes it receives tell it to. Notes what it was given and what it wrote."""

    def __init__(self, keep_half_open: bool) -> None:
        self.keep_half_open = keep_half_open
        self.received = bytearray()
        self.written = bytearray()
        self.events: list[str] = []

    def on_connect(self) -> bytes:
        self.events.append("connect")
        self.written += b"hello"
        return b"hello"

    def on_data(self, data: bytes) -> bytes | None:
        assert self.events[-1] == "connect", "data after EOF or close"
        has_ended = self.connection.state is State.HALF_CLOSED  # we have said that nothing more will come
        self.received += data
        if FAIL in data:
            raise RuntimeError("on purpose")
        if TALK in data:
            self.connection.write(b"talk")
            self.written += b"" if has_ended else b"talk"
        if PAUSE in data:
            self.connection.pause_reading()
        if CLOSE in data:
            self.connection.close()
        if ABORT in data:
            self.connection.abort()
            return b"must never be sent"
        if has_ended:
            return None
        self.written += data
        return data

    def on_eof(self) -> bytes | None:
        self.events.append("eof")
        if self.connection.state is not State.HALF_OPEN:
            return None
        self.written += b"bye"
        return b"bye"

    def on_close(self, error: Exception | None) -> None:
        self.events.append("close")
        self.error = error

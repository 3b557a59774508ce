"""What becomes of what callbacks return and write, in memory."""

from __future__ import annotations

from evloop import Protocol
from evloop.testing import MemoryLoop, MemoryStream
from servers import Recorder, recorder


def test_each_callback_can_return_bytes_or_write():
    class Chatty(Protocol):
        def on_connect(self) -> bytes:
            self.connection.write(b"connect 1\n")
            return b"connect 2\n"

        def on_data(self, data: bytes) -> bytes:
            self.connection.write(b"data 1\n")
            self.connection.write(b"data 2\n")
            return b"data 3\n"

        def on_eof(self) -> bytes:
            self.connection.write(b"eof 1\n")
            return b"eof 2\n"

    stream = MemoryStream(Chatty())
    assert stream.sent == b"connect 1\nconnect 2\n"
    assert stream.feed(b"x") == b"data 1\ndata 2\ndata 3\n"
    assert stream.eof() == b"eof 1\neof 2\n"
    assert stream.closed


def test_what_a_callback_returns_after_close_is_sent_and_what_it_writes_is_not():
    class Last(Protocol):
        def on_data(self, data: bytes) -> bytes:
            self.connection.write(b"before ")
            self.connection.close()
            self.connection.write(b"too late ")
            return b"last"

    stream = MemoryStream(Last())
    assert stream.feed(b"x") == b"before last"
    assert stream.closed


def test_on_close_may_write_and_close_without_effect():
    class Stubborn(Recorder):
        def on_close(self, error: Exception | None) -> None:
            super().on_close(error)
            self.connection.write(b"ghost")
            self.connection.close()
            self.connection.abort()
            self.connection.pause_reading()
            self.connection.resume_reading()

    protocol = recorder(Stubborn)()
    stream = MemoryStream(protocol)
    assert stream.eof() == stream.advance(60) == b""
    assert protocol.events == ["connect", "eof", "close"]


def test_writes_of_other_callbacks_reach_their_connection():
    everyone: list[Protocol] = []

    class Chat(Protocol):
        def on_connect(self) -> None:
            everyone.append(self)

        def on_data(self, data: bytes) -> None:
            for one in everyone:
                one.connection.write(data)

        def on_close(self, error: Exception | None) -> None:
            everyone.remove(self)

    loop = MemoryLoop()
    streams = [MemoryStream(Chat(), loop=loop) for _ in range(5)]
    for number, stream in enumerate(streams, 1):
        assert stream.feed(b"hello") == b"hello"
        assert [other.sent for other in streams] == [b"hello" * number] * 5


def test_another_connection_can_be_closed_from_a_callback():
    class Takeover(Protocol):
        current: Protocol | None = None

        def on_connect(self) -> bytes:
            if Takeover.current is not None:
                Takeover.current.connection.close()
            Takeover.current = self
            return b"yours\n"

    loop = MemoryLoop()
    streams = [MemoryStream(Takeover(), loop=loop) for _ in range(4)]
    assert [stream.sent for stream in streams] == [b"yours\n"] * 4
    assert [stream.closed for stream in streams] == [True, True, True, False]


def test_empty_writes_and_replies_do_nothing():
    class Silent(Protocol):
        def on_data(self, data: bytes) -> bytes:
            self.connection.write(b"")
            return b"" if data != b"end" else b"."

    stream = MemoryStream(Silent())
    assert stream.feed(b"x") == b""
    assert stream.feed(b"end") == b"."


def test_data_goes_to_the_receiver_that_the_protocol_names():
    class Direct(Protocol):
        def __init__(self) -> None:
            self.seen: list[bytes] = []

        def data_handler(self):
            return self.receive

        def receive(self, data: bytes) -> bytes:
            self.seen.append(data)
            return b"%d" % len(self.seen)

        def on_data(self, data: bytes) -> bytes:
            raise AssertionError("not called")

    stream = MemoryStream(Direct())
    assert stream.feed(b"a") == b"1"
    assert stream.feed(b"b") == b"2"


def test_pipelined_messages_are_answered_in_order_in_one_stream():
    class Double(Protocol):
        def on_data(self, data: bytes) -> bytes:
            return data + data.upper()

    class Count(Protocol):
        def __init__(self) -> None:
            self.total = 0

        def on_data(self, data: bytes) -> bytes:
            self.total += len(data)
            return b"" if self.total < 100_000 else b"%d\n" % self.total

    stream = MemoryStream(Count())
    for _ in range(100):
        stream.feed(b"x" * 1000)
    assert stream.sent == b"100000\n"
    assert MemoryStream(Double()).feed(b"abc") == b"abcABC"

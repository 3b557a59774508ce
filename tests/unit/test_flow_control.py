"""Pauses, water marks and the cap on unsent bytes, to the byte: the peer in memory takes just what it is told to."""

from __future__ import annotations

from evloop import Limits
from evloop.testing import MemoryStream
from servers import Recorder, recorder, small_limits


def test_pause_holds_data_back_and_resume_delivers_it():
    protocol = recorder()()
    stream = MemoryStream(protocol)
    stream.connection.pause_reading()
    stream.connection.pause_reading()
    stream.feed(b"hello")
    stream.advance(60)
    assert protocol.received() == b""
    stream.connection.resume_reading()
    stream.advance()
    assert protocol.received() == b"hello"
    stream.connection.resume_reading()
    stream.feed(b" again")
    assert protocol.received() == b"hello again"


def test_paused_in_on_data():
    class OneByOne(Recorder):
        def on_data(self, data: bytes) -> bytes:
            super().on_data(data)
            self.connection.pause_reading()
            return b"."

    protocol = recorder(OneByOne)()
    stream = MemoryStream(protocol)
    assert stream.feed(b"a") == b"."
    assert stream.feed(b"b") == b""
    assert protocol.received() == b"a"
    stream.connection.resume_reading()
    assert stream.advance() == b"."
    assert protocol.received() == b"ab"


def test_the_end_of_a_paused_peer_is_told_after_its_data():
    protocol = recorder()()
    stream = MemoryStream(protocol)
    stream.connection.pause_reading()
    stream.feed(b"last words")
    stream.eof()
    assert protocol.events == ["connect"]
    stream.connection.resume_reading()
    stream.advance()
    assert protocol.events == ["connect", ("data", b"last words"), "eof", "close"]


def test_high_water_once_for_many_writes_of_one_callback():
    protocol = recorder()()
    stream = MemoryStream(protocol, limits=small_limits(), peer_reads=100_000)
    for _ in range(1000):
        stream.connection.write(bytes(10_000))
    stream.advance()
    assert protocol.events == ["connect", "high"]
    stream.peer_reads(None)
    assert len(stream.sent) == 10_000_000
    assert protocol.events == ["connect", "high", "low"]


def test_marks_for_a_producer_that_writes_on_its_own():
    # It writes from timers: no event of the socket is there to notice that the peer has stopped reading.
    class Producer(Recorder):
        paused = False

        def on_connect(self) -> None:
            super().on_connect()
            self.produce()

        def produce(self) -> None:
            if not self.paused and not self.connection.closing:
                self.connection.write(bytes(65536))
                self.connection.loop.call_soon(self.produce)

        def on_high_water(self) -> None:
            super().on_high_water()
            self.paused = True

        def on_low_water(self) -> None:
            super().on_low_water()
            self.paused = False
            self.produce()

    protocol = recorder(Producer)()
    limits = Limits(high_water_bytes=1 << 20, low_water_bytes=65536, max_unsent_bytes=1 << 22, max_connections=100)
    stream = MemoryStream(protocol, limits=limits, peer_reads=100_000)
    assert protocol.events == ["connect", "high"]
    assert (1 << 20) < stream.connection.unsent_bytes <= (1 << 20) + 2 * 65536
    stream.peer_reads(stream.connection.unsent_bytes - limits.low_water_bytes - 1)
    assert protocol.events == ["connect", "high"]
    stream.peer_reads(1)
    assert protocol.events == ["connect", "high", "low", "high"]
    assert (1 << 20) < stream.connection.unsent_bytes <= (1 << 20) + 2 * 65536


def test_the_cap_within_one_callback():
    class Much(Recorder):
        def on_data(self, data: bytes) -> bytes:
            for _ in range(1000):
                self.connection.write(bytes(100_000))
            return b"and more"

    protocol = recorder(Much)()
    stream = MemoryStream(protocol, limits=small_limits(max_unsent_bytes=1 << 20))
    assert stream.feed(b"x") == b""
    assert protocol.events == ["connect", ("close", "LimitError")]
    assert stream.limits_hit == {"unsent": 1}
    assert stream.was_reset

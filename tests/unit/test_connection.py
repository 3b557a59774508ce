"""What a connection does at the edges, to the byte and in the order of one pass: in memory, where both can be had."""

from __future__ import annotations

import pytest

from evloop import Protocol, State
from evloop.net.receiving import FIRST_RECV_BYTES, MAX_PIECE_BYTES, RECV_BYTES
from evloop.testing import MemoryLoop, MemoryStream
from harness import Recorder, recorder, small_limits


def sizes(protocol: Recorder) -> list[int]:
    """How much came with each call of ``on_data``."""
    return [len(event[1]) for event in protocol.events if event[0] == "data"]


def test_what_is_dropped_while_lingering_was_received():
    stream = MemoryStream(Protocol())
    stream.feed(b"read")
    stream.connection.close()
    stream.feed(b"dropped")
    stream.feed(b"too")
    assert stream.connection.state is State.LINGERING
    assert stream.connection.bytes_received == 4
    stream.eof()
    assert stream.connection.state is State.CLOSED
    assert stream.connection.bytes_received == 14


def test_lingering_ends_with_the_peer_and_leaves_no_timer():
    stream = MemoryStream(Protocol())
    stream.connection.close()
    stream.advance()
    assert stream.loop.timers == 1
    stream.eof()
    assert stream.loop.timers == 0
    stream.advance(60)
    assert stream.limits_hit == {}


def test_the_bytes_dropped_while_lingering_are_bounded():
    stream = MemoryStream(Protocol(), limits=small_limits(linger_bytes=10))
    stream.connection.close()
    stream.feed(bytes(10))
    assert stream.connection.state is State.LINGERING
    stream.feed(bytes(1))
    assert stream.connection.state is State.CLOSED
    assert stream.limits_hit == {"linger-bytes": 1}


def test_paused_by_the_flush_of_its_own_event_it_is_not_read_in_that_event():
    # What another connection's handler wrote has put it above the high mark, which is found out when its own event,
    # readable and writable at once, flushes. What has arrived must wait then.
    loop = MemoryLoop()
    slow_protocol = recorder()()
    slow = MemoryStream(slow_protocol, loop=loop, limits=small_limits(), peer_reads=0)

    class Broadcasts(Protocol):
        def on_data(self, data: bytes) -> None:
            slow.connection.write(bytes(10_000))

    other = MemoryStream(Broadcasts(), loop=loop)
    slow.connection.write(b"a little")
    loop.advance()
    assert slow.connection.stalled
    for stream in (other, slow):  # held back, so that both are ready in the same pass, and in this order
        stream.connection.pause_reading()
        stream.feed(b"x")
    for stream in (other, slow):
        stream.connection.resume_reading()
    loop.advance()
    assert slow_protocol.events == ["connect", "high"]
    slow.peer_reads(None)
    assert slow_protocol.events == ["connect", "high", "low", ("data", b"x")]


def test_receives_grow_only_when_they_are_filled():
    protocol = recorder(message_end=b"\n")()  # without an end in it all of a receive is one piece
    stream = MemoryStream(protocol)
    for _ in range(3):
        stream.feed(bytes(FIRST_RECV_BYTES - 1))
    stream.feed(bytes(100_000))
    assert sizes(protocol) == [478, 478, 478, 479, 3832, 30656, 65033]
    stream.feed(bytes(100_000))
    assert sizes(protocol)[7:] == [RECV_BYTES, 100_000 - RECV_BYTES]


def test_a_receive_that_is_large_is_handed_over_in_pieces_also_if_it_is_not_filled():
    protocol = recorder(message_end=b"\n")()
    stream = MemoryStream(protocol)
    stream.feed(bytes(479 + 3832 + 30656) + b"\n")  # the next receive is as large as they get
    before = len(sizes(protocol))
    stream.feed(b"short\n" * 5000)
    assert len(sizes(protocol)) > before + 1
    assert max(sizes(protocol)[before:]) <= MAX_PIECE_BYTES


def test_whole_chunks_are_received_from_the_first_byte_on():
    protocol = recorder(wants_whole_chunks=True)()
    MemoryStream(protocol).feed(bytes(100_000))
    assert sizes(protocol) == [RECV_BYTES, 100_000 - RECV_BYTES]


def test_a_receive_of_which_a_rest_is_left_makes_the_next_ones_smaller():
    class Talkative(Recorder):
        def on_data(self, data: bytes) -> bytes:
            super().on_data(data)
            return data * 10

    protocol = recorder(Talkative)()
    stream = MemoryStream(protocol)
    stream.feed(bytes(479 + 3832 + 30656))
    before = len(sizes(protocol))
    stream.feed(bytes(60_000))
    # At first as much as such turns had got, which is the least.
    assert sizes(protocol)[before] == FIRST_RECV_BYTES
    assert len(stream.sent) == (479 + 3832 + 30656 + 60_000) * 10


@pytest.mark.parametrize("over", [0, 1])
def test_the_high_mark_is_crossed_above_it(over):
    protocol = recorder()()
    stream = MemoryStream(protocol, limits=small_limits(), peer_reads=0)
    stream.connection.write(bytes(4096 + over))
    stream.advance()
    assert protocol.events == ["connect", *["high"] * over]
    assert stream.connection.paused == bool(over)
    # The same byte by byte, where the first of them is offered and the others are added to a queue.
    protocol = recorder()()
    stream = MemoryStream(protocol, limits=small_limits(), peer_reads=0)
    for size in (1, 4095, over):
        stream.connection.write(bytes(size))
        stream.advance()
    assert protocol.events == ["connect", *["high"] * over]


@pytest.mark.parametrize("over", [0, 1])
@pytest.mark.parametrize("pieces", [(5000,), (4999, 1), (1, 4999)])
def test_the_cap_is_the_most_that_may_be_unsent(over, pieces):
    protocol = recorder()()
    stream = MemoryStream(protocol, limits=small_limits(max_unsent_bytes=5000), peer_reads=0)
    for size in pieces:
        stream.connection.write(bytes(size))
        stream.advance()
    assert protocol.events == ["connect", "high"]
    stream.connection.write(bytes(over))
    assert stream.connection.unsent_bytes == (0 if over else 5000)
    assert stream.connection.closing == bool(over)
    assert stream.limits_hit == ({"high-water": 1, "unsent": 1} if over else {"high-water": 1})

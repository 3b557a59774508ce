"""What a connection does at the edges, to the byte and in the order of one pass: in memory, where both can be had."""

from __future__ import annotations

import errno
from collections import Counter

import pytest

from evloop import Connection, Limits, Protocol, State
from evloop.net.buffers import NOTHING_MORE
from evloop.net.receiving import (
    FIRST_RECV_BYTES,
    MAX_PIECE_BYTES,
    MAX_TURN_REPLY_BYTES,
    PIECE_BYTES,
    RECV_BYTES,
    TURN_S,
)
from evloop.testing import MemoryLoop, MemoryStream
from servers import Recorder, recorder, small_limits


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


@pytest.mark.parametrize(("piece_takes_s", "pieces_in_a_pass"), [(0.0, 15), (TURN_S / 1.5, 2), (TURN_S * 1.5, 1)])
def test_a_turn_is_over_when_its_time_is(piece_takes_s, pieces_in_a_pass):
    class Takes(Recorder):
        def on_data(self, data: bytes) -> None:
            super().on_data(data)
            stream.clock.now += piece_takes_s
            pieces_in[stream.loop.passes] += 1

    pieces_in: Counter[int] = Counter()
    protocol = recorder(Takes, message_end=b"\n", wants_whole_chunks=False)()
    stream = MemoryStream(protocol)
    stream.feed(bytes(479 + 3832 + 30656) + b"\n")  # the next receive is as large as they get
    pieces_in.clear()
    stream.feed(b"\n" * PIECE_BYTES * 16)
    assert next(iter(pieces_in.values())) == pieces_in_a_pass
    assert len(protocol.received()) == 479 + 3832 + 30656 + 1 + PIECE_BYTES * 16


def test_a_turn_is_over_when_there_is_much_to_be_sent():
    class Answers(Recorder):
        def on_data(self, data: bytes) -> bytes:
            super().on_data(data)
            pieces_in[stream.loop.passes] += 1
            return bytes(MAX_TURN_REPLY_BYTES // 2)

    pieces_in: Counter[int] = Counter()
    stream = MemoryStream(recorder(Answers, message_end=b"\n")())
    stream.feed(bytes(479 + 3832 + 30656) + b"\n")
    pieces_in.clear()
    stream.feed(b"\n" * PIECE_BYTES * 16)
    assert next(iter(pieces_in.values())) == 3  # when there is more than that, and not before


# Makes the receives as large as they get; and what such a one takes, which is handed over in pieces.
GROW = bytes(479 + 3832 + 30656) + b"\n"
FLOOD = b"\n" * RECV_BYTES


def flooded(action: str) -> tuple[MemoryStream, Recorder]:
    """A stream whose protocol does something to its connection in the second piece of a flood."""

    class Acts(Recorder):
        message_end = b"\n"

        def on_data(self, data: bytes) -> bytes:
            super().on_data(data)
            if sizes(self).count(PIECE_BYTES) == 2:
                getattr(self.connection, action)()
            return b"."

    protocol = recorder(Acts)()
    stream = MemoryStream(protocol)
    stream.feed(GROW)
    assert len(protocol.received()) == len(GROW)
    stream.feed(FLOOD)
    assert stream.connection.is_legal
    return stream, protocol


def test_paused_in_the_middle_of_a_turn_the_rest_waits_until_it_is_resumed():
    stream, protocol = flooded("pause_reading")
    assert protocol.received() == GROW + FLOOD[: 2 * PIECE_BYTES]
    stream.eof()  # comes after it
    assert protocol.events[-1] != "eof"
    stream.connection.resume_reading()
    stream.advance()
    assert protocol.received() == GROW + FLOOD
    assert protocol.events[-2:] == ["eof", "close"]


def test_our_own_half_close_in_the_middle_of_a_turn_loses_nothing_of_the_rest():
    stream, protocol = flooded("write_eof")
    assert stream.closed
    assert protocol.received() == GROW + FLOOD
    assert stream.connection.state is State.HALF_CLOSED


@pytest.mark.parametrize("action", ["close", "abort"])
def test_what_is_left_of_a_turn_is_not_delivered_after_the_end(action):
    stream, protocol = flooded(action)
    stream.advance(60)
    assert protocol.received() == GROW + FLOOD[: 2 * PIECE_BYTES]
    assert protocol.events[-1] == "close"
    assert stream.connection.state is State.CLOSED
    assert stream.connection.is_legal


def test_a_half_close_before_a_turn_is_over_is_told_after_it():
    class Slow(Recorder):
        message_end = b"\n"

        def on_data(self, data: bytes) -> None:
            super().on_data(data)
            stream.clock.now += 1

    protocol = recorder(Slow)()
    stream = MemoryStream(protocol)
    stream.feed(GROW)
    stream.feed(FLOOD)
    stream.eof()
    assert protocol.received() == GROW + FLOOD
    assert protocol.events[-2:] == ["eof", "close"]


def test_what_arrives_during_a_turn_comes_after_its_rest():
    class Slow(Recorder):
        message_end = b"\n"

        def on_data(self, data: bytes) -> None:
            super().on_data(data)
            stream.clock.now += 1

    protocol = recorder(Slow)()
    stream = MemoryStream(protocol)
    numbered = b"".join(b"%d\n" % number for number in range(40_000))
    stream.feed(GROW + numbered)
    assert protocol.received() == GROW + numbered


def test_paused_before_the_next_turn_begins_the_rest_waits():
    class Pauses(Recorder):
        message_end = b"\n"

        def on_data(self, data: bytes) -> None:
            super().on_data(data)
            if len(data) == PIECE_BYTES:
                stream.clock.now += 1  # so the turn is over
                self.connection.loop.call_soon(self.connection.pause_reading)

    protocol = recorder(Pauses)()
    stream = MemoryStream(protocol)
    stream.feed(GROW + FLOOD)
    pieces = 1
    while len(protocol.received()) < len(GROW + FLOOD):
        assert sizes(protocol).count(PIECE_BYTES) == pieces
        stream.connection.resume_reading()
        stream.advance()
        pieces += 1
    assert pieces > 10


def test_half_closed_and_stalled_it_still_receives():
    protocol = recorder()()
    stream = MemoryStream(protocol, peer_reads=0)
    stream.connection.write(b"not read yet")
    stream.connection.write_eof()
    stream.advance()
    stream.feed(b"x")
    assert protocol.events == ["connect", ("data", b"x")]
    assert not stream.closed
    assert stream.peer_reads(None) == b"not read yet"
    assert stream.closed


def test_more_than_the_cap_in_one_write_is_too_much_when_the_kernel_does_not_take_it():
    for peer_reads, limits_hit in ((1, {}), (0, {"unsent": 1})):
        stream = MemoryStream(Protocol(), limits=small_limits(max_unsent_bytes=5000), peer_reads=peer_reads)
        stream.connection.write(bytes(5001))
        stream.advance()
        assert stream.limits_hit - Counter({"high-water": 1}) == limits_hit


def test_what_is_written_or_returned_after_the_end_is_kept_nowhere():
    class Ends(Protocol):
        def on_data(self, data: bytes) -> bytes:
            self.connection.abort()
            self.connection.write(b"late")
            return b"later"

    stream = MemoryStream(Ends())
    stream.feed(b"x")
    assert stream.connection.is_legal
    assert stream.connection.unsent_bytes == len(NOTHING_MORE) == 0
    assert stream.sent == b""


def test_who_cannot_be_watched_any_more_is_closed(monkeypatch):
    protocol = recorder()()
    stream = MemoryStream(protocol, peer_reads=0)
    watch = stream.loop.poller.watch

    def out_of_memory(fd: int, events: int, handler: object) -> None:
        if events:
            raise OSError(errno.ECONNRESET, "stands for any error")
        watch(fd, events, handler)

    monkeypatch.setattr(stream.loop.poller, "watch", out_of_memory)
    stream.connection.write(b"x")
    stream.advance()
    assert protocol.events == ["connect", ("close", "ConnectionResetError")]


def test_who_cannot_be_watched_is_not_opened(monkeypatch):
    def out_of_memory(*args: object) -> None:
        raise OSError(errno.ENOMEM, "no memory for watches")

    protocol = recorder()()
    loop = MemoryLoop()
    monkeypatch.setattr(loop.poller, "register", out_of_memory)
    sock, other = loop.pair()
    connection = Connection(loop, sock, "peer", protocol, Limits())
    with pytest.raises(OSError, match="no memory for watches"):
        connection.open()
    assert connection.state is State.CLOSED
    assert protocol.events == []
    assert other.recv(1) == b""


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

"""Slow readers, pauses, water marks, the cap on unsent bytes, and closing without losing the last words."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import pytest

from evloop import Protocol
from servers import Recorder, RunningServer, recorder, small_limits
from waiting import wait_until

# More than the buffers of both kernels can take on loopback while nobody reads.
FLOOD_BYTES = 16 * 1024 * 1024


def pattern(size: int) -> bytes:
    """Bytes of which each part looks different, so that a lost or repeated piece shows."""
    return random.Random(size).randbytes(size)


# ---------------------------------------------------------------------- close and abort


def test_close_flushes_large_output_to_a_slow_reader(start):
    data = pattern(FLOOD_BYTES)

    class Dump(Protocol):
        def on_connect(self) -> bytes:
            self.connection.close()
            return data

    server = start(Dump)
    client = server.connect(receive_buffer=8192)
    assert client.receive_exactly(1000) == data[:1000]
    server.passes(5)
    assert server.connection().unsent_bytes > 0
    assert client.receive_rest() == data[1000:]
    client.close()
    server.wait_empty()


def test_abort_drops_what_is_unsent(start):
    protocol = recorder()
    server = start(protocol)
    client = server.connect(receive_buffer=8192)
    connection = server.connection()
    server.call(connection.write, bytes(FLOOD_BYTES))
    wait_until(lambda: "high" in protocol.events)
    server.call(connection.abort)
    server.wait_empty()
    assert connection.unsent_bytes == 0
    try:
        arrived = len(client.receive_rest())
    except ConnectionError:
        arrived = 0
    assert arrived < FLOOD_BYTES
    assert protocol.events == ["connect", "high", "close"]


def test_an_error_reply_survives_unread_input(start):
    # Closing a socket with unread input resets it, and a reset destroys what the peer has not read yet.
    class Refuse(Recorder):
        def on_data(self, data: bytes) -> bytes:
            super().on_data(data)
            self.connection.close()
            return b"ERR go away\n"

    protocol = recorder(Refuse)
    server = start(protocol, small_limits(linger_timeout_s=60))
    client = server.connect()
    client.send(b"x" * 500_000)
    assert client.receive_rest() == b"ERR go away\n"
    # On loopback the reply would be readable in spite of a reset. That none came shows when the client sends on.
    for _ in range(10):
        client.send(b"x" * 10_000)
    client.half_close()
    assert client.receive_rest() == b""
    server.wait_empty()
    assert protocol.events[-1] == "close"
    assert len(protocol.events) == 3  # nothing is delivered after close


@pytest.mark.parametrize("limit", ["linger_bytes", "linger_timeout_s"])
def test_a_peer_that_never_stops_sending_is_not_drained_for_ever(start, limit):
    class Refuse(Protocol):
        def on_data(self, data: bytes) -> bytes:
            self.connection.close()
            return b"ERR\n"

    server = start(Refuse, small_limits(**{"linger_bytes": 1 << 40, "linger_timeout_s": 60, limit: 0.05}))
    client = server.connect()
    client.send(b"x")
    assert client.receive_exactly(4) == b"ERR\n"
    if limit == "linger_bytes":
        with pytest.raises(ConnectionError):
            client.send(bytes(1 << 26))
    server.wait_empty()
    assert server.limit_hits(limit.removesuffix("_s").replace("_", "-")) == 1


def test_a_connection_that_ends_well_leaves_no_timer(start):
    class Goodbye(Protocol):
        def on_connect(self) -> bytes:
            self.connection.close()
            return b"bye"

    server = start(Goodbye)
    timers = server.call(lambda: server.loop.timers)
    for _ in range(3):
        with server.connect() as client:
            assert client.receive_rest() == b"bye"
    server.wait_empty()
    assert server.call(lambda: server.loop.timers) == timers


def test_nothing_is_delivered_after_on_close(start):
    # Stalled and readable at once, and reset: the send finds out first, and what could still be read is not.
    class Answers(Recorder):
        def on_data(self, data: bytes) -> bytes:
            super().on_data(data)
            return bytes(8_000_000)

    protocol = recorder(Answers)
    server = start(protocol, small_limits(high_water_bytes=1 << 23))
    client = server.connect(receive_buffer=4096)
    client.send(b"x")
    connection = server.connection()
    wait_until(lambda: connection.stalled)
    server.passes(10)
    release = server.hold()
    client.send(b"y")
    client.reset()
    release.set()
    server.wait_empty()
    assert "high" not in protocol.events
    assert protocol.events[-1][0] == "close"


# ---------------------------------------------------------------------- pausing


def test_the_peer_is_held_back_while_paused(start):
    protocol = recorder()
    server = start(protocol)
    client = server.connect()
    connection = server.connection()
    server.call(connection.pause_reading)
    sent = client.send_until_full()
    assert connection.bytes_received == 0
    server.call(connection.resume_reading)
    wait_until(lambda: connection.bytes_received == sent)


def test_a_paused_connection_can_still_write_and_close(start):
    server = start(Protocol)
    client = server.connect()
    connection = server.connection()
    server.call(connection.pause_reading)
    server.call(connection.write, b"hello")
    assert client.receive_exactly(5) == b"hello"
    client.send(b"unread")
    server.call(connection.close)
    assert client.receive_rest() == b""
    client.close()
    server.wait_empty()


# ---------------------------------------------------------------------- water marks


class Multiplier(Recorder):
    """Answers each byte with many."""

    factor = 60

    def on_low_water(self) -> None:
        super().on_low_water()
        assert self.connection.unsent_bytes <= self.connection.limits.low_water_bytes

    def on_data(self, data: bytes) -> bytes:
        super().on_data(data)
        return data * self.factor


def test_above_the_high_mark_nothing_is_read_until_the_low_mark(start):
    protocol = recorder(Multiplier)
    server = start(protocol, small_limits())
    client = server.connect(receive_buffer=4096)
    client.send_until_full(pattern(4000))
    connection = server.connection()
    received = connection.bytes_received
    server.passes(10)
    assert connection.bytes_received == received
    assert connection.unsent_bytes < 4096 + 65536 * Multiplier.factor
    assert protocol.events.count("high") == 1
    assert "low" not in protocol.events
    expected = b"".join(event[1] * Multiplier.factor for event in protocol.events if event[0] == "data")
    assert client.receive_exactly(len(expected)) == expected
    wait_until(lambda: "low" in protocol.events)
    wait_until(lambda: connection.bytes_received > received)


def test_every_byte_arrives_through_many_pauses(start):
    # A pipelining client that reads slower than it asks: marks are crossed again and again.
    protocol = recorder(Multiplier, factor=64)
    server = start(protocol, small_limits(high_water_bytes=65536, low_water_bytes=16384, max_unsent_bytes=1 << 24))
    client = server.connect(receive_buffer=4096)
    request = pattern(400_000)
    client.socket.setblocking(False)
    sent, got = 0, bytearray()
    while len(got) < len(request) * 64:
        try:
            sent += client.socket.send(request[sent : sent + 4096])
        except BlockingIOError:
            pass
        if sent == len(request):
            client.socket.settimeout(10)
        try:
            got += client.socket.recv(32768)
        except BlockingIOError:
            pass
    server.passes()
    events = [event for event in protocol.events if event in ("high", "low")]
    assert events == ["high", "low"] * (len(events) // 2)
    assert events, "no mark was crossed: the test tests nothing"
    at = 0
    for event in protocol.events:
        if event[0] == "data":
            answer = event[1] * 64
            assert got[at : at + len(answer)] == answer
            at += len(answer)
    assert at == len(got)


def test_a_connection_that_was_stalled_and_is_not_is_quiet_again(start):
    server = start(Protocol)
    client = server.connect(receive_buffer=4096)
    connection = server.connection()
    for _ in range(3):
        server.call(connection.write, bytes(8_000_000))
        wait_until(lambda: connection.stalled)
        client.receive_exactly(8_000_000)
        wait_until(lambda: not connection.stalled)
    # It is not watched for writability any more, which would be one event after the other.
    passes = server.loop.passes
    fired = threading.Event()
    server.call(server.loop.call_later, 0.03, fired.set)
    assert fired.wait(10)
    assert server.loop.passes - passes < 20


def test_the_cap_on_unsent_bytes_aborts(start):
    protocol = recorder()
    server = start(protocol, small_limits(max_unsent_bytes=1 << 20))
    client = server.connect(receive_buffer=4096)
    connection = server.connection()

    for _ in range(1000):
        if not connection.closing:
            server.call(connection.write, bytes(65536))
    server.wait_empty()
    assert protocol.events[-1] == ("close", "LimitError")
    assert server.limit_hits("unsent") == 1
    assert server.server.stats.failed == 1
    assert connection.unsent_bytes == 0
    assert client.socket.recv(1) == b"\0"


def test_one_slow_reader_does_not_hold_up_others(start):
    protocol = recorder(Multiplier, factor=10)
    server = start(protocol, small_limits())
    slow = server.connect(receive_buffer=4096)
    slow.send_until_full()
    other = server.connect()
    for _ in range(20):
        assert other.ask(b"ab", 20) == b"ab" * 10


def test_a_truncated_stream_ends_in_a_reset(start: Callable[..., RunningServer]) -> None:
    server = start(Protocol)
    client = server.connect(receive_buffer=4096)
    connection = server.connection()
    server.call(connection.write, bytes(8 << 20))
    wait_until(lambda: server.call(lambda: connection.stalled), "more than the kernel takes")
    server.call(connection.abort)
    assert client.was_reset()


def test_an_abort_with_nothing_unsent_is_an_orderly_end(start: Callable[..., RunningServer]) -> None:
    server = start(Protocol)
    client = server.connect()
    server.call(server.connection().abort)
    assert not client.was_reset()

"""What a sweep looks at and what it leaves alone, in memory: each second is where it belongs."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Callable

import pytest

from evloop import Connection, Limits, LineProtocol, Protocol, State
from evloop.server.sweeper import Sweeper
from evloop.testing import MemoryLoop, MemoryStream
from harness import recorder


class Swept:
    """Streams in one loop, and the sweeper that looks after them as a server's does."""

    def __init__(self, **limits: float | None) -> None:
        self.loop = MemoryLoop()
        self.limits = Limits(**{"write_timeout_s": None, **limits})
        self.connections: dict[Connection, None] = {}
        self.sweeper = Sweeper(self.loop, self.connections, self.limits)

    def stream(self, protocol: Protocol | None = None, peer_reads: int | None = None) -> MemoryStream:
        """A stream that it looks after."""
        protocol = Protocol() if protocol is None else protocol
        stream = MemoryStream(protocol, limits=self.limits, loop=self.loop, peer_reads=peer_reads)
        self.connections[stream.connection] = None
        return stream


def forget(swept: Swept, stream: MemoryStream) -> None:
    """What a server does when a connection is over."""
    del swept.connections[stream.connection]
    swept.sweeper.forget(stream.connection)


def begin_a_line(stream: MemoryStream) -> None:
    stream.feed(b"begun")


def write_more_than_is_read(stream: MemoryStream) -> None:
    stream.connection.write(b"not read")


@pytest.mark.parametrize("leave_something", [begin_a_line, write_more_than_is_read])
def test_who_is_gone_is_not_remembered(leave_something: Callable[[MemoryStream], None]):
    swept = Swept(message_timeout_s=60, write_timeout_s=60)
    stream = swept.stream(LineProtocol(), peer_reads=0)
    leave_something(stream)
    stream.advance(10)  # it has been seen by some sweeps
    remembered = weakref.ref(stream.connection.socket)  # as a connection can't be referred to weakly
    stream.reset()
    forget(swept, stream)
    del stream
    gc.collect()
    assert remembered() is None


def test_who_lingers_is_left_to_the_linger_timeout():
    swept = Swept(idle_timeout_s=1, linger_timeout_s=4)
    stream = swept.stream()
    stream.connection.close()
    stream.advance(3.9)
    assert stream.connection.state is State.LINGERING
    stream.advance(0.2)
    assert stream.connection.state is State.CLOSED
    assert stream.limits_hit == {"linger-timeout": 1}


def test_who_reads_nothing_is_left_to_the_write_timeout():
    swept = Swept(idle_timeout_s=1, write_timeout_s=10)
    stream = swept.stream(peer_reads=0)
    stream.connection.write(b"not read")
    stream.advance(9)
    assert stream.connection.state is State.OPEN
    stream.advance(4)
    assert stream.limits_hit == {"write-timeout": 1}


def test_who_reads_nothing_is_idle_where_there_is_no_write_timeout():
    swept = Swept(idle_timeout_s=1)
    stream = swept.stream(peer_reads=0)
    stream.connection.write(b"not read")
    stream.advance(2)
    assert stream.limits_hit == {"idle-timeout": 1}


def test_a_sweep_over_thousands_takes_several_passes():
    # A thousand in a pass is some 0.2 ms; ten thousand at once would be felt by everybody.
    swept = Swept(idle_timeout_s=60)
    ended_in: Counter[int] = Counter()

    class Ends(Protocol):
        def on_close(self, error: Exception | None) -> None:
            ended_in[swept.loop.passes] += 1

    for _ in range(1003):
        swept.stream(Ends())
    swept.loop.advance(70)
    assert sorted(ended_in.values()) == [3, 1000]
    first, second = sorted(ended_in)
    assert second == first + 1


def test_stopped_it_ends_nobody():
    swept = Swept(idle_timeout_s=1)
    protocol = recorder()()
    stream = swept.stream(protocol)
    swept.sweeper.stop()
    swept.sweeper.stop()
    stream.advance(100)
    assert protocol.events == ["connect"]
    assert swept.loop.timers == 0


def test_a_message_of_who_is_paused_is_not_late():
    swept = Swept(message_timeout_s=1)
    stream = swept.stream(LineProtocol())
    begin_a_line(stream)
    stream.connection.pause_reading()
    stream.advance(100)
    assert stream.connection.state is State.OPEN
    stream.connection.resume_reading()
    stream.advance(0.9)
    assert stream.connection.state is State.OPEN
    stream.advance(0.6)
    assert stream.limits_hit == {"message-timeout": 1}


@pytest.mark.parametrize("spoke", [False, True])
def test_after_a_time_in_which_nothing_ran_nobody_is_judged_by_the_first_sweep(spoke):
    swept = Swept(idle_timeout_s=4)
    stream = swept.stream()
    stream.advance(1)
    swept.loop.clock.now += 3600  # suspended
    if spoke:
        stream.feed(b"sent meanwhile, and read when the process goes on")
    stream.advance(0.1)
    assert stream.connection.state is State.OPEN
    stream.advance(2)
    assert (stream.connection.state is State.OPEN) == spoke
    stream.advance(3)
    assert stream.connection.state is State.CLOSED


def test_a_loop_that_is_always_late_has_its_timeouts_too():
    swept = Swept(idle_timeout_s=4)
    stream = swept.stream()
    for late_s in (0.3, 3, 3):
        assert stream.connection.state is State.OPEN
        swept.loop.clock.now += late_s
        stream.advance()
    assert stream.limits_hit == {"idle-timeout": 1}


@pytest.mark.parametrize("half_open", [False, True])
def test_who_is_not_watched_and_was_reset_is_found_within_a_second(half_open):
    swept = Swept()
    protocol = recorder(keep_half_open=True)()
    stream = swept.stream(protocol)
    if half_open:
        stream.eof()
    else:
        stream.connection.pause_reading()
    stream.advance(10)
    stream.reset()
    stream.advance(1.1)
    assert protocol.events[-1] == ("close", "ConnectionResetError")


def test_a_protocol_that_cannot_tell_its_message_is_ended():
    class Fragile(Protocol):
        def message_in_progress(self) -> int:
            return 1 // 0

    swept = Swept(message_timeout_s=1)
    stream = swept.stream(Fragile())
    with pytest.raises(ZeroDivisionError):
        stream.advance(1)
    assert stream.connection.state is State.CLOSED


def test_time_outs_are_kept_by_who_moves_and_not_by_who_moved_once():
    swept = Swept(idle_timeout_s=10)
    stream = swept.stream()
    for _ in range(5):
        stream.feed(b"x")
        stream.advance(9.9)
        assert stream.connection.state is State.OPEN
    stream.feed(b"x")
    stream.advance(13)
    assert stream.connection.state is State.CLOSED

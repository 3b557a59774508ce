"""What a sweep looks at and what it leaves alone, in memory: each second is where it belongs."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Callable

import pytest

from evloop import Connection, Limits, LineProtocol, Protocol, State
from evloop.net.sweeper import Sweeper
from evloop.testing import MemoryLoop, MemoryStream
from servers import recorder


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
    stream.advance(0.5)  # it has been seen to wait
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


@pytest.mark.parametrize(("late_s", "judged"), [(0.2, True), (0.3, False)])
def test_a_sweep_is_late_from_a_quarter_of_its_interval_on(late_s, judged):
    swept = Swept(idle_timeout_s=12)
    stream = swept.stream()
    stream.advance(11.9)
    swept.loop.clock.now += 0.1 + late_s
    stream.advance()
    assert stream.connection.closing == judged


@pytest.mark.parametrize("idle_s", [12, 13])
def test_a_sweep_that_is_not_late_judges(idle_s):
    swept = Swept(idle_timeout_s=idle_s)
    stream = swept.stream()
    stream.advance(idle_s - 0.1)
    assert not stream.connection.closing
    stream.advance(0.2)
    assert stream.connection.closing


def test_without_timeouts_it_sweeps_once_in_a_second():
    swept = Swept()
    passes = swept.loop.passes
    swept.loop.advance(100)
    assert 100 <= swept.loop.passes - passes <= 102


def test_stopped_in_the_middle_of_a_sweep_it_looks_at_nobody_more():
    swept = Swept(idle_timeout_s=60)
    ended: list[Protocol] = []

    class Ends(Protocol):
        def on_close(self, error: Exception | None) -> None:
            ended.append(self)
            swept.sweeper.stop()

    for _ in range(1003):
        swept.stream(Ends())
    swept.loop.advance(70)
    assert len(ended) == 1000


class Acknowledged:
    """Stands for what a kernel knows of the peer's: how much it has not acknowledged, and how often it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, unacknowledged: int) -> None:
        self.unacknowledged = unacknowledged
        self.asked = 0
        monkeypatch.setattr("evloop.net.sweeper.unacknowledged_bytes", self.ask)

    def ask(self, sock: object) -> int:
        """As `evloop.net.sockets.unacknowledged_bytes`."""
        self.asked += 1
        return self.unacknowledged


def test_who_acknowledges_nothing_of_what_the_kernel_took_is_ended(monkeypatch):
    Acknowledged(monkeypatch, 100)
    swept = Swept(write_timeout_s=6)
    stream = swept.stream()
    stream.connection.write(b"taken by the kernel")
    stream.advance(5.9)
    assert not stream.connection.closing
    stream.advance(2)
    assert stream.limits_hit == {"write-timeout": 1}


def test_who_acknowledges_slowly_is_neither_stalled_nor_idle(monkeypatch):
    kernel = Acknowledged(monkeypatch, 50)
    swept = Swept(write_timeout_s=4, idle_timeout_s=4)
    stream = swept.stream()
    stream.connection.write(b"taken by the kernel")
    while kernel.unacknowledged:
        stream.advance(1)
        assert not stream.connection.closing
        kernel.unacknowledged -= 1
    stream.advance(3)
    assert not stream.connection.closing
    stream.advance(3)
    assert stream.limits_hit == {"idle-timeout": 1}


def test_what_is_on_its_way_has_a_second_however_short_the_write_timeout_is(monkeypatch):
    Acknowledged(monkeypatch, 100)
    swept = Swept(write_timeout_s=0.12)
    on_its_way, stalled = swept.stream(), swept.stream(peer_reads=0)
    for stream in (on_its_way, stalled):
        stream.connection.write(b"reply")
    swept.loop.advance(0.5)
    assert stalled.connection.closing
    assert not on_its_way.connection.closing
    swept.loop.advance(0.6)
    assert on_its_way.connection.closing


def test_the_kernel_is_asked_about_who_has_just_become_quiet_and_about_nobody_else(monkeypatch):
    kernel = Acknowledged(monkeypatch, 0)
    swept = Swept(write_timeout_s=60)
    stream = swept.stream()
    swept.loop.advance(10)
    for _ in range(20):
        stream.feed(b"x")
        stream.advance(1)  # a sweep: not quiet
    before = kernel.asked
    stream.advance(100)
    assert 1 <= kernel.asked - before <= 2
    assert before <= 3  # when it was new


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


@pytest.mark.parametrize("leave_something", [begin_a_line, write_more_than_is_read])
def test_a_timeout_counts_from_the_sweep_that_saw_it_first_and_is_over_when_its_time_is(leave_something):
    swept = Swept(message_timeout_s=12, write_timeout_s=12)  # a sweep at each full second
    stream = swept.stream(LineProtocol(), peer_reads=0)
    swept.loop.advance(0.5)
    leave_something(stream)
    stream.advance(12.4)
    assert not stream.connection.closing
    stream.advance(0.1)
    assert stream.connection.closing


def test_who_goes_on_sending_and_reads_nothing_is_stalled_all_the_same():
    swept = Swept(write_timeout_s=12)
    stream = swept.stream(peer_reads=0)
    stream.connection.write(b"not read")
    for _ in range(13):
        assert not stream.connection.closing
        stream.feed(b"x")
        stream.advance(1)
    assert stream.limits_hit == {"write-timeout": 1}


def test_a_message_is_not_late_once_we_have_closed():
    swept = Swept(message_timeout_s=1)
    stream = swept.stream(LineProtocol(), peer_reads=0)
    begin_a_line(stream)
    write_more_than_is_read(stream)
    stream.connection.close()
    stream.advance(60)
    assert stream.connection.state is State.FLUSHING

"""What tasks write to streams, and how a stream ends."""

from __future__ import annotations

import pytest

from coroutines import handled, no_task_is_left  # noqa: F401  (a fixture)
from evloop import (
    ConnectionLostError,
    Event,
    Limits,
    Stream,
    TaskGroup,
    sleep,
)
from evloop.protocols.handlers import Handlers
from evloop.testing import MemoryLoop


async def upper(stream: Stream) -> None:
    async for line in stream.lines():
        stream.write(line.upper() + b"\n")


# ---------------------------------------------------------------------- writing and flow control


def test_writes_of_many_sizes_keep_their_order():
    async def handler(stream: Stream) -> None:
        async for line in stream.lines():
            for number in range(int(line)):
                stream.write(b"%d," % number)
                if number % 7 == 0:
                    stream.write(bytearray(b"x" * 2000))
                if number % 50 == 0:
                    await sleep(0)

    def expected(count: int) -> bytes:
        return b"".join(b"%d," % number + b"x" * (2000 if number % 7 == 0 else 0) for number in range(count))

    peer = handled(handler)
    assert peer.feed(b"300\n5\n1\n") == expected(300) + expected(5) + expected(1)
    peer.eof()


def test_a_write_of_what_is_not_bytes_is_an_error_in_its_line():
    async def handler(stream: Stream) -> None:
        await stream.read()
        stream.write("text")  # here

    peer = handled(handler)
    with pytest.raises(TypeError) as raised:
        peer.feed(b"x")
    assert raised.traceback[-1].path.name != "streams.py"
    assert any("# here" in str(entry.statement) for entry in raised.traceback)


@pytest.mark.parametrize("lines_at_once", [1, 3000])
def test_awaiting_a_write_waits_while_the_peer_does_not_read(lines_at_once):
    written = []

    async def handler(stream: Stream) -> None:
        async for _ in stream.lines():
            for _ in range(100):
                await stream.write(b"x" * 5000)
                written.append(stream.connection.unsent_bytes)

    peer = handled(handler, peer_reads=0, limits=Limits(high_water_bytes=20_000, low_water_bytes=5_000))
    peer.feed(b"go\n" * lines_at_once)
    peer.advance(60)
    assert len(written) < 10
    assert max(written) <= 25_000
    for _ in range(20):
        peer.peer_reads(50_000)
    assert max(written) <= 25_000
    assert len(written) >= 100
    peer.reset()


def test_a_peer_that_reads_all_never_makes_a_writer_wait_for_ever():
    """Also not one that writes much in a turn of many lines, in which the kernel is offered nothing."""

    async def handler(stream: Stream) -> None:
        async for line in stream.lines():
            if line == b"go":
                in_turns.append(stream.connection.batch is not None)
                await stream.write(b"x" * 100_000)

    in_turns: list[bool] = []
    peer = handled(handler)
    peer.feed((b"no\n" * 300 + b"go\n") * 100)
    peer.advance(1)
    peer.eof()
    assert len(peer.sent) == 100 * 100_000
    assert peer.closed
    assert any(in_turns)


def test_a_write_that_nobody_awaits_makes_no_noise(recwarn):
    async def handler(stream: Stream) -> None:
        stream.write(b"x" * 100_000)
        await stream.read()

    peer = handled(handler, peer_reads=10)
    peer.reset()
    assert not list(recwarn)


def test_a_writer_that_waits_learns_that_the_connection_is_lost():
    ends = []

    async def handler(stream: Stream) -> None:
        try:
            await stream.write(b"x" * 100_000)
        except ConnectionLostError:
            ends.append("writer")
        with pytest.raises(ConnectionLostError):
            stream.write(b"more")
        with pytest.raises(ConnectionLostError, match="reset"):
            await stream.read()

    peer = handled(handler, peer_reads=10)
    peer.feed(b"x")
    peer.reset()
    assert ends == ["writer"]


def test_who_does_not_read_is_sent_no_more_than_the_high_water_mark():
    event = Event()

    async def handler(stream: Stream) -> None:
        await event.wait()
        size = 0
        while data := await stream.read():
            size += len(data)
        stream.write(b"%d" % size)

    peer = handled(handler, limits=Limits(high_water_bytes=20_000, low_water_bytes=5_000))
    for _ in range(100):
        peer.feed(b"x" * 5000)
    assert peer.connection.paused
    assert peer.connection.bytes_received < 100_000
    assert peer.connection.protocol.held_bytes() == peer.connection.bytes_received
    event.set()
    peer.eof()
    assert peer.sent == b"500000"


def test_many_small_pieces_that_nobody_reads_cost_linear_time():
    async def handler(stream: Stream) -> None:
        await sleep(10)
        stream.write(b"%d" % len(await stream.read()))

    peer = handled(handler)
    stream = peer.connection.protocol
    for _ in range(20_000):
        stream._keep(b"x")
    assert peer.advance(11) == b"20000"


# ---------------------------------------------------------------------- ends


def test_a_peer_that_resets_is_quiet():
    async def handler(stream: Stream) -> None:
        async for _ in stream.lines():
            pass

    peer = handled(handler)
    peer.feed(b"x\n")
    peer.reset()  # raises nothing, and the check of each test sees that nothing was logged
    assert peer.connection.closing


def test_what_a_handler_raises_costs_its_connection_and_shows_its_lines():
    async def handler(stream: Stream) -> None:
        await stream.read()
        raise ValueError("mine")

    peer = handled(handler)
    with pytest.raises(ValueError, match="mine") as raised:
        peer.feed(b"x")
    assert peer.connection.closing
    assert raised.traceback[-1].name == "handler"


def test_a_handler_that_goes_on_after_it_has_closed_is_not_cancelled():
    done = []

    async def handler(stream: Stream) -> None:
        stream.write(b"bye")
        stream.close()
        await sleep(10)
        done.append(1)

    peer = handled(handler)
    assert peer.sent == b"bye"
    assert peer.closed
    peer.advance(11)
    assert done == [1]


def test_after_the_half_close_of_the_peer_it_may_write_on():
    async def handler(stream: Stream) -> None:
        total = 0
        while data := await stream.read():
            total += len(data)
        await sleep(100)
        await stream.write(b"%d bytes" % total)

    peer = handled(handler)
    peer.feed(b"12345")
    peer.eof()
    assert peer.advance(101) == b"5 bytes"
    assert peer.closed


def test_async_with_closes_or_aborts():
    async def orderly(stream: Stream) -> None:
        async with stream as same:
            assert same is stream
            same.write(b"bye")
        await sleep(1)

    async def faulty(stream: Stream) -> None:
        async with stream:
            raise ValueError

    peer = handled(orderly)
    assert (peer.sent, peer.closed, peer.was_reset) == (b"bye", True, False)
    peer.advance(2)
    with pytest.raises(ValueError):
        handled(faulty)


# ---------------------------------------------------------------------- other tasks of a stream


def test_another_task_writes_while_one_reads():
    async def handler(stream: Stream) -> None:
        async def tick() -> None:
            for number in range(3):
                await sleep(1)
                stream.write(b"%d" % number)

        async with TaskGroup() as group:
            group.create_task(tick())
            async for line in stream.lines():
                stream.write(line)

    peer = handled(handler)
    peer.feed(b"a\n")
    peer.advance(1)
    peer.feed(b"b\n")
    peer.advance(5)
    assert peer.sent == b"a0b12"
    peer.eof()
    assert peer.closed


def test_two_loops_in_turn_do_not_mix_up_their_tasks():
    async def handler(stream: Stream) -> None:
        async for line in stream.lines():
            await sleep(0)
            stream.write(line)

    one, other = handled(handler), handled(handler)
    for _ in range(3):
        assert one.feed(b"one\n") == b"one"
        assert other.feed(b"other\n") == b"other"
    one.eof(), other.eof()


class Foreign:
    def __init__(self, what: object) -> None:
        self.what = what

    def __await__(self):
        yield self.what


@pytest.mark.parametrize("what", [None, 1, b"bytes"])
def test_foreign_awaitables_are_found_out_before_they_swallow_data(what):
    async def handler(stream: Stream) -> None:
        async for _ in stream.lines():
            await Foreign(what)

    peer = handled(handler)
    with pytest.raises(TypeError, match="another event loop"):
        peer.feed(b"x\n")
    assert peer.connection.closing


def test_an_outgoing_handler_in_memory():
    async def client(stream: Stream) -> None:
        stream.write(b"hello\n")
        got.append(await anext(stream.lines()))

    got: list[bytes] = []
    loop = MemoryLoop()
    loop.join(Handlers(loop, client)(), Handlers(loop, upper)())
    assert got == [b"HELLO"]

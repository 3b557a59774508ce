"""Streams: what a handler reads and writes, in memory, fed in every way."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coroutines import handled, no_task_is_left  # noqa: F401  (a fixture)
from evloop import (
    ConnectionLostError,
    Event,
    IncompleteReadError,
    LimitError,
    Limits,
    Stream,
    TaskGroup,
    sleep,
    timeout,
)
from evloop.protocols.handlers import Handlers
from evloop.testing import MemoryLoop

# ---------------------------------------------------------------------- reading


async def upper(stream: Stream) -> None:
    async for line in stream.lines():
        stream.write(line.upper() + b"\n")


async def upper_in_batches(stream: Stream) -> None:
    async for lines in stream.batches():
        stream.write(b"".join([line.upper() + b"\n" for line in lines]))


async def upper_by_anext(stream: Stream) -> None:
    lines = stream.lines()
    while (line := await anext(lines, None)) is not None:
        stream.write(line.upper() + b"\n")


async def upper_after_a_nap(stream: Stream) -> None:
    async for line in stream.lines():
        await sleep(1)
        stream.write(line.upper() + b"\n")


@pytest.mark.parametrize("handler", [upper, upper_in_batches, upper_by_anext, upper_after_a_nap])
@pytest.mark.parametrize("step", [1, 7, 1000])
@pytest.mark.parametrize(
    ("sent", "answered"),
    [(b"one\ntwo\r\n\nthree\n", b"ONE\nTWO\n\nTHREE\n"), (b"no end", b"NO END\n"), (b"", b"")],
)
def test_lines(handler, step, sent, answered):
    peer = handled(handler)
    for place in range(0, len(sent), step):
        peer.feed(sent[place : place + step])
    peer.eof()
    peer.advance(60)
    assert peer.sent == answered
    assert peer.closed
    assert not peer.was_reset


def test_a_reply_leaves_with_the_data_that_it_answers():
    peer = handled(upper)
    assert peer.feed(b"one\ntw") == b"ONE\n"
    assert peer.feed(b"o\n") == b"TWO\n"
    peer.eof()


async def mixed(stream: Stream) -> None:
    """A line says what is to be read next."""
    async for line in stream.lines():
        kind, _, argument = line.partition(b" ")
        if kind == b"exactly":
            stream.write(b"<" + await stream.read_exactly(int(argument)) + b">")
        elif kind == b"until":
            stream.write(b"<" + await stream.read_until(argument) + b">")
        elif kind == b"break":
            break
        else:
            stream.write(b"[" + line + b"]")
    while data := await stream.read(3):
        stream.write(data)


MIXED = b"one\nexactly 5\n1\n345two\nuntil ==\nab\nc==three\nbreak\nfour\nfi\nve"
MIXED_ANSWER = b"[one]<1\n345>[two]<ab\nc==>[three]four\nfi\nve"


@pytest.mark.parametrize("place", range(len(MIXED) + 1))
def test_lines_and_bytes_in_turn_lose_nothing_wherever_it_is_cut(place):
    peer = handled(mixed)
    for part in (MIXED[:place], MIXED[place:]):
        if part:
            peer.feed(part)
    peer.eof()
    assert peer.sent == MIXED_ANSWER


@given(st.lists(st.integers(0, len(MIXED)), max_size=20))
def test_lines_and_bytes_in_turn_lose_nothing_in_many_pieces(places):
    peer = handled(mixed)
    for start, end in itertools.pairwise(sorted({0, *places, len(MIXED)})):
        peer.feed(MIXED[start:end])
    peer.eof()
    assert peer.sent == MIXED_ANSWER


@pytest.mark.parametrize("size", [3, 10**6])
def test_the_stream_ends_in_the_middle(size):
    caught = []

    async def handler(stream: Stream) -> None:
        try:
            await stream.read_exactly(size)
            await stream.read_until(b"never")
        except IncompleteReadError as error:
            caught.append(error.partial)
        with pytest.raises(IncompleteReadError):
            await stream.read_exactly(1)
        assert await stream.read() == b""
        assert [line async for line in stream.lines()] == []

    peer = handled(handler)
    peer.feed(b"abcdef")
    peer.eof()
    assert caught == [b"abcdef"[3 if size == 3 else 0 :]]


def test_a_line_that_is_too_long_comes_after_those_before_it(logged):
    logged.expect("ended: a line of more than 65536 bytes")
    got = []

    async def handler(stream: Stream) -> None:
        try:
            async for line in stream.lines():
                got.append(line)
        except LimitError as error:
            got.append(error.limit.encode())
            raise

    text = b"one\ntwo\n" + b"x" * 70_000 + b"\nthree\n"
    for step in (5, 1000, 200_000):
        got.clear()
        peer = handled(handler)
        for place in range(0, len(text), step):
            peer.feed(text[place : place + step])
        assert got == [b"one", b"two", b"max-line"]
        assert peer.limits_hit == {"max-line": 1}  # counted once
        assert peer.connection.closing


@pytest.mark.parametrize("size", [0, 1, 64, 65])
def test_read_until_has_a_limit(size):
    outcome = []

    async def handler(stream: Stream) -> None:
        try:
            outcome.append(await stream.read_until(b"\r\n", limit_bytes=64))
        except LimitError:
            outcome.append("limit")

    text = b"x" * size + b"\r\n"
    for step in (1, 1000):
        outcome.clear()
        peer = handled(handler)
        for place in range(0, len(text), step):
            peer.feed(text[place : place + step])
        assert outcome == [text if size <= 64 else "limit"]
        peer.eof()


@pytest.mark.parametrize(("function", "argument"), [("read", 0), ("read_exactly", -1)])
def test_sizes_that_make_no_sense(function, argument):
    async def handler(stream: Stream) -> None:
        await getattr(stream, function)(argument)

    with pytest.raises(ValueError, match="must"):
        handled(handler)


def test_a_time_out_for_each_line_and_none_is_lost_by_it():
    async def handler(stream: Stream) -> None:
        lines = stream.lines()
        for _ in range(4):
            try:
                async with timeout(5):
                    stream.write(b"<" + await anext(lines) + b">")
            except TimeoutError:
                stream.write(b"late ")

    peer = handled(handler)
    peer.feed(b"one\nha")
    peer.advance(6)
    peer.feed(b"lf\ntwo\n")
    assert peer.sent == b"<one>late <half><two>"


def test_two_tasks_cannot_read_at_the_same_time():
    async def handler(stream: Stream) -> None:
        async with TaskGroup() as group:
            group.create_task(stream.read())
            group.create_task(stream.read())

    with pytest.raises(ExceptionGroup) as raised:
        handled(handler)
    assert "another task is reading" in str(raised.value.exceptions[0])


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

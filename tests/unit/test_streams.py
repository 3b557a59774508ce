"""Streams: what a handler reads and writes, in memory, fed in every way."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coroutines import handled, no_task_is_left  # noqa: F401  (a fixture)
from evloop import (
    IncompleteReadError,
    LimitError,
    Stream,
    TaskGroup,
    sleep,
    timeout,
)

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


async def pairs_by_anext(stream: Stream) -> None:
    async for line in stream.lines():
        stream.write(b"<" + line + b"," + await anext(stream.lines(), b"") + b">")


async def pairs_by_another_loop(stream: Stream) -> None:
    async for line in stream.lines():
        async for second in stream.lines():
            stream.write(b"<" + line + b"," + second + b">")
            break


async def pairs_by_batches(stream: Stream) -> None:
    first = None
    async for lines in stream.batches():
        lines.append(await anext(stream.lines(), b""))
        for line in lines:
            if first is None:
                first = line
            else:
                stream.write(b"<" + first + b"," + line + b">")
                first = None


@pytest.mark.parametrize("handler", [pairs_by_anext, pairs_by_another_loop, pairs_by_batches])
@pytest.mark.parametrize("place", range(9))
def test_a_loop_in_whose_body_lines_are_read_loses_none(handler, place):
    peer = handled(handler)
    for part in (b"a\nb\nc\nd\n"[:place], b"a\nb\nc\nd\n"[place:]):
        if part:
            peer.feed(part)
    peer.eof()
    assert peer.sent == b"<a,b><c,d>"


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

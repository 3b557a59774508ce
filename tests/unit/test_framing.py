"""The line framer, fed three ways, against an oracle that is slow and obviously right."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from evloop import LineFramer

NO_LIMIT = 1 << 30


def oracle(data: bytes, limit: int) -> list[bytes | None]:
    """The lines of a whole stream: split at LF, strip one CR, drop what is too long."""
    *ended, last = data.split(b"\n")
    lines = [line[:-1] if line.endswith(b"\r") else line for line in ended]
    if last:  # unterminated: without an LF, a CR is an ordinary byte
        lines.append(last)
    return [line if len(line) <= limit else None for line in lines]


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    """``data`` in pieces that end at ``cuts``, taken modulo its length; no piece is empty."""
    places = sorted({cut % len(data) for cut in cuts} - {0}) if data else []
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True) if start < end]


def frame(pieces: list[bytes], limit: int) -> list[bytes | None]:
    framer = LineFramer(limit)
    lines = [line for piece in pieces for line in framer.feed(piece)]
    lines += framer.finish()
    assert not framer.in_line
    assert framer.finish() == []
    return lines


@pytest.fixture(params=["whole", "byte by byte", "with the next message's first byte", "split before each LF"])
def pieces(request):
    """How a stream is cut into pieces."""

    def whole(data: bytes) -> list[bytes]:
        return [data] if data else []

    def byte_by_byte(data: bytes) -> list[bytes]:
        return [data[n : n + 1] for n in range(len(data))]

    def with_next(data: bytes) -> list[bytes]:
        return cut(data, [n + 2 for n, byte in enumerate(data) if byte == 10 and n + 2 < len(data)])

    def before_lf(data: bytes) -> list[bytes]:
        return cut(data, [n for n, byte in enumerate(data) if byte == 10])

    return {
        "whole": whole,
        "byte by byte": byte_by_byte,
        "with the next message's first byte": with_next,
        "split before each LF": before_lf,
    }[request.param]


@pytest.mark.parametrize(
    ("data", "limit", "lines"),
    [
        (b"", 10, []),
        (b"one\n", 10, [b"one"]),
        (b"one\ntwo\n", 10, [b"one", b"two"]),
        (b"\n", 10, [b""]),
        (b"\n\n\n", 10, [b"", b"", b""]),
        (b"unterminated", 20, [b"unterminated"]),
        (b"one\nunterminated", 20, [b"one", b"unterminated"]),
        # one CR before the LF belongs to the terminator, and no other CR does
        (b"one\r\ntwo\r\n", 10, [b"one", b"two"]),
        (b"\r\n", 10, [b""]),
        (b"one\r\r\n", 10, [b"one\r"]),
        (b"a\rb\n", 10, [b"a\rb"]),
        (b"\ra\n", 10, [b"\ra"]),
        (b"\r\r\r\n", 10, [b"\r\r"]),
        (b"one\r", 10, [b"one\r"]),  # at the end of the stream no LF follows
        (b"\r", 10, [b"\r"]),
        # other line breaks are text
        (b"a\x0bb\x0cc\x85\xe2\x80\xa8d\n", 20, [b"a\x0bb\x0cc\x85\xe2\x80\xa8d"]),
        (b"nul\0nul\n", 10, [b"nul\0nul"]),
        # the limit counts the line, not its terminator
        (b"12345\n", 5, [b"12345"]),
        (b"12345\r\n", 5, [b"12345"]),
        (b"123456\n", 5, [None]),
        (b"12345\r\r\n", 5, [None]),
        (b"12345\r", 5, [None]),
        (b"12345", 5, [b"12345"]),
        (b"123456", 5, [None]),
        (b"123456\nnext\n", 5, [None, b"next"]),
        (b"ok\n" + b"x" * 1000 + b"\nok\n", 5, [b"ok", None, b"ok"]),
        (b"xxxxxx\nyyyyyy\n", 5, [None, None]),
        (b"\n", 0, [b""]),
        (b"\r\n", 0, [b""]),
        (b"a\n", 0, [None]),
    ],
)
def test_lines(data, limit, lines, pieces):
    assert oracle(data, limit) == lines
    assert frame(pieces(data), limit) == lines


# Streams in which everything that matters happens often.
streams = st.lists(st.sampled_from([b"\n", b"\r", b"\r\n", b"a", b"bcd", b"\xc3\xa9", b"", b"x" * 9]), max_size=60).map(
    b"".join
)
limits = st.one_of(st.integers(0, 12), st.just(NO_LIMIT))


@given(streams, limits, st.lists(st.integers(0, 1000), max_size=30))
@example(b"12345\r\n", 5, [6])
@example(b"12345\r\r\n", 5, [6, 7])
def test_random_splits_agree_with_the_oracle(data: bytes, limit: int, cuts: list[int]):
    assert frame(cut(data, cuts), limit) == oracle(data, limit)


@given(streams, limits)
def test_byte_by_byte_agrees_with_the_oracle(data: bytes, limit: int):
    assert frame([data[n : n + 1] for n in range(len(data))], limit) == oracle(data, limit)


@given(st.binary(max_size=300), limits, st.lists(st.integers(0, 1000), max_size=10))
def test_any_bytes_agree_with_the_oracle(data: bytes, limit: int, cuts: list[int]):
    assert frame([data], limit) == oracle(data, limit)
    assert frame(cut(data, cuts), limit) == oracle(data, limit)


@given(streams, limits, st.integers(0, 1000))
def test_a_line_is_delivered_with_the_piece_that_ends_it(data: bytes, limit: int, place: int):
    place = place % (len(data) + 1)
    framer = LineFramer(limit)
    assert len(framer.feed(data[:place])) == data[:place].count(b"\n")
    assert framer.in_line == bool(data[:place].rpartition(b"\n")[2])


def test_empty_pieces_change_nothing():
    framer = LineFramer(10)
    assert framer.feed(b"") == []
    assert not framer.in_line
    assert framer.feed(b"ab") == []
    assert framer.feed(b"") == []
    assert framer.feed(b"c\n") == [b"abc"]


def test_an_overlong_line_is_not_held_however_it_comes():
    framer = LineFramer(10)
    for size, held in ((6, 6), (5, 11), (1, 0), (6, 0), (100, 0)):  # one more than the limit may be a CR
        assert framer.feed(b"x" * size) == []
        assert framer.held_bytes == held
    assert framer.feed(b"y\nnext\n") == [None, b"next"]


@pytest.mark.parametrize("last", [b"X", b"XX", b"\r", b"x" * 10])
def test_the_last_line_is_delivered_as_it_is(last):
    framer = LineFramer(10)
    assert framer.feed(b"one\n" + last) == [b"one"]
    assert framer.finish() == [last]


def test_lines_after_finish_start_anew():
    framer = LineFramer(10)
    framer.feed(b"rest")
    assert framer.finish() == [b"rest"]
    assert framer.feed(b"new\n") == [b"new"]


def test_a_negative_limit_is_refused():
    with pytest.raises(ValueError, match="limit_bytes must not be negative, got -1"):
        LineFramer(-1)


def test_an_overlong_line_is_not_held():
    framer = LineFramer(1000)
    piece = b"x" * 4096
    tracemalloc = pytest.importorskip("tracemalloc", reason="PyPy cannot count memory so")
    tracemalloc.start()
    try:
        for _ in range(1000):
            assert framer.feed(piece) == []
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert framer.in_line
    assert held < 2000
    assert peak < 20_000
    assert framer.feed(b"\nnext\n") == [None, b"next"]

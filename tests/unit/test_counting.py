"""The incremental counter, against ``len(text.decode())`` and the offsets that the decoder reports."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evloop.charcount.counting import Utf8Counter


def oracle(data: bytes) -> tuple[int | None, int | None]:
    """The number of characters, or else where the first invalid sequence starts."""
    try:
        return len(data.decode()), None
    except UnicodeDecodeError as error:
        return None, error.start


def count(pieces: list[bytes]) -> tuple[int | None, int | None]:
    counter = Utf8Counter()
    for piece in pieces:
        counter.feed(piece)
        assert len(counter.carry) <= 3
    counter.finish()
    assert counter.size == sum(map(len, pieces))
    return (counter.characters, None) if counter.invalid_at is None else (None, counter.invalid_at)


def every_split_in_three(data: bytes) -> list[list[bytes]]:
    return [[data[:a], data[a:b], data[b:]] for a in range(len(data) + 1) for b in range(a, len(data) + 1)]


VALID = ["", "a", "é", "€", "😀", "a😀é€z", "\0", "e\u0301", "👨‍👩‍👧", "\ufeff", "\U0010ffff", "\ud7ff\ue000", "\n\r"]
INVALID = [
    b"\x80",  # a continuation byte alone
    b"a\xff",
    b"\xc3",  # cut short
    b"\xe2\x82",
    b"\xf0\x9f\x98",
    b"ab\xe2\x82c",  # cut short by a letter
    b"\xf0\x9f\x98\xf0\x9f\x98\x80",  # cut short by another character
    b"\xc0\xaf",  # overlong forms
    b"\xe0\x80\xaf",
    b"\xf0\x80\x80\xaf",
    b"\xed\xa0\x80",  # a surrogate
    b"\xf4\x90\x80\x80",  # above U+10FFFF
    b"\xf8\x88\x80\x80\x80",
    "é€😀".encode() + b"\xff" + "😀".encode(),
]


@pytest.mark.parametrize("data", [*(text.encode() for text in VALID), *INVALID], ids=repr)
def test_whole_byte_by_byte_and_every_split(data):
    expected = oracle(data)
    assert count([data]) == expected
    assert count([data[n : n + 1] for n in range(len(data))]) == expected
    for pieces in every_split_in_three(data):
        assert count(pieces) == expected


@given(st.text(), st.lists(st.integers(0, 200), max_size=20))
def test_text_in_random_pieces(text: str, cuts: list[int]):
    data = text.encode()
    places = sorted(min(cut, len(data)) for cut in cuts)
    pieces = [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]
    assert count(pieces) == (len(text), None)


# Bytes that look like UTF-8 nearly everywhere.
nearly = st.lists(
    st.one_of(
        st.characters(codec="utf-8").map(str.encode),
        st.sampled_from([b"\x80", b"\xbf", b"\xc3", b"\xe2\x82", b"\xed\xa0", b"\xf0\x9f", b"\xf4\x90", b"\xff"]),
    ),
    max_size=30,
).map(b"".join)


@given(nearly, st.lists(st.integers(0, 200), max_size=20))
def test_nearly_text_in_random_pieces(data: bytes, cuts: list[int]):
    places = sorted(min(cut, len(data)) for cut in cuts)
    pieces = [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]
    assert count(pieces) == count([data]) == oracle(data)


def test_nothing_is_counted_after_invalid_bytes_but_the_size_goes_on():
    counter = Utf8Counter()
    counter.feed(b"ab\xffcd")
    counter.feed(b"\xfeef")
    counter.finish()
    assert counter.invalid_at == 2
    assert counter.size == 8
    assert counter.carry == b""


def test_an_incomplete_character_is_invalid_where_it_begins():
    counter = Utf8Counter()
    counter.feed(b"abc\xf0\x9f")
    assert counter.invalid_at is None
    assert counter.characters == 3
    counter.finish()
    assert counter.invalid_at == 3


def test_a_huge_text_is_counted_in_constant_memory():
    piece = "é€😀a".encode() * 1000
    counter = Utf8Counter()
    counter.feed(piece)
    tracemalloc = pytest.importorskip("tracemalloc", reason="PyPy cannot count memory so")
    measured = []
    for _ in range(3):  # the least counts: other threads of the test runner's allocate, too
        tracemalloc.start()
        try:
            for _ in range(200):
                counter.feed(piece[:4999])
                counter.feed(piece[4999:])
            measured.append(tracemalloc.get_traced_memory())
        finally:
            tracemalloc.stop()
    counter.finish()
    assert counter.characters == 601 * 4000
    held, peak = min(measured)
    assert held < 1000
    assert peak < 10 * len(piece)

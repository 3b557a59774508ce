"""The size of a receive, and what of it is dealt with at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evloop.net.receiving import (
    FIRST_RECV_BYTES,
    MAX_PIECE_BYTES,
    PIECE_BYTES,
    RECV_BYTES,
    larger_recv_bytes,
    piece_end,
    smaller_recv_bytes,
)


def pieces(data: bytes, message_end: bytes) -> list[bytes]:
    """All of the data, as a protocol gets it."""
    cut, start = [], 0
    while start < len(data):
        end = piece_end(data, start, message_end)
        cut.append(data[start:end])
        start = end
    return cut


def test_a_receive_grows_to_the_largest_within_three_turns():
    size = FIRST_RECV_BYTES
    for _ in range(3):
        size = larger_recv_bytes(size)
    assert size == RECV_BYTES == larger_recv_bytes(RECV_BYTES)


def test_a_receive_shrinks_to_the_first_and_not_below():
    size = RECV_BYTES
    for _ in range(4):
        size = smaller_recv_bytes(size)
    assert size == FIRST_RECV_BYTES == smaller_recv_bytes(FIRST_RECV_BYTES)


@given(st.lists(st.binary(max_size=5000), max_size=20).map(b"\n".join), st.sampled_from([b"", b"\n", b"\r\n"]))
def test_pieces_are_all_of_it_in_order(data, message_end):
    cut = pieces(data, message_end)
    assert b"".join(cut) == data
    assert all(cut)


@pytest.mark.parametrize("message_end", [b"", b"\n"])
@pytest.mark.parametrize("message", [b"\n", b"\xff\n", b"x" * 31 + b"\n"])
def test_of_short_messages_a_piece_is_small(message, message_end):
    data = message * (RECV_BYTES // len(message))
    cut = pieces(data, message_end)
    assert max(map(len, cut)) <= MAX_PIECE_BYTES + len(message)
    assert min(map(len, cut)) >= PIECE_BYTES
    if message_end:
        assert all(piece.endswith(b"\n") for piece in cut)


def test_a_long_message_is_one_piece_with_what_is_before_it():
    assert pieces(b"x" * RECV_BYTES, b"\n") == [b"x" * RECV_BYTES]
    short, long = b"y\n" * (PIECE_BYTES // 2 - 1), b"x" * 50_000 + b"\n"
    assert pieces(short + long + short * 2, b"\n") == [short + long, short * 2]


def test_where_pieces_may_be_cut_anywhere_a_long_one_is_cut_too():
    cut = pieces(b"x" * RECV_BYTES, b"")
    assert set(map(len, cut[:-1])) == {PIECE_BYTES}


def test_a_message_that_ends_where_a_piece_would_is_not_looked_past():
    data = b"x" * (PIECE_BYTES - 1) + b"\n" + b"y" * PIECE_BYTES + b"\n" + b"z" * PIECE_BYTES
    assert pieces(data, b"\n")[0] == b"x" * (PIECE_BYTES - 1) + b"\n"

"""Fuzzing: inputs of a kept corpus, mutated and cut by Hypothesis, against an oracle that shares nothing with the code.

Each input that ever found a bug belongs into the corpus: a file of bytes in tests/faults/corpus. The unit tests draw
from well-formed text; here the start is what is known to be nasty.
"""

from __future__ import annotations

from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from evloop.charcount.session import LineSession, RawSession, Replies
from evloop.protocols.lineframer import LineFramer
from faults.oracle import count_code_points, lines_of, reply_to

CORPUS = {path.stem: path.read_bytes() for path in sorted((Path(__file__).parent / "corpus").glob("*.bin"))}
REPLIES, RAW_REPLIES = Replies(), Replies(end="")
LIMITS = [None, 0, 1, 16, 479, 5000]

# What is spliced in: whatever the code treats in a special way, whole and cut.
TOKENS = [b"\n", b"\r", b"\r\n", b"\r\r\n", b"\xff", b"\xc3", b"\xe5\xad", "字".encode(), b"\xf0\x9d\x84", b"x" * 16]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """An input of the corpus after some changes."""
    data = bytearray(draw(st.sampled_from(list(CORPUS.values())))[: draw(st.sampled_from([60, 300, 5000]))])
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(data)))
        change = draw(st.integers(0, 4))
        if change == 0:
            data[at:at] = draw(st.sampled_from(TOKENS))
        elif change == 1:
            del data[at : at + draw(st.integers(1, 20))]
        elif change == 2 and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif change == 3:
            other = draw(st.sampled_from(list(CORPUS.values())))
            start = draw(st.integers(0, len(other)))
            data[at:at] = other[start : start + draw(st.integers(1, 100))]
        else:
            data[at:at] = data[max(at - 40, 0) : at] * draw(st.integers(1, 4))
    return bytes(data)


cuts = st.lists(st.one_of(st.integers(1, 5), st.integers(1, 1000)), min_size=1, max_size=12)


def pieces(data: bytes, sizes: list[int]) -> list[bytes]:
    """``data`` cut into pieces of these sizes, over and over."""
    found, position, number = [], 0, 0
    while position < len(data):
        size = sizes[number % len(sizes)]
        found.append(data[position : position + size])
        position += size
        number += 1
    return found


def check_line_session(data: bytes, sizes: list[int], limit: int | None) -> None:
    session = LineSession(REPLIES, limit)
    position, answered = 0, b""
    for piece in pieces(data, sizes):
        answered += session.feed(piece)
        position += len(piece)
        # After each piece: exactly the lines that have ended are answered, and it knows whether one has begun.
        assert answered.count(b"\n") == data[:position].count(b"\n") == session.messages
        assert (session.message_in_progress() is None) == (data[position - 1] == 0x0A)
    answered += session.finish()
    expected = [reply_to(line, limit) for line in lines_of(data)]
    assert answered == b"".join(reply + b"\n" for reply in expected)
    assert session.messages == len(expected)
    assert session.errors == sum(reply.startswith(b"ERR") for reply in expected)


def check_raw_session(data: bytes, sizes: list[int]) -> None:
    session = RawSession(RAW_REPLIES)
    total = 0
    replies = [session.feed(piece) for piece in pieces(data, sizes)]
    replies.append(session.finish())
    for reply in replies:
        if reply and not reply.startswith(b"ERR"):
            total += int(reply)
    count, bad_at = count_code_points(data)
    if bad_at is None:
        # However it is cut, each code point is counted once.
        assert total == count
        assert session.errors == 0
    else:
        assert session.errors > 0


def check_framer(data: bytes, sizes: list[int], limit: int) -> None:
    framer = LineFramer(limit)
    lines = []
    for piece in pieces(data, sizes):
        lines += framer.feed(piece)
    lines += framer.finish()
    assert lines == [line if len(line) <= limit else None for line in lines_of(data)]
    assert not framer.in_line


@pytest.mark.parametrize("name", CORPUS)
def test_corpus(name):
    data = CORPUS[name]
    for sizes in ([1], [2], [3], [7], [1, 1000], [len(data)]):
        for limit in LIMITS:
            check_line_session(data, sizes, limit)
            check_framer(data, sizes, 10**9 if limit is None else limit)
        check_raw_session(data, sizes)


@settings(max_examples=80)
@given(mutated(), cuts, st.sampled_from(LIMITS))
def test_fuzz_sessions_and_framing(data, sizes, limit):
    check_line_session(data, sizes, limit)
    check_raw_session(data, sizes)
    check_framer(data, sizes, 10**9 if limit is None else limit)


@pytest.mark.slow
@settings(max_examples=8000)
@given(mutated(), cuts, st.sampled_from(LIMITS))
def test_fuzz_sessions_and_framing_many(data, sizes, limit):
    check_line_session(data, sizes, limit)
    check_raw_session(data, sizes)
    check_framer(data, sizes, 10**9 if limit is None else limit)

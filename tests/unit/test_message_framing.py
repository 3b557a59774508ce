"""Messages that say how long they are: cut in every way, lied about in every way, at a cost that is counted."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from counting import instructions_of
from evloop import (
    Framing,
    FramingError,
    IncompleteReadError,
    LengthPrefix,
    LimitError,
    MessageFramer,
    Netstring,
    VarintPrefix,
)

LIMIT = 300

FRAMINGS = {
    **{f"{size} bytes, {order}": LengthPrefix(size, order) for size in (1, 2, 3, 4, 8) for order in ("big", "little")},
    "varint": VarintPrefix(),
    "netstring": Netstring(),
}

each_framing = pytest.mark.parametrize("framing", FRAMINGS.values(), ids=FRAMINGS.keys())
some_framing = st.sampled_from(sorted(FRAMINGS)).map(FRAMINGS.__getitem__)
messages_of = st.lists(st.one_of(st.binary(max_size=9), st.binary(min_size=100, max_size=255)), max_size=12)
cuts_of = st.lists(st.integers(0, 3000), max_size=30)


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in itertools.pairwise(places)]


def byte_by_byte(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def fed(framing: Framing, pieces: list[bytes], limit: int = LIMIT) -> tuple[list[bytes], Exception | None]:
    """The messages, and why no more came: what was wrong with them, or that the last one was not whole."""
    framer = MessageFramer(framing, limit)
    messages: list[bytes] = []
    for piece in pieces:
        messages += framer.feed(piece)
        if framer.error is not None:
            assert framer.held_bytes == 0
            return messages, framer.error
    try:
        framer.finish()
    except IncompleteReadError as error:
        return messages, error
    return messages, None


# ---------------------------------------------------------------------- what is on the wire


@pytest.mark.parametrize(
    ("framing", "message", "wrapped"),
    [
        (LengthPrefix(1), b"abc", b"\3abc"),
        (LengthPrefix(2), b"abc", b"\0\3abc"),
        (LengthPrefix(2, "little"), b"abc", b"\3\0abc"),
        (LengthPrefix(3), b"", b"\0\0\0"),
        (LengthPrefix(4), b"x" * 258, struct.pack(">I", 258) + b"x" * 258),
        (LengthPrefix(8, "little"), b"abc", struct.pack("<Q", 3) + b"abc"),
        (VarintPrefix(), b"", b"\0"),
        (VarintPrefix(), b"x" * 127, b"\x7f" + b"x" * 127),
        (VarintPrefix(), b"x" * 300, b"\xac\x02" + b"x" * 300),  # the example of Protocol Buffers' specification
        (Netstring(), b"hello world!", b"12:hello world!,"),  # that of the netstrings'
        (Netstring(), b"", b"0:,"),
    ],
)
def test_on_the_wire(framing, message, wrapped):
    assert framing.wrap(message) == wrapped
    assert fed(framing, [wrapped]) == ([message], None)


@given(some_framing, messages_of, cuts_of)
def test_what_was_wrapped_comes_out_however_it_is_cut(framing: Framing, messages: list[bytes], cuts: list[int]):
    data = b"".join(map(framing.wrap, messages))
    for pieces in ([data], byte_by_byte(data), pieces_of(data, cuts)):
        assert fed(framing, pieces) == (messages, None)


@given(some_framing, messages_of, cuts_of, st.integers(0, 3000))
def test_a_message_is_delivered_with_the_piece_that_ends_it(framing, messages, cuts, place):
    wrapped = [framing.wrap(message) for message in messages]
    data = b"".join(wrapped)
    place %= len(data) + 1
    whole = sum(end <= place for end in itertools.accumulate(map(len, wrapped)))
    framer = MessageFramer(framing, LIMIT)
    assert framer.feed(data[:place]) == messages[:whole]
    begun = place - sum(map(len, wrapped[:whole]))
    assert framer.held_bytes == begun
    assert framer.in_message == (begun > 0)


# Streams that are sometimes right, and often wrong in the ways that matter.
hostile = st.lists(
    st.sampled_from([b"0", b"1", b"2", b"9", b"00", b"300", b":", b",", b"a", b"\0", b"\1", b"\x80", b"\xff" * 11])
    | st.binary(max_size=3)
).map(b"".join)


@given(some_framing, hostile, cuts_of, st.sampled_from([0, 1, 9, 10, 300, 1 << 40]))
@example(Netstring(), b"1:a,01:b,", [4], 10)
@example(Netstring(), b"111111111111", [1, 2, 3], 10)
@example(VarintPrefix(), b"\x80" * 10 + b"\1", [10], 300)
def test_rubbish_gives_the_same_however_it_is_cut(framing: Framing, data: bytes, cuts: list[int], limit: int):
    expected = fed(framing, [data], limit)
    for pieces in (byte_by_byte(data), pieces_of(data, cuts)):
        messages, error = fed(framing, pieces, limit)
        assert messages == expected[0]
        assert type(error) is type(expected[1])


# ---------------------------------------------------------------------- lengths that lie


@pytest.mark.parametrize(
    ("framing", "sent", "error"),
    [
        (Netstring(), b"03:abc,", FramingError),  # a leading zero
        (Netstring(), b"00:,", FramingError),
        (Netstring(), b":,", FramingError),
        (Netstring(), b"-1:,", FramingError),
        (Netstring(), b" 3:abc,", FramingError),
        (Netstring(), b"+3:abc,", FramingError),
        (Netstring(), b"1_0:abcdefghij,", FramingError),
        (Netstring(), "\u0663:abc,".encode(), FramingError),  # a digit, but not an ASCII one
        (Netstring(), b"3:abcd", FramingError),  # no comma
        (Netstring(), b"GET / HTTP/1.1\r\n", FramingError),
        (Netstring(), b"9" * 100_000, LimitError),
        (Netstring(), b"301:", LimitError),
        (Netstring(), b"1000:", LimitError),
        (LengthPrefix(2), b"\x01\x2d", LimitError),
        (LengthPrefix(4), b"\xff\xff\xff\xff", LimitError),
        (LengthPrefix(8), b"\xff" * 8, LimitError),
        (LengthPrefix(4, "little"), b"\0\0\0\x80", LimitError),
        (VarintPrefix(), b"\xad\x02", LimitError),
        (VarintPrefix(), b"\xff" * 9 + b"\x01", LimitError),
        (VarintPrefix(), b"\xff" * 10, FramingError),
        (VarintPrefix(), b"\x80" * 100_000, FramingError),
    ],
)
@pytest.mark.parametrize("cut", [lambda data: [data], byte_by_byte], ids=["whole", "byte by byte"])
def test_hostile_lengths(framing: Framing, sent: bytes, error: type[Exception], cut: Callable[[bytes], list[bytes]]):
    good = framing.wrap(b"good")
    messages, raised = fed(framing, cut(good + sent))
    assert messages == [b"good"]  # what came before it is delivered
    assert type(raised) is error
    assert len(str(raised)) < 100


def test_a_varint_may_be_padded():
    assert fed(VarintPrefix(), [b"\x83\x80\x80\x00abc"]) == ([b"abc"], None)


@each_framing
def test_the_limit_is_exact(framing: Framing):
    for size in (199, 200):
        assert fed(framing, [framing.wrap(b"x" * size)], 200) == ([b"x" * size], None)
    messages, error = fed(framing, [framing.wrap(b"x" * 201)], 200)
    assert messages == []
    assert isinstance(error, LimitError)
    assert error.limit == "max-message"
    assert str(error) == "a message of more than 200 bytes"


@each_framing
def test_after_an_error_nothing_is_taken_for_a_message(framing: Framing):
    framer = MessageFramer(framing, 10)
    assert framer.feed(framing.wrap(b"x" * 11)) == []
    error = framer.error
    for _ in range(2):
        with pytest.raises(LimitError) as raised:
            framer.feed(framing.wrap(b"good"))
        assert raised.value is error
    assert framer.held_bytes == 0


def test_bytes_that_were_promised_take_no_memory():
    tracemalloc = pytest.importorskip("tracemalloc", reason="PyPy cannot count memory so")
    framer = MessageFramer(LengthPrefix(8), 1 << 60)
    tracemalloc.start()
    try:
        framer.feed((1 << 60).to_bytes(8, "big") + b"x" * 100)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert framer.held_bytes == 108
    assert peak < 3000


# ---------------------------------------------------------------------- what it costs


class CountedBytes(Framing):
    """A framing that counts how often it is asked, and how much it is shown."""

    __slots__ = ("asked", "inner", "shown")

    def __init__(self, inner: Framing) -> None:
        self.inner, self.asked, self.shown = inner, 0, 0

    def locate(self, data: bytes | bytearray, at: int, limit_bytes: int) -> tuple[int, int, int]:
        self.asked += 1
        self.shown += len(data) - at
        return self.inner.locate(data, at, limit_bytes)


@each_framing
def test_a_dribbled_message_is_looked_at_when_there_is_something_to_see(framing: Framing):
    message = b"x" * 250
    counted = CountedBytes(framing)
    framer = MessageFramer(counted, LIMIT)
    data = framing.wrap(message)
    for byte in byte_by_byte(data[:-1]):
        assert framer.feed(byte) == []
    assert framer.feed(data[-1:]) == [message]
    head = len(data) - len(message)
    assert counted.asked <= head + 1
    assert counted.shown <= head * head + len(data)


@pytest.mark.parametrize("step", [1, 13, 4096])
@each_framing
def test_the_cost_is_linear_in_what_comes(framing: Framing, step: int):
    def take(messages: int) -> None:
        data = framing.wrap(b"x" * 100) * messages
        framer = MessageFramer(framing, LIMIT)
        taken = [message for at in range(0, len(data), step) for message in framer.feed(data[at : at + step])]
        assert len(taken) == messages

    assert instructions_of(lambda: take(80)) < 4.5 * instructions_of(lambda: take(20))


def test_what_waits_behind_a_message_is_copied_once():
    """The rest of a chunk is kept, not glued to the next one: 64 KiB of it would be copied for each byte that comes."""
    copied = 0

    class Counted(bytearray):
        def __iadd__(self, more):
            nonlocal copied
            copied += len(more)
            return super().__iadd__(more)

    framer = MessageFramer(LengthPrefix(4), 1 << 20)
    framer._held = Counted()
    data = LengthPrefix(4).wrap(b"x" * 500_000)
    framer.feed(data[:65536])
    for at in range(65536, len(data), 100):
        framer.feed(data[at : at + 100])
    assert copied == len(data)


# ---------------------------------------------------------------------- used wrongly


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: LengthPrefix(0), "1 to 8 bytes, not 0"),
        (lambda: LengthPrefix(9), "1 to 8 bytes, not 9"),
        (lambda: LengthPrefix(4, "network"), '"big" or "little", not \'network\''),
        (lambda: LengthPrefix(1).wrap(b"x" * 256), "a length of 1 bytes can't say 256"),
        (lambda: MessageFramer(Netstring(), -1), "must not be negative, got -1"),
    ],
)
def test_what_makes_no_sense(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_a_framing_of_ones_own():
    """Each message is a letter for its kind and a length that counts itself, as databases like it."""

    class Kinded(Framing):
        __slots__ = ()

        def locate(self, data: bytes | bytearray, at: int, limit_bytes: int) -> tuple[int, int, int]:
            if len(data) < at + 5:
                return at, at, at + 5
            size = int.from_bytes(data[at + 1 : at + 5], "big") - 4
            if not 0 <= size <= limit_bytes:
                raise LimitError("max-message", "a message of a size that is not allowed")
            return at, at + 5 + size, at + 5 + size

    data = b"Q\0\0\0\x09hello" + b"X\0\0\0\x04"
    expected = [b"Q\0\0\0\x09hello", b"X\0\0\0\x04"]
    assert fed(Kinded(), [data]) == fed(Kinded(), byte_by_byte(data)) == (expected, None)

"""Lines and bytes out of one stream: nothing lost, nothing twice, however it is cut, whatever is asked for in turn."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counting import instructions_of
from evloop.errors import LimitError
from evloop.protocols.readbuffer import ReadBuffer

LIMIT = 8

texts = st.lists(st.sampled_from([b"a", b"bb", b"\n", b"\r\n", b"\r", b"cccc", b"12345678", b"123456789"])).map(
    b"".join
)


def pieces_of(text: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[start:end] for start, end in itertools.pairwise(places)]


class Model:
    """What a reader should see: the plain text, of which lines or bytes are taken from the front."""

    def __init__(self, text: bytes) -> None:
        self.text = text

    def line(self) -> bytes | None:
        if not self.text:
            return None
        line, newline, rest = self.text.partition(b"\n")
        if newline:
            line = line.removesuffix(b"\r")
        if len(line) > LIMIT:
            raise LimitError("max-line", "")
        self.text = rest
        return line

    def bytes(self, size: int) -> bytes:
        taken, self.text = self.text[:size], self.text[size:]
        return taken


class Reader:
    """The same, out of a `ReadBuffer` that is given one piece after another when it has nothing more."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces
        self.buffer = ReadBuffer(LIMIT)

    def line(self) -> bytes | None:
        while True:
            for line in self.buffer.lines:
                return line
            self.buffer.nothing()
            if self.buffer.cut_again():
                continue
            if self.pieces:
                self.buffer.cut(self.pieces.pop(0))
            elif not self.buffer.cut_last():
                return None

    def bytes(self, size: int) -> bytes:
        held = self.buffer.as_bytes()
        while len(held) < size and self.pieces:
            held += self.pieces.pop(0)
        taken = bytes(held[:size])
        del held[:size]
        return taken


@given(text=texts, cuts=st.lists(st.integers(0, 200)), asked=st.lists(st.sampled_from([0, 1, 2, 5, 30]), max_size=12))
def test_lines_and_bytes_in_any_order(text, cuts, asked):
    model, reader = Model(text), Reader(pieces_of(text, cuts))
    for what in [*asked, *[0] * 50]:  # 0 is for a line
        if what:
            assert reader.bytes(what) == model.bytes(what)
            continue
        try:
            expected = model.line()
        except LimitError:
            for _ in range(2):  # it stays like that
                with pytest.raises(LimitError):
                    reader.line()
            return
        assert reader.line() == expected


def test_somebody_who_goes_over_lines_does_not_get_those_that_were_taken_as_bytes():
    buffer = ReadBuffer(100)
    buffer.cut(b"one\ntwo\nthree\nfo")
    lines = iter(buffer.lines)
    assert next(lines) == b"one"
    assert buffer.as_bytes() == b"two\nthree\nfo"
    assert list(lines) == []


def test_a_message_is_in_progress_while_something_is_held():
    buffer = ReadBuffer(100)
    assert buffer.message_in_progress() is None
    buffer.cut(b"one\ntw")
    first = buffer.message_in_progress()
    assert list(buffer.lines) == [b"one"]
    buffer.cut(b"o and more")
    assert buffer.message_in_progress() == first is not None
    assert buffer.held_bytes == len("two and more")
    buffer.cut(b"\nthree")
    assert buffer.message_in_progress() not in (None, first)


@pytest.mark.parametrize("bytes_between", [0, 3])
def test_lines_and_bytes_in_turn_cost_linear_time(bytes_between):
    def read(messages: int) -> None:
        reader = Reader([b"line\nxyz" * messages])
        for _ in range(messages):
            assert reader.line().endswith(b"line")
            reader.bytes(bytes_between) if bytes_between else None

    assert instructions_of(lambda: read(400)) < 4.5 * instructions_of(lambda: read(100))


def test_a_dribbled_line_is_searched_once():
    class Counted(bytearray):
        searched = 0

        def find(self, *args):
            Counted.searched += 1
            return super().find(*args)

    buffer = ReadBuffer(10_000)
    for _ in range(5000):
        buffer.cut(b"x")
        buffer._rest = Counted(buffer._rest) if not isinstance(buffer._rest, Counted) else buffer._rest
        assert not buffer.cut_again()
    assert Counted.searched == 0

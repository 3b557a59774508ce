"""What of a connection goes to another process: protocols' states, and the bytes on the way."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evloop import LineProtocol, Protocol
from evloop.charcount.session import LineSession, RawSession, Replies
from evloop.errors import CannotMoveError
from evloop.net import moving, stream, tlsstream
from evloop.net.moving import FORMAT, Moving
from evloop.net.protocol import own_state
from evloop.testing import MemoryStream

REPLIES = Replies(), Replies(end="")

# ---------------------------------------------------------------------- sessions


def test_each_reason_not_to_read_is_another_one():
    reasons = {
        name: value
        for module in (stream, tlsstream, moving)
        for name, value in vars(module).items()
        if name.startswith("PAUSED_BY_")
    }
    assert len(reasons) == 6
    assert sum(reasons.values()) == 0b111111


@given(
    st.lists(st.binary(max_size=8) | st.sampled_from([b"\n", b"\r", b"\r\n", b"\xe6\x97\xa5\n"]), max_size=12),
    st.data(),
)
def test_a_session_that_moves_after_any_chunk_answers_as_one_that_stays(chunks, data):
    for make in (
        lambda: LineSession(REPLIES[0], limit_bytes=6),
        lambda: RawSession(REPLIES[1], limit_bytes=6),
    ):
        stays, moves = make(), make()
        for chunk in filter(None, chunks):
            assert moves.feed(chunk) == stays.feed(chunk)
            if data.draw(st.booleans()):
                state = moves.dump()
                moves = make()
                moves.restore(state)
            assert moves.message_in_progress() == stays.message_in_progress()
        assert moves.finish() == stays.finish()
        assert (moves.messages, moves.errors) == (stays.messages, stays.errors)


@pytest.mark.parametrize("make", [lambda: LineSession(REPLIES[0]), lambda: RawSession(REPLIES[1])])
def test_a_session_between_messages_is_two_numbers(make):
    session = make()
    session.feed(b"abc\n")
    assert session.dump() == b"1 0"


@pytest.mark.parametrize("state", [b"", b"1", b"x y", b"1 0 cr 1", b"1 0 - 1 2 3 zz"])
def test_what_is_no_state_of_a_session_is_refused(state):
    with pytest.raises(ValueError):
        LineSession(REPLIES[0]).restore(state)


# ---------------------------------------------------------------------- state of one's own


class Plain(Protocol):
    def on_data(self, data: bytes) -> bytes:
        return data


class Lines(LineProtocol):
    def on_line(self, line: bytes) -> bytes:
        return line


class SlotsUnset(Protocol):
    __slots__ = ("name",)


class Greeting(Protocol):
    def on_connect(self) -> bytes:
        return b"hello"


class Noticing(Protocol):
    def on_close(self, error: Exception | None) -> None: ...


class Attribute(Protocol):
    def __init__(self) -> None:
        self.count = 0


class SlotSet(SlotsUnset):
    __slots__ = ()

    def __init__(self) -> None:
        self.name = "me"


class PrivateSlot(Lines):
    __slots__ = ("__secret",)

    def __init__(self) -> None:
        self.__secret = 1


@pytest.mark.parametrize("kind", [Plain, Lines, SlotsUnset])
def test_without_state_of_its_own_a_protocol_can_move(kind):
    stream = MemoryStream(kind())
    stream.feed(b"a\nb")
    protocol = stream.connection.protocol
    assert own_state(protocol) is None
    assert protocol.dump() == b""


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (Greeting, "has an on_connect"),
        (Noticing, "has an on_close"),
        (Attribute, "has an attribute 'count'"),
        (SlotSet, "has an attribute 'name'"),
        (PrivateSlot, "has an attribute '_PrivateSlot__secret'"),
    ],
)
def test_what_makes_a_state_of_its_own(kind, what):
    protocol = MemoryStream(kind()).connection.protocol
    with pytest.raises(CannotMoveError, match=f"^{kind.__name__} {what}: give it dump"):
        protocol.dump()


def test_another_data_handler_is_a_state_from_the_first_byte_on():
    stream = MemoryStream(Plain())
    protocol = stream.connection.protocol
    handler: Callable[[bytes], bytes] = bytes.upper
    stream.connection.set_data_handler(handler)
    assert own_state(protocol) is None  # a server that looks at the first bytes
    assert stream.feed(b"a") == b"A"
    assert own_state(protocol) == "has set a data handler"
    assert stream.feed(b"b") == b"B"  # nothing was changed by looking


def test_a_line_that_has_begun_goes_along_unless_it_is_too_long():
    class Short(Lines):
        max_line_bytes = 4

    stream = MemoryStream(Short())
    protocol = stream.connection.protocol
    stream.feed(b"ab\ncd")
    assert protocol.dump_framing() == b"cd"
    stream.feed(b"efgh")
    assert protocol.dump_framing() is None
    assert stream.feed(b"\n") == b""
    assert protocol.dump_framing() == b""


# ---------------------------------------------------------------------- the bytes

PARTS = st.binary(max_size=30)


@given(PARTS, PARTS, PARTS, st.dictionaries(st.text(), st.text() | st.integers() | st.none()))
def test_what_is_known_of_a_connection_survives_the_way(state, framing, rest, facts):
    there = Moving.from_bytes(Moving({"proxy": None, "said": facts}, state, framing, rest).to_bytes())
    assert (there.state, there.framing, there.rest) == (state, framing, rest)
    assert there.facts["said"] == facts
    assert there.header is None
    assert there.facts["format"] == FORMAT

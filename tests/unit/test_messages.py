"""Messages that say how long they are, in a protocol and in a coroutine: the same conversation, in memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coroutines import handled, no_task_is_left  # noqa: F401  (a fixture)
from evloop import (
    FramingError,
    IncompleteReadError,
    LengthPrefix,
    LimitError,
    MessageProtocol,
    Netstring,
    Stream,
    VarintPrefix,
    sleep,
    timeout,
)
from evloop.testing import MemoryStream

FRAMINGS = {"prefix": LengthPrefix(2), "varint": VarintPrefix(), "netstring": Netstring()}
LIMIT = 20


def protocol(framing) -> MemoryStream:
    class Upper(MessageProtocol):
        max_message_bytes = LIMIT

        def on_message(self, message: bytes) -> bytes:
            return self.framing.wrap(message.upper())

        def on_bad_message(self, error) -> bytes:
            return self.framing.wrap(type(error).__name__.encode())

    Upper.framing = framing
    return MemoryStream(Upper())


def coroutine(framing) -> MemoryStream:
    async def upper(stream: Stream) -> None:
        try:
            async for message in stream.messages(framing, LIMIT):
                stream.write(framing.wrap(message.upper()))
        except (LimitError, FramingError, IncompleteReadError) as error:
            stream.write(framing.wrap(type(error).__name__.encode()))

    return handled(upper)


def coroutine_by_anext(framing) -> MemoryStream:
    async def upper(stream: Stream) -> None:
        try:
            while (message := await anext(stream.messages(framing, LIMIT), None)) is not None:
                await sleep(1)  # so what comes meanwhile is kept
                stream.write(framing.wrap(message.upper()))
        except (LimitError, FramingError, IncompleteReadError) as error:
            stream.write(framing.wrap(type(error).__name__.encode()))

    return handled(upper)


each_framing = pytest.mark.parametrize("framing", FRAMINGS.values(), ids=FRAMINGS.keys())
each_way = pytest.mark.parametrize("open_one", [protocol, coroutine, coroutine_by_anext])


def said(peer: MemoryStream, data: bytes, step: int) -> bytes:
    for at in range(0, len(data), step):
        peer.feed(data[at : at + step])
    peer.eof()
    peer.advance(60)
    assert peer.closed
    assert not peer.was_reset
    return peer.sent


@each_way
@each_framing
@pytest.mark.parametrize("step", [1, 7, 1000])
@pytest.mark.parametrize("messages", [[], [b""], [b"one"], [b"one", b"", b"two\nlines", b"x" * LIMIT]])
def test_messages_and_answers(open_one: Callable, framing, step, messages):
    sent = b"".join(map(framing.wrap, messages))
    answered = b"".join(framing.wrap(message.upper()) for message in messages)
    assert said(open_one(framing), sent, step) == answered


@each_way
@each_framing
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_one_that_is_too_long_ends_it_after_those_before(open_one: Callable, framing, step, logged):
    if open_one is protocol:
        logged.expect(f"ended: a message of more than {LIMIT} bytes")
    peer = open_one(framing)
    good, late = framing.wrap(b"good"), framing.wrap(b"late")
    answered = said(peer, good + framing.wrap(b"x" * (LIMIT + 1)) + late, step)
    assert answered == framing.wrap(b"GOOD") + framing.wrap(b"LimitError")
    if open_one is protocol:
        assert peer.limits_hit == {"max-message": 1}


@each_way
@pytest.mark.parametrize("step", [1, 1000])
def test_what_is_no_message_ends_it_after_those_before(open_one: Callable, step, logged):
    if open_one is protocol:
        logged.expect("ended: expected the length of a netstring, and got b'n")
    answered = said(open_one(Netstring()), b"4:good,nonsense", step)
    assert answered == b"4:GOOD," + Netstring().wrap(b"FramingError")


@each_way
@each_framing
@pytest.mark.parametrize("step", [1, 1000])
def test_the_stream_ends_in_the_middle(open_one: Callable, framing, step):
    answered = said(open_one(framing), framing.wrap(b"good") + framing.wrap(b"cut")[:-1], step)
    assert answered == framing.wrap(b"GOOD") + framing.wrap(b"IncompleteReadError")


def test_a_handler_that_lets_the_errors_pass_costs_its_connection_and_no_traceback(logged):
    async def handler(stream: Stream) -> None:
        async for _ in stream.messages(Netstring(), LIMIT):
            pass

    logged.expect("ended: a message of more than 20 bytes")
    logged.expect("ended: expected the length of a netstring, and got b'rubbish'")
    peer = handled(handler)
    peer.feed(b"21:")
    assert peer.was_reset or peer.closed
    assert peer.limits_hit == {"max-message": 1}
    peer = handled(handler)
    peer.feed(b"rubbish")
    assert peer.connection.closing
    peer = handled(handler)
    peer.feed(b"3:ab")
    peer.eof()
    assert peer.closed


# ---------------------------------------------------------------------- in a protocol


def test_batches_are_what_came_together():
    batches: list[list[bytes]] = []

    class Batches(MessageProtocol):
        framing = LengthPrefix(1)

        def on_messages(self, messages: list[bytes]) -> bytes:
            batches.append(messages)
            return b"%d" % len(messages)

    peer = MemoryStream(Batches())
    assert peer.feed(b"\1a\1b\2c") == b"2"
    assert peer.connection.protocol.held_bytes() == 2
    assert peer.feed(b"d\0") == b"2"
    assert batches == [[b"a", b"b"], [b"cd", b""]]


def test_nothing_is_delivered_after_close():
    seen: list[bytes] = []

    class Quits(MessageProtocol):
        framing = LengthPrefix(1)
        max_message_bytes = 10

        def on_message(self, message: bytes) -> bytes:
            seen.append(message)
            if message == b"quit":
                self.connection.close()
            return message

        def on_bad_message(self, error) -> bytes:
            seen.append(b"bad")
            return b"bad"

    peer = MemoryStream(Quits())
    assert peer.feed(b"\3one\4quit\5three\xff") == b"onequit"
    peer.feed(b"\4more")
    assert seen == [b"one", b"quit"]


def test_after_a_bad_message_nothing_is_delivered_of_a_long_chunk(logged):
    logged.expect("ended: a message of more than 10 bytes")

    class Short(MessageProtocol):
        framing = LengthPrefix(1)
        max_message_bytes = 10

        def on_message(self, message: bytes) -> bytes:
            return message

    peer = MemoryStream(Short())
    assert peer.feed(b"\3one\xff" + b"\1x" * 30_000) == b"one"
    assert peer.closed


def test_a_message_in_progress_has_a_number_that_changes_with_each():
    class Quiet(MessageProtocol):
        framing = LengthPrefix(4)

    quiet = Quiet()
    peer = MemoryStream(quiet)
    assert quiet.message_in_progress() is None
    peer.feed(b"\0")
    first = quiet.message_in_progress()
    peer.feed(b"\0\0\3ab")
    assert quiet.message_in_progress() == first is not None
    peer.feed(b"c\0")
    assert quiet.message_in_progress() not in (None, first)


def test_a_message_that_has_begun_goes_along_to_another_process():
    class Echo(MessageProtocol):
        framing = Netstring()

        def on_message(self, message: bytes) -> bytes:
            return self.framing.wrap(message)

    before, after = Echo(), Echo()
    assert before.dump_framing() == b""
    MemoryStream(before).feed(b"1:a,5:he")
    assert before.dump_framing() == b"5:he"
    peer = MemoryStream(after)
    after.restore_framing(b"5:he")
    assert after.held_bytes() == 4
    assert peer.feed(b"llo,") == b"5:hello,"


def test_a_protocol_without_a_framing_says_so():
    with pytest.raises(TypeError, match="Nameless does not say how its messages are framed: set its `framing`"):
        MemoryStream(type("Nameless", (MessageProtocol,), {})()).feed(b"x")


def test_a_wrong_answer_says_which_callback_gave_it():
    class Text(MessageProtocol):
        framing = Netstring()

        def on_message(self, message: bytes) -> bytes:
            return message.decode()  # type: ignore[return-value]

    with pytest.raises(TypeError, match=r"on_message returned str, not bytes: encode it"):
        MemoryStream(Text()).feed(b"2:hi,")


# ---------------------------------------------------------------------- in a coroutine


async def mixed(stream: Stream) -> None:
    """A greeting in a line, then messages, then bytes up to the end."""
    stream.write(b"[" + await anext(stream.lines()) + b"]")
    async for message in stream.messages(Netstring()):
        if message == b"stop":
            break
        stream.write(b"<" + message + b">")
    stream.write(await anext(stream.lines()) + b"=")
    while data := await stream.read():
        stream.write(data)


MIXED = b"hello\r\n3:o\nn,0:,4:stop,a line\n3:not a message"


@given(st.lists(st.integers(0, len(MIXED)), max_size=10))
def test_lines_messages_and_bytes_in_turn_lose_nothing(places):
    peer = handled(mixed)
    for start, end in zip([0, *sorted(places)], [*sorted(places), len(MIXED)], strict=True):
        peer.feed(MIXED[start:end])
    peer.eof()
    assert peer.sent == b"[hello]<o\nn><>a line=3:not a message"


def test_a_time_out_for_each_message_and_none_is_lost_by_it():
    async def handler(stream: Stream) -> None:
        messages = stream.messages(LengthPrefix(2))
        for _ in range(4):
            try:
                async with timeout(5):
                    stream.write(b"<" + await anext(messages) + b">")
            except TimeoutError:
                stream.write(b"late ")

    peer = handled(handler)
    peer.feed(b"\0\3one\0\4ha")
    peer.advance(6)
    peer.feed(b"lf\0\3two")
    assert peer.sent == b"<one>late <half><two>"

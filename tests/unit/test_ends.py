"""The ways to an end, in memory: half-closes, answers that are owed, drains, faults; each state is a legal one."""

from __future__ import annotations

import errno

import pytest

from evloop import Protocol, State
from evloop.testing import MemoryStream
from servers import Recorder, recorder, small_limits


class Owes(Recorder):
    """Says that it owes an answer when it is asked."""

    def on_data(self, data: bytes) -> None:
        super().on_data(data)
        self.connection.hold()

    def answer(self) -> None:
        """Give it."""
        self.connection.write(b"answer")
        self.connection.release()


def check(stream: MemoryStream, state: State) -> None:
    assert stream.connection.state is state
    assert stream.connection.is_legal
    assert stream.connection.closing == (state in (State.FLUSHING, State.LINGERING, State.CLOSED))


# ---------------------------------------------------------------------- the peer's half-close


def test_the_peers_end_closes_when_nothing_is_owed():
    protocol = recorder()()
    stream = MemoryStream(protocol)
    check(stream, State.OPEN)
    stream.eof()
    check(stream, State.CLOSED)
    assert protocol.events == ["connect", "eof", "close"]


def test_the_peers_end_waits_for_what_is_unsent():
    protocol = recorder()()
    stream = MemoryStream(protocol, peer_reads=3)
    stream.connection.write(b"answer")
    stream.advance()
    stream.eof()
    check(stream, State.FLUSHING)
    assert not stream.closed
    stream.peer_reads(None)
    check(stream, State.CLOSED)
    assert (stream.sent, stream.was_reset) == (b"answer", False)
    assert protocol.events == ["connect", "eof", "close"]


def test_the_peers_end_waits_for_each_answer_that_is_owed():
    protocol = recorder(Owes)()
    stream = MemoryStream(protocol)
    stream.feed(b"one")
    stream.feed(b"two")
    stream.eof()
    check(stream, State.HALF_OPEN)
    assert stream.connection.socket.fileno() not in stream.loop.poller.handlers  # its end would be told for ever
    protocol.answer()
    stream.advance(60)
    check(stream, State.HALF_OPEN)
    protocol.answer()
    stream.advance()
    check(stream, State.CLOSED)
    assert stream.sent == b"answeranswer"
    with pytest.raises(RuntimeError, match="without a hold"):
        stream.connection.release()


def test_answers_that_were_given_before_the_end_are_not_waited_for():
    protocol = recorder(Owes)()
    stream = MemoryStream(protocol)
    stream.feed(b"one")
    protocol.answer()
    stream.advance()
    check(stream, State.OPEN)
    stream.eof()
    check(stream, State.CLOSED)


def test_who_keeps_half_open_is_not_closed_by_a_release():
    protocol = recorder(Owes, keep_half_open=True)()
    stream = MemoryStream(protocol)
    stream.feed(b"one")
    stream.eof()
    protocol.answer()
    stream.advance()
    check(stream, State.HALF_OPEN)
    stream.connection.write(b" and more")
    stream.connection.close()
    stream.advance()
    check(stream, State.CLOSED)
    assert stream.sent == b"answer and more"


# ---------------------------------------------------------------------- ours


def test_our_half_close_ends_with_the_peers():
    protocol = recorder()()
    stream = MemoryStream(protocol)
    stream.connection.write(b"last")
    stream.connection.write_eof()
    stream.connection.write(b"too late")
    stream.advance()
    check(stream, State.HALF_CLOSED)
    assert (stream.sent, stream.closed) == (b"last", True)
    stream.feed(b"still heard")
    stream.eof()
    check(stream, State.CLOSED)
    assert protocol.events == ["connect", ("data", b"still heard"), "eof", "close"]


@pytest.mark.parametrize("first", ["eof", "write_eof"])
def test_half_closes_of_both_sides_are_an_end(first):
    stream = MemoryStream(recorder(keep_half_open=True)())
    if first == "eof":
        stream.eof()
        stream.connection.write_eof()
        stream.advance()
    else:
        stream.connection.write_eof()
        stream.advance()
        stream.connection.write_eof()  # twice is a close
        stream.advance()
        check(stream, State.LINGERING)
        stream.eof()
    check(stream, State.CLOSED)


def test_a_close_goes_through_flushing_and_lingering():
    stream = MemoryStream(Protocol(), peer_reads=0)
    stream.connection.write(b"bye")
    stream.connection.close()
    stream.advance()
    check(stream, State.FLUSHING)
    stream.peer_reads(None)
    check(stream, State.LINGERING)
    stream.eof()
    check(stream, State.CLOSED)


def test_a_peer_that_resets_while_it_is_waited_for_is_no_error():
    protocol = recorder()()
    stream = MemoryStream(protocol)
    stream.connection.close()
    stream.advance()
    assert protocol.events == ["connect", "close"]
    stream.reset()
    check(stream, State.CLOSED)
    assert protocol.events == ["connect", "close"]


# ---------------------------------------------------------------------- drains


def test_a_drain_answers_what_has_arrived_and_closes():
    class Echo(Protocol):
        def on_data(self, data: bytes) -> bytes:
            return data

    stream = MemoryStream(Echo())
    stream.connection.pause_reading()
    stream.feed(b"x" * 200_000)  # it takes several receives
    stream.connection.resume_reading()
    stream.connection.drain()
    stream.advance()
    check(stream, State.LINGERING)
    assert len(stream.sent) == 200_000


def test_a_drain_takes_no_more_than_can_have_waited():
    received = 0

    class Endless(Protocol):
        def on_data(self, data: bytes) -> None:
            nonlocal received
            received += len(data)
            stream._peer.send(b"x" * 479)  # for each receive another one

    stream = MemoryStream(Endless())
    stream.connection.pause_reading()
    stream.feed(b"x" * 479)
    stream.connection.resume_reading()
    stream.connection.drain()
    stream.advance()
    assert 65536 <= received <= 65536 + 479
    assert stream.connection.closing


def test_a_drain_waits_for_who_is_paused_and_for_answers_that_are_owed():
    protocol = recorder(Owes)()
    stream = MemoryStream(protocol)
    stream.connection.pause_reading()
    stream.feed(b"question")
    stream.connection.drain()
    stream.advance(5)
    check(stream, State.OPEN)
    stream.connection.resume_reading()
    stream.advance(0.1)
    assert protocol.received() == b"question"
    check(stream, State.OPEN)
    stream.feed(b"not read any more")
    assert protocol.received() == b"question"
    protocol.answer()
    stream.advance()
    assert (stream.sent, stream.closed) == (b"answer", True)


def test_a_drain_of_who_has_half_closed():
    stream = MemoryStream(Protocol())
    stream.connection.write_eof()
    stream.advance()
    stream.connection.drain()
    stream.advance()
    check(stream, State.LINGERING)


# ---------------------------------------------------------------------- errors


def test_ended_for_a_reason_the_protocol_is_told_it():
    protocol = recorder()()
    stream = MemoryStream(protocol)
    stream.connection.end_for(TimeoutError())
    stream.connection.end_for(ValueError())
    stream.advance()
    check(stream, State.CLOSED)
    assert protocol.events == ["connect", ("close", "TimeoutError")]


@pytest.mark.parametrize("stalled", [False, True])
def test_a_send_that_fails_ends_it_with_the_error(stalled):
    protocol = recorder()()
    stream = MemoryStream(protocol, peer_reads=0 if stalled else None)
    if stalled:
        stream.connection.write(b"waits")
        stream.advance()
    stream.connection.pause_reading()
    stream.advance()
    stream.connection.socket.error = errno.ECONNRESET
    stream.connection.write(b"more")
    stream.advance()
    assert protocol.events == ["connect", ("close", "ConnectionResetError")]


def test_an_unexpected_error_is_logged(logged):
    logged.expect("lost: .*No space left")
    protocol = recorder()()
    stream = MemoryStream(protocol)
    stream.connection.socket.error = errno.ENOSPC
    stream.advance()
    assert protocol.events == ["connect", ("close", "OSError")]


def test_on_close_that_raises_or_returns_something_is_told_and_ends_nothing():
    for result, told in ((1, "returned int"), (b"x", "returned bytes")):
        stream = MemoryStream(recorder(on_close=lambda self, error, result=result: result)())
        with pytest.raises(TypeError, match=told):
            stream.eof()
        check(stream, State.CLOSED)
    stream = MemoryStream(recorder(on_close=lambda self, error: 1 // 0)())
    with pytest.raises(ZeroDivisionError):
        stream.eof()
    check(stream, State.CLOSED)


def test_the_handler_can_be_replaced_and_bytes_are_counted():
    stream = MemoryStream(recorder()(), limits=small_limits(), peer_reads=4)
    stream.connection.set_data_handler(bytes.upper)
    stream.feed(b"abc")
    stream.feed(b"def")
    assert stream.sent == b"ABCD"
    assert (stream.connection.bytes_received, stream.connection.bytes_sent) == (6, 4)
    assert stream.connection.unsent_bytes == 2
    stream.peer_reads(1)
    assert stream.connection.bytes_sent == 5
    stream.peer_reads(None)
    assert (stream.sent, stream.connection.bytes_sent) == (b"ABCDEF", 6)


def test_a_reply_that_the_kernel_takes_nothing_of_leaves_whole_later():
    stream = MemoryStream(recorder(on_data=lambda self, data: data.upper())(), peer_reads=0)
    stream.feed(b"abc")
    assert stream.peer_reads(None) == b"ABC"


def test_what_is_written_is_counted_when_it_has_left():
    stream = MemoryStream(Protocol(), peer_reads=2)
    stream.connection.write(b"abc")
    stream.connection.write(b"def")
    assert stream.connection.bytes_sent == 0
    stream.advance()
    assert stream.connection.bytes_sent == 2
    stream.peer_reads(None)
    stream.connection.write(b"ghi")
    stream.advance()
    assert stream.connection.bytes_sent == 9


def test_a_long_turn_that_raises_ends_it_and_one_that_does_not_leaves_writes_as_they_were():
    class Writes(Recorder):
        message_end = b"\n"

        def on_data(self, data: bytes) -> bytes:
            if b"!" in data:
                raise ValueError(data)
            self.connection.write(b"<")
            self.connection.write(b">")
            return b"."

    stream = MemoryStream(recorder(Writes)())
    stream.feed(bytes(479 + 3832 + 30656) + b"\n")
    answer = stream.feed(b"\n" * 50_000)
    assert answer == b"<>." * (len(answer) // 3)
    assert len(answer) > 20
    stream.connection.write(b"written after it")
    assert stream.advance() == b"written after it"
    with pytest.raises(ValueError, match="!"):
        stream.feed(b"x\n" * 10_000 + b"!")
    check(stream, State.CLOSED)

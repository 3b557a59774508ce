"""Numbers 35 to 39: what a turn may cost, what a callback returns, and answers and ends that come later.

No time is measured here: what a turn may cost is counted in messages and in passes of the loop.
"""

from __future__ import annotations

import selectors
import socket
import threading
from typing import Any, ClassVar

import pytest

from clients import Client
from evloop import CallbackResultError, LineProtocol, Protocol, State
from evloop.net.receiving import MAX_PIECE_BYTES, MAX_TURN_REPLY_BYTES, RECV_BYTES, TURN_S
from faults.chunks import MOST_REPLIES_OF_A_TURN, record_chunks
from servers import Recorder, RunningServer, recorder, small_limits
from waiting import wait_until

# ---------------------------------------------------------------------- 35


def grown(server: RunningServer, client: Client) -> None:
    """The client's next receive takes all that one may."""
    for _ in range(3):
        client.send(b"x" * 200_000 + b"\n")
        client.receive_line()


@pytest.mark.parametrize("message", [b"\n", b"\xff\n", b"\xffa\n"], ids=["empty", "invalid", "two bytes"])
@pytest.mark.parametrize("selector", [selectors.DefaultSelector])
def test_35_turn_is_bounded_by_what_it_costs(counting, message):
    server = counting()
    client = server.connect()
    grown(server, client)
    chunks = record_chunks(server, server.connection())
    release = server.hold()
    client.send(message * (RECV_BYTES // len(message)))
    release.set()
    answers = 0
    while answers < RECV_BYTES // len(message):
        client.receive_line()
        answers += 1
    assert sum(chunk.received for chunk in chunks) == answers * len(message)
    assert len(chunks) > 1, "all of it in one turn"
    assert max(chunk.replied for chunk in chunks) <= MOST_REPLIES_OF_A_TURN


class Shouts(Protocol):
    """Says much for each byte, by writing and not by returning."""

    turns: ClassVar[list[int]] = []

    def on_data(self, data: bytes) -> None:
        self.turns.append(self.connection.loop.passes)
        for _ in range(len(data)):
            self.connection.write(b"0123456789")


@pytest.mark.parametrize("selector", [selectors.DefaultSelector])
def test_35_turn_counts_what_is_written_like_what_is_returned(start):
    Shouts.turns = []
    server = start(Shouts)
    client = server.connect()
    threading.Thread(target=client.send, args=(b"x" * 200_000,)).start()
    assert client.receive_exactly(2_000_000) == b"0123456789" * 200_000
    per_pass = [Shouts.turns.count(number) for number in set(Shouts.turns)]
    # A piece of that protocol's is more than a turn may say, so no turn has a second one.
    assert max(per_pass) == 1


@pytest.mark.parametrize("selector", [selectors.DefaultSelector])
def test_35_turn_is_over_when_its_time_is(start):
    class Slow(LineProtocol):
        passes: ClassVar[list[int]] = []

        def on_lines(self, lines: list[bytes]) -> bytes:
            now = self.connection.loop.clock
            until = now() + TURN_S * 2
            while now() < until:
                pass
            self.passes.append(self.connection.loop.passes)
            return b"".join(line + b"\n" for line in lines)

    server = start(Slow)
    client = server.connect()
    stream = b"".join(b"%d\n" % number for number in range(40_000))
    threading.Thread(target=client.send, args=(stream,)).start()
    assert client.receive_exactly(len(stream)) == stream
    assert len(set(Slow.passes)) == len(Slow.passes), "a second piece after a slow one"


def test_35_rest_of_a_turn_waits_for_a_pause_to_end(start):
    class Pauses(LineProtocol):
        seen: ClassVar[list[bytes]] = []

        def on_lines(self, lines: list[bytes]) -> None:
            self.seen += lines
            self.connection.pause_reading()

    Pauses.seen = []
    server = start(Pauses)
    client = server.connect()
    connection = server.connection()
    stream = [b"%d" % number for number in range(10_000)]
    for _ in range(3):  # so that a receive takes much
        client.send(b"y" * 30_000 + b"\n")
        wait_until(lambda: server.call(lambda: connection.paused), "paused")
        while server.call(lambda: connection.paused):
            server.call(connection.resume_reading)
            server.passes(3)
    Pauses.seen.clear()
    client.send(b"\n".join(stream) + b"\n")
    for _ in range(1000):
        wait_until(lambda: server.call(lambda: connection.paused), "paused")
        before = server.call(lambda: len(Pauses.seen))
        server.passes(4)
        assert server.call(lambda: len(Pauses.seen)) == before, "something came during a pause"
        assert server.call(lambda: connection.is_legal)
        if before == len(stream):
            break
        server.call(connection.resume_reading)
    assert Pauses.seen == stream


@pytest.mark.parametrize("end", ["half-close", "drain"])
@pytest.mark.parametrize("selector", [selectors.DefaultSelector])
def test_35_rest_of_a_turn_is_answered_before_the_end(counting, end):
    server = counting()
    client = server.connect()
    grown(server, client)
    release = server.hold()
    count = RECV_BYTES // 2 // 2
    client.send(b"\xff\n" * count)
    if end == "half-close":
        client.half_close()
    else:
        server.loop.call_soon_threadsafe(server.server.drain)
    release.set()
    assert client.receive_rest() == b"ERR invalid-utf8 at byte 0\n" * count


def test_35_sizes_fit_each_other():
    assert MAX_PIECE_BYTES < RECV_BYTES
    assert MAX_TURN_REPLY_BYTES < RECV_BYTES


# ---------------------------------------------------------------------- 36


@pytest.mark.parametrize("value", ["text", 5, [b"a"], {"a": 1}, object()], ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("where", ["on_connect", "on_data", "on_data of a long turn", "on_eof", "on_line", "on_lines"])
@pytest.mark.parametrize("selector", [selectors.DefaultSelector])
def test_36_callback_result_that_cannot_be_sent_costs_one_connection(start, logged, where, value):
    errors: list[Exception | None] = []
    name = where.split()[0]

    class Wrong(LineProtocol if "line" in where else Protocol):  # type: ignore[misc]
        wrong = True

        def __init__(self) -> None:
            self.wrong, Wrong.wrong = Wrong.wrong, False  # only the first one

        def on_close(self, error: Exception | None) -> None:
            errors.append(error)

    setattr(Wrong, name, lambda self, *data: value if self.wrong else b"ok")
    getattr(Wrong, name).__qualname__ = f"Wrong.{name}"
    logged.expect(rf"connection \S+ aborted: Wrong\.{name} returned {type(value).__name__}")
    server = start(Wrong)
    client = server.connect()
    try:
        client.send(b"x\n" * (10_000 if "long" in where else 1))
        client.half_close()
    except OSError:
        pass  # it was faster
    wait_until(lambda: errors, "the end of the connection")
    server.wait_empty()
    assert isinstance(errors[0], CallbackResultError)
    other = server.connect()
    other.send(b"x\n")
    other.half_close()
    assert b"ok" in other.receive_rest()


@pytest.mark.parametrize("where", ["on_connect", "on_data", "on_eof", "on_line", "on_close", "on_high_water"])
@pytest.mark.parametrize("selector", [selectors.DefaultSelector])
def test_36_callback_that_is_async_is_named(start, logged, where):
    class Async(LineProtocol if where == "on_line" else Protocol):  # type: ignore[misc]
        pass

    async def callback(self: Any, *arguments: object) -> None: ...

    callback.__qualname__ = f"Async.{where}"
    setattr(Async, where, callback)
    if where == "on_high_water":
        Async.on_data = lambda self, data: bytes(1 << 24)  # type: ignore[method-assign, assignment]
    logged.expect(rf"connection \S+( aborted)?: Async\.{where} is async")
    server = start(Async, small_limits(high_water_bytes=65536, max_unsent_bytes=1 << 25))
    client = server.connect()
    client.send(b"x\n")
    client.half_close()
    client.was_reset()
    server.wait_empty()


@pytest.mark.parametrize("value", [bytearray(b"ok"), memoryview(b"ok"), b"ok"], ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("where", ["on_data", "on_line", "on_connect"])
@pytest.mark.parametrize("selector", [selectors.DefaultSelector])
def test_36_callback_may_return_anything_like_bytes(start, where, value):
    class Right(LineProtocol if where == "on_line" else Protocol):  # type: ignore[misc]
        pass

    setattr(Right, where, lambda self, *data: value)
    client = start(Right).connect()
    client.send(b"x\n")
    client.half_close()
    assert client.receive_rest() == b"ok"


@pytest.mark.parametrize("value", ["text", 5, None], ids=lambda value: type(value).__name__)
def test_36_callback_that_writes_what_is_no_bytes_hears_so(start, logged, value):
    logged.expect("its protocol raised")
    protocol = recorder(type("Writes", (Recorder,), {"on_data": lambda self, data: self.connection.write(value)}))
    server = start(protocol)
    client = server.connect()
    client.send(b"x")
    client.was_reset()
    server.wait_empty()
    assert protocol.events[-1] == ("close", "TypeError")


# ---------------------------------------------------------------------- 37


class Later(LineProtocol):
    """Answers some passes later, and says that it will."""

    pending: ClassVar[list[Later]] = []

    def on_line(self, line: bytes) -> None:
        self.connection.hold()
        self.pending.append(self)

    def answer(self) -> None:
        self.connection.write(b"answer\n")
        self.connection.release()


@pytest.mark.parametrize("end", ["half-close", "drain", "half-close and drain"])
def test_37_late_answer_is_waited_for(start, end):
    Later.pending = []
    server = start(Later)
    client = server.connect()
    client.send(b"a\nb\n")
    wait_until(lambda: len(Later.pending) == 2, "both lines")
    if "half-close" in end:
        client.half_close()
        connection = server.connection()
        wait_until(lambda: connection.state is State.HALF_OPEN, "the client's end")
    if "drain" in end:
        server.call(server.server.drain)
    server.passes(5)
    for protocol in Later.pending:
        server.call(protocol.answer)
    assert client.receive_rest() == b"answer\nanswer\n"
    client.close()
    server.wait_empty()
    assert not server.server.aborted


def test_37_late_answer_that_never_comes_is_bounded_by_the_drain(start, logged):
    logged.expect("not done after")
    Later.pending = []
    server = start(Later, small_limits(drain_timeout_s=0.1))
    client = server.connect()
    client.send(b"a\n")
    wait_until(lambda: Later.pending, "the line")
    stopped = threading.Event()
    server.call(server.server.drain, stopped.set)
    assert stopped.wait(10)
    assert server.server.aborted
    server.call(Later.pending[0].answer)  # harmless


def test_37_late_answer_after_the_peer_is_gone_is_dropped(start):
    Later.pending = []
    server = start(Later)
    client = server.connect()
    client.send(b"a\n")
    wait_until(lambda: Later.pending, "the line")
    client.reset()
    server.wait_empty()
    server.call(Later.pending[0].answer)
    with pytest.raises(RuntimeError, match="without a hold"):
        server.call(Later.pending[0].connection.release)


def test_37_late_answer_nothing_new_is_read_while_draining(start):
    Later.pending = []
    server = start(Later)
    client = server.connect()
    client.send(b"a\n")
    wait_until(lambda: Later.pending, "the line")
    server.call(server.server.drain)
    server.passes(5)
    client.send(b"b\n")
    server.passes(5)
    server.call(Later.pending[0].answer)
    assert client.receive_rest() == b"answer\n"
    assert len(Later.pending) == 1


def test_37_own_half_close_leaves_the_other_direction_open(start):
    class Report(Recorder):
        def on_connect(self) -> bytes:
            super().on_connect()
            self.connection.write(b"one ")
            self.connection.write_eof()
            self.connection.write(b"never")
            return b"two"

    protocol = recorder(Report)
    server = start(protocol)
    client = server.connect()
    assert client.receive_rest() == b"one two"
    connection = server.connection()
    assert connection.state is State.HALF_CLOSED
    client.send(b"still heard")
    wait_until(lambda: protocol.received() == b"still heard", "what the client says")
    client.half_close()
    server.wait_empty()
    assert protocol.events[-2:] == ["eof", "close"]


def test_37_own_half_close_comes_after_what_a_slow_reader_has_not_taken(start):
    data = bytes(range(256)) * 40_000

    class Report(Protocol):
        def on_data(self, received: bytes) -> None:
            self.connection.write(data)
            self.connection.write_eof()

    server = start(Report)
    client = server.connect(receive_buffer=8192)
    client.send(b"x")
    client.half_close()
    assert client.receive_rest() == data
    server.wait_empty()
    assert server.server.stats.failed == 0


def test_37_own_half_close_then_drain(start):
    class Ends(Protocol):
        def on_connect(self) -> None:
            self.connection.write_eof()

    server = start(Ends)
    client = server.connect()
    assert client.receive_rest() == b""
    server.call(server.server.drain)
    client.close()
    server.wait_empty()
    assert not server.server.aborted


# ---------------------------------------------------------------------- 38


def test_38_on_close_comes_when_all_is_said_though_the_peer_stays(start):
    class Bye(Recorder):
        def on_data(self, data: bytes) -> bytes:
            super().on_data(data)
            self.connection.close()
            return b"bye"

    protocol = recorder(Bye)
    server = start(protocol, small_limits(linger_timeout_s=60))
    client = server.connect()
    client.send(b"x")
    assert client.receive_rest() == b"bye"
    wait_until(lambda: protocol.events[-1] == "close", "on_close, though the client's end is open")
    assert server.connection().state is State.LINGERING
    client.send(b"dropped")
    server.passes(3)
    client.close()
    server.wait_empty()
    assert protocol.events == ["connect", ("data", b"x"), "close"]
    assert server.server.stats.bytes_received == len(b"xdropped")


# ---------------------------------------------------------------------- 39


def test_39_protocol_without_a_connection_says_so():
    class Early(Protocol):
        def __init__(self) -> None:
            self.name = self.connection.peer

    with pytest.raises(AttributeError, match=r"this Early has no connection yet"):
        Early()


def test_39_protocol_that_forgets_its_base_is_served(start):
    class Forgets(LineProtocol):
        max_line_bytes = 10

        def __init__(self) -> None:
            self.prefix = b"> "

        def on_line(self, line: bytes) -> bytes:
            return self.prefix + line + b"\n"

        def on_overlong_line(self) -> bytes:
            return b"long\n"

    client = start(Forgets).connect()
    client.send(b"abc\n" + b"x" * 20 + b"\ndef")
    client.half_close()
    assert client.receive_rest() == b"> abc\nlong\n> def\n"


def test_39_order_of_what_is_written_and_what_is_returned(start):
    class Mixes(LineProtocol):
        def on_line(self, line: bytes) -> bytes:
            self.connection.write(b"<" + line)
            return b">\n"

    client = start(Mixes).connect()
    lines = [b"%d" % number for number in range(5000)]
    threading.Thread(target=client.send, args=(b"".join(line + b"\n" for line in lines),)).start()
    wanted = b"".join(b"<" + line + b">\n" for line in lines)
    assert client.receive_exactly(len(wanted)) == wanted


# ---------------------------------------------------------------------- water marks


def test_14_pipelining_marks_speak_of_what_the_kernel_did_not_take(start):
    """What the kernel takes whole tells nobody, however much it is; what waits for it is seen by who asks."""
    seen: list[int] = []

    class Much(Recorder):
        def on_data(self, data: bytes) -> None:
            super().on_data(data)
            self.connection.write(bytes(100_000))
            self.connection.loop.call_soon(lambda: seen.append(self.connection.unsent_bytes))  # before the flush
            self.connection.loop.call_later(0, lambda: seen.append(self.connection.unsent_bytes))  # after it

    protocol = recorder(Much)
    server = start(protocol)
    server.server.listeners[0].socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    client = server.connect()
    client.send(b"x")
    client.receive_exactly(100_000)
    wait_until(lambda: len(seen) == 2, "both")
    assert seen == [100_000, 0]
    assert "high" not in protocol.events

"""Numbers 35 to 39: what a turn may cost, what a callback returns, and answers and ends that come later.

No time is measured here: what a turn may cost is counted in messages and in passes of the loop.
"""

from __future__ import annotations

import threading
from typing import Any, ClassVar

import pytest

from clients import Client
from evloop import CallbackResultError, LineProtocol, Protocol
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
@pytest.mark.one_selector
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


@pytest.mark.one_selector
def test_35_turn_counts_what_is_written_like_what_is_returned(start):
    Shouts.turns = []
    server = start(Shouts)
    client = server.connect()
    threading.Thread(target=client.send, args=(b"x" * 200_000,)).start()
    assert client.receive_exactly(2_000_000) == b"0123456789" * 200_000
    per_pass = [Shouts.turns.count(number) for number in set(Shouts.turns)]
    # A piece of that protocol's is more than a turn may say, so no turn has a second one.
    assert max(per_pass) == 1


@pytest.mark.one_selector
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
@pytest.mark.one_selector
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
@pytest.mark.one_selector
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
@pytest.mark.one_selector
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
    try:
        client.send(b"x\n")
        client.half_close()
    except OSError:
        pass  # it was faster
    client.was_reset()
    server.wait_empty()


@pytest.mark.parametrize("value", [bytearray(b"ok"), memoryview(b"ok"), b"ok"], ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("where", ["on_data", "on_line", "on_connect"])
@pytest.mark.one_selector
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

"""An exception in a callback costs its own connection, once, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from evloop import LineProtocol, Protocol
from servers import Recorder, recorder, small_limits
from waiting import wait_until


class Bang(Exception):
    pass


class Faulty(Recorder):
    """Raises in one callback of the connection that asks for it, and echoes on the others."""

    where = ""
    armed = True

    def __init__(self) -> None:
        self.armed = type(self).armed
        type(self).armed = False  # only the first connection

    def raise_in(self, callback: str) -> None:
        if self.armed and self.where == callback:
            raise Bang(callback)

    def data_handler(self) -> Any:
        self.raise_in("data_handler")
        return super().data_handler()

    def on_connect(self) -> None:
        super().on_connect()
        self.raise_in("on_connect")

    def on_data(self, data: bytes) -> bytes:
        super().on_data(data)
        self.raise_in("on_data")
        return data * (100_000 if self.armed and "water" in self.where else 1)

    def on_eof(self) -> None:
        super().on_eof()
        self.raise_in("on_eof")

    def on_high_water(self) -> None:
        super().on_high_water()
        self.raise_in("on_high_water")

    def on_low_water(self) -> None:
        super().on_low_water()
        self.raise_in("on_low_water")

    def on_close(self, error: Exception | None) -> None:
        super().on_close(error)
        self.raise_in("on_close")

    def message_in_progress(self) -> int | None:
        if self.received():  # however late that comes on a busy machine
            self.raise_in("message_in_progress")
        return None


DATA = ("data", b"x" * 100)
CLOSED_BY_BANG = ("close", "Bang")


@pytest.mark.parametrize(
    ("where", "events", "log"),
    [
        ("on_connect", ["connect", CLOSED_BY_BANG], "aborted: its protocol raised"),
        ("on_data", ["connect", DATA, CLOSED_BY_BANG], "aborted: its protocol raised"),
        ("on_eof", ["connect", DATA, "eof", CLOSED_BY_BANG], "aborted: its protocol raised"),
        ("on_high_water", ["connect", DATA, "high", CLOSED_BY_BANG], "aborted: its protocol raised"),
        ("on_low_water", ["connect", DATA, "high", "low", CLOSED_BY_BANG], "aborted: its protocol raised"),
        ("on_close", ["connect", DATA, "eof", "close"], "on_close raised"),
        ("message_in_progress", ["connect", DATA, CLOSED_BY_BANG], "aborted: its protocol raised"),
        ("data_handler", [], "its protocol could not be made"),
    ],
)
def test_an_exception_in_a_callback(start, logged, where, events, log):
    logged.expect(log)
    protocol = recorder(Faulty, where=where)
    server = start(protocol, small_limits(message_timeout_s=0.05))
    first = server.connect(receive_buffer=4096)
    wait_until(lambda: server.server.stats.accepted == 1)
    seen = len(events)
    if where not in ("on_connect", "data_handler"):
        first.send(b"x" * 100)
    if where in ("on_eof", "on_close"):
        assert first.receive_exactly(100) == b"x" * 100
        first.half_close()
    if where == "on_low_water":
        wait_until(lambda: "high" in protocol.events)
        try:
            first.receive_rest()
        except ConnectionError:
            pass
    server.wait_empty()
    wait_until(lambda: server.server.stats.closed == 1)
    assert protocol.events == events
    assert server.server.stats.failed == (0 if where == "on_close" else 1)
    assert len(logged.records) == 1
    assert logged.records[0].exc_info is not None
    assert logged.records[0].exc_info[0] is Bang

    second = server.connect()
    for _ in range(3):
        assert second.ask(b"still here", 10) == b"still here"
    assert protocol.events[seen] == "connect"


def test_a_protocol_that_cannot_be_made(start, logged):
    logged.expect("its protocol could not be made")
    made: list[Protocol] = []

    def factory() -> Protocol:
        made.append(Recorder())
        if len(made) == 1:
            raise Bang
        return recorder()()

    server = start(factory, small_limits(max_connections_per_address=1))
    assert not server.connect().was_reset()  # nothing was lost, so an orderly end will do
    second = server.connect()  # the first one's place is free again
    wait_until(server.connections)
    second.close()


def test_exceptions_in_on_line_and_on_overlong_line(start, logged):
    logged.expect("aborted: its protocol raised")

    class Lines(LineProtocol):
        max_line_bytes = 10

        def on_line(self, line: bytes) -> bytes:
            if line == b"bang":
                raise Bang
            return line + b"\n"

        def on_overlong_line(self) -> None:
            raise Bang

    server = start(Lines)
    for fatal in (b"bang\n", b"x" * 11 + b"\n", b"ok\nbang\nok\n"):
        client = server.connect()
        assert client.ask(b"fine\n", 5) == b"fine\n"
        client.send(fatal)
        client.was_reset()
        client.close()
    server.wait_empty()
    assert len(logged.records) == 3


def test_exceptions_in_calls_and_timers_are_logged_and_the_loop_goes_on(start, logged):
    logged.expect("call of .*fails raised")
    server = start(Protocol)
    happened: list[str] = []

    def fails() -> None:
        raise Bang

    def schedule() -> None:
        server.loop.call_soon(fails)
        server.loop.call_soon(happened.append, "call")
        server.loop.call_later(0, fails)
        server.loop.call_later(0, happened.append, "timer")

    server.call(schedule)
    wait_until(lambda: happened == ["call", "timer"])
    assert len(logged.records) == 2


def test_a_flood_of_exceptions_does_not_flood_the_log(start, logged):
    logged.expect("aborted: its protocol raised")
    logged.allow("lines like these left out")

    class Bad(Protocol):
        def on_connect(self) -> None:
            raise Bang

    server = start(Bad)
    for _ in range(100):
        server.connect().close()
    wait_until(lambda: server.server.stats.closed == 100)
    server.close()  # says how many were left out
    tracebacks = sum(record.exc_info is not None for record in logged.records)
    left_out = sum(record.args[0] for record in logged.records if "left out" in record.msg)  # type: ignore
    assert tracebacks + left_out == 100
    assert tracebacks <= 60

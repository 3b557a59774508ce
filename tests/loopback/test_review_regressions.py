"""Corners that were wrong once."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from clients import Client
from conftest import LoggedWarnings
from evloop import EventLoop, Limits, LineProtocol, Protocol, Server
from servers import RunningServer
from waiting import run_until, wait_until


def test_a_server_stopped_from_a_callback_of_a_new_connection(selector) -> None:
    with EventLoop(selector=selector()) as loop:

        class Last(Protocol):
            def on_connect(self) -> None:
                server.drain(loop.stop)

        server = Server(loop, Last, Limits(max_connections=100))
        server.listen()
        host, port = server.listeners[0].socket.getsockname()[:2]
        with Client((host, port)) as first, Client((host, port)) as second:
            gave_up = loop.call_later(5, loop.stop)
            first.half_close()
            second.half_close()
            loop.run()
            assert gave_up.active
        assert not server.connections


def test_no_message_deadline_runs_while_the_connection_is_not_read(start: Callable[..., RunningServer]) -> None:
    class Pausing(LineProtocol):
        def on_line(self, line: bytes) -> bytes:
            self.connection.pause_reading()
            return b"paused\n"

    server = start(Pausing, Limits(max_connections=100, message_timeout_s=0.1))
    client = server.connect()
    client.send(b"one\nthe beginning of another")
    assert client.receive_line() == b"paused\n"
    passed: list[bool] = []
    server.call(server.loop.call_later, 0.5, passed.append, True)
    wait_until(lambda: passed)
    assert server.limit_hits("message-timeout") == 0
    server.call(server.connection().resume_reading)
    wait_until(lambda: server.limit_hits("message-timeout"), "the deadline, now that it is read again")


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_kind_of_bytes_can_be_written(start: Callable[..., RunningServer], kind: Callable[[bytes], bytes]) -> None:
    class Echo(Protocol):
        def on_data(self, data: bytes) -> bytes:
            self.connection.write(kind(b"written, "))
            self.connection.write(kind(b"twice, "))
            return kind(b"returned\n")

    client = start(Echo).connect()
    client.send(b"x")
    assert client.receive_line() == b"written, twice, returned\n"


def test_a_watch_that_cannot_be_changed_costs_one_connection(logged: LoggedWarnings) -> None:
    logged.expect("lost: .*memory")
    with EventLoop() as loop:
        server = Server(loop, Protocol, Limits(max_connections=100))
        server.listen()
        host, port = server.listeners[0].socket.getsockname()[:2]
        with Client((host, port), receive_buffer=4096) as client:
            run_until(loop, lambda: server.connections)
            (connection,) = server.connections
            modify = loop.poller._selector.modify

            def no_memory(fd: int, events: int) -> None:
                loop.poller._selector.unregister(fd)
                raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

            loop.poller._selector.modify = no_memory  # type: ignore[method-assign]
            connection.write(bytes(8 << 20))
            run_until(loop, lambda: not server.connections)
            loop.poller._selector.modify = modify  # type: ignore[method-assign]
            assert client.was_reset()
        server.abort()

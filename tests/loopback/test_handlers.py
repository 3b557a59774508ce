"""Handlers on real sockets: served, drained, aborted, connected."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from evloop import (
    ConnectError,
    ConnectionLostError,
    EventLoop,
    Stream,
    TaskGroup,
    connect,
    run_in_thread,
    sleep,
    timeout,
)
from evloop.protocols.tasks import Task
from waiting import DEADLINE_S, run_until, wait_until


async def upper(stream: Stream) -> None:
    async for line in stream.lines():
        stream.write(line.upper() + b"\n")


def test_a_handler_knows_what_was_agreed_on_with_tls(serving, start_tls):
    from tlsworld import connect_tls  # makes certificates

    async def handler(stream: Stream) -> None:
        stream.write(b"none" if stream.tls is None else stream.tls.version.encode())

    with connect_tls(start_tls(handler).address) as sealed:
        assert sealed.recv(100).decode() == sealed.version()
    _, _, client = serving(handler)
    with client() as plain:
        assert plain.receive_rest() == b"none"


# ---------------------------------------------------------------------- outgoing connections, threads


def run_task(loop: EventLoop, coroutine):
    task = Task(loop, coroutine)
    task.start()
    run_until(loop, lambda: task.done)
    if task.error is not None:
        raise task.error
    return task.result


def test_a_conversation_with_a_server(serving):
    _, server, _ = serving(upper)
    address = server.listeners[0].socket.getsockname()

    async def main() -> list[bytes]:
        async with await connect(*address) as stream:
            stream.write(b"one\ntwo\n")
            stream.write_eof()
            return [line async for line in stream.lines()]

    with EventLoop() as loop:
        assert run_task(loop, main()) == [b"ONE", b"TWO"]


def test_a_connection_that_cannot_be_made():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        address = sock.getsockname()

        async def main() -> None:
            await connect(*address)

        with EventLoop() as loop, pytest.raises(ConnectError, match="refused"):
            run_task(loop, main())


def test_a_connection_attempt_that_is_cancelled_leaves_nothing(serving):
    _, server, _ = serving(upper)
    address = server.listeners[0].socket.getsockname()

    async def main() -> None:
        scope = timeout(None)
        async with scope, TaskGroup() as group:
            group.create_task(connect(*address))
            await sleep(0)
            scope.cancel()

    with EventLoop() as loop:
        run_task(loop, main())
    wait_until(lambda: not server.connections)


def test_a_handler_of_an_outgoing_connection(serving, logged):
    logged.expect("cannot connect to .*refused")
    _, server, _ = serving(upper)
    address = server.listeners[0].socket.getsockname()
    got = []

    async def client(stream: Stream) -> None:
        stream.write(b"hello\n")
        got.append(await anext(stream.lines()))

    with EventLoop() as loop:
        loop.connect(client, *address)
        run_until(loop, lambda: got)
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            loop.connect(client, *sock.getsockname())
            run_until(loop, lambda: loop.timers == 0)
        with pytest.raises(TypeError, match="neither a Protocol object nor an async function"):
            loop.connect(upper.__class__, *address)
    assert got == [b"HELLO"]
    wait_until(lambda: not server.connections)


def test_a_thread_answers_and_raises():
    def fail() -> None:
        raise LookupError("in the thread")

    async def main() -> int:
        with pytest.raises(LookupError, match="in the thread"):
            await run_in_thread(fail)
        return await run_in_thread(pow, 2, 10)

    with EventLoop() as loop:
        assert run_task(loop, main()) == 1024


def test_who_is_cancelled_does_not_wait_for_a_thread():
    gate = threading.Event()

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with timeout(0.02):
                await run_in_thread(gate.wait, DEADLINE_S)

    with EventLoop() as loop:
        began = time.monotonic()
        run_task(loop, main())
        assert time.monotonic() - began < DEADLINE_S / 2
        gate.set()


def test_a_handler_that_waits_learns_of_the_idle_time_out(serving):
    ends = []

    async def handler(stream: Stream) -> None:
        try:
            async for line in stream.lines():
                stream.write(line)
        except ConnectionLostError as error:
            ends.append(str(error))
            raise

    _, server, client = serving(handler, idle_timeout_s=0.1)
    with client() as one:
        one.ask(b"x\n", 1)
        assert one.receive_rest() == b""
    wait_until(lambda: ends)
    assert ends == ["the connection was lost: no byte in 0.1 s"]
    wait_until(lambda: server.stats.limits["idle-timeout"] == 1)


def test_a_handler_that_cannot_be_called_so_is_an_error_of_its_connection(serving, logged):
    logged.expect("aborted: its protocol raised")

    async def handler() -> None:
        pass

    _, server, client = serving(handler)
    with client() as one:
        assert one.receive_rest() == b""
    wait_until(lambda: server.stats.failed == 1)

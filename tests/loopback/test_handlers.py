"""Handlers on real sockets: served, drained, aborted, connected."""

from __future__ import annotations

import functools
import socket
import subprocess
import sys
import threading
import time
import traceback

import pytest

from clients import Client
from evloop import (
    ConnectError,
    ConnectionLostError,
    EventLoop,
    Limits,
    Server,
    Stream,
    TaskGroup,
    connect,
    run_in_thread,
    sleep,
    timeout,
)
from evloop.net.protocol import is_handler
from evloop.protocols.tasks import Task
from servers import LoopThread
from waiting import DEADLINE_S, run_until, wait_until


async def upper(stream: Stream) -> None:
    async for line in stream.lines():
        stream.write(line.upper() + b"\n")


class Upper:
    """Whatever else an async function can be."""

    async def method(self, stream: Stream) -> None:
        await upper(stream)

    async def with_a_name(self, name: bytes, stream: Stream) -> None:
        stream.write(name)
        await upper(stream)

    @staticmethod
    async def static(stream: Stream) -> None:
        await upper(stream)

    async def __call__(self, stream: Stream) -> None:
        await upper(stream)


class Below(Upper):
    pass


@pytest.fixture
def serving():
    """Serves a handler in a loop of its own thread: called with it, returns server and a function for a client."""
    threads = []

    def serve(handler, **limits):
        thread = LoopThread()
        server = thread.call(lambda: Server(thread.loop, handler, Limits(**limits)))
        threads.append((thread, server))
        thread.call(server.listen)
        address = server.listeners[0].socket.getsockname()
        return thread, server, lambda: Client(address)

    yield serve
    for thread, server in threads:
        thread.call(server.abort)
        thread.passes(3)
        thread.close()


@pytest.mark.parametrize(
    "handler",
    [
        upper,
        Upper().method,
        Upper.static,
        Upper(),
        Below(),
        functools.partial(Upper().with_a_name, b""),
        functools.partial(functools.partial(Below()), *()),
    ],
    ids=["function", "method", "static", "object", "object of a subclass", "partial", "partial of a partial"],
)
def test_whatever_is_an_async_function_of_a_stream_is_a_handler(serving, handler):
    thread, server, client = serving(handler)
    with client() as one:
        assert one.ask(b"hello\n", 6) == b"HELLO\n"
    thread.call(server.abort)


@pytest.mark.parametrize("other", [Server, Upper, lambda: None, int, functools.partial(int), 3])
def test_what_is_none_is_taken_for_none(other):
    assert not is_handler(other)


def test_an_asynchronous_generator_is_told_that_it_is_no_handler():
    async def handler(stream: Stream):
        yield b"reply"

    with EventLoop() as loop, pytest.raises(TypeError, match="a handler has no yield"):
        Server(loop, handler)


def test_who_has_no_coroutines_does_not_load_them():
    program = "import sys, evloop; evloop.Server(evloop.EventLoop(), evloop.Protocol); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    assert "evloop.server.server" in done.stdout
    assert "evloop.protocols.tasks" not in done.stdout
    assert "inspect" not in done.stdout.split()


# ---------------------------------------------------------------------- the end of a server


def stopped(thread: LoopThread, stop, server: Server) -> list[int]:
    """Stops it, and returns a list that has something in it when it has stopped."""
    ended: list[int] = []
    if stop == "drain":
        thread.call(lambda: server.drain(lambda: ended.append(1)))
    else:
        thread.call(lambda: (server.drain(lambda: ended.append(1)), server.abort()))
    return ended


def test_a_drain_is_the_end_of_what_a_handler_reads(serving):
    async def handler(stream: Stream) -> None:
        async for line in stream.lines():
            stream.write(line + b"\n")
        await sleep(0.01)
        stream.write(b"goodbye\n")

    thread, server, client = serving(handler)
    with client() as one:
        one.ask(b"hello\n", 6)
        ended = stopped(thread, "drain", server)
        assert one.receive_rest() == b"goodbye\n"
        wait_until(lambda: ended)
    assert not server.aborted


def test_a_handler_that_does_not_end_is_cancelled_at_the_deadline_and_waited_for(serving, logged):
    logged.expect("1 connections not done after 0.1 s: aborted")
    steps = []

    async def handler(stream: Stream) -> None:
        try:
            stream.write(b"x")
            await sleep(1000)
        finally:
            steps.append("cancelled")
            async with timeout(2, shield=True):
                await sleep(0.05)
            steps.append("cleaned up")

    thread, server, client = serving(handler, drain_timeout_s=0.1)
    with client() as one:
        one.receive_exactly(1)
        ended = stopped(thread, "drain", server)
        wait_until(lambda: ended)
    assert steps == ["cancelled", "cleaned up"]
    assert server.aborted


@pytest.mark.parametrize("stop", ["drain", "abort"])
def test_a_handler_whose_connection_is_gone_is_waited_for(serving, stop):
    steps = []

    async def handler(stream: Stream) -> None:
        try:
            await stream.read()
            stream.abort()
            steps.append("alone")
            await sleep(0.2 if stop == "drain" else 1000)
            steps.append("came to the end")
        finally:
            async with timeout(2, shield=True):
                await sleep(0.02)
            steps.append("cleaned up")

    thread, server, client = serving(handler)
    with client() as one:
        one.send(b"x")
        wait_until(lambda: steps)
        ended = stopped(thread, stop, server)
        wait_until(lambda: ended)
    assert steps == ["alone", *(["came to the end"] if stop == "drain" else []), "cleaned up"]


def test_to_abort_again_is_to_wait_for_nobody(serving, logged):
    logged.expect("1 handlers have not ended, and are not waited for any longer")
    release = []

    async def handler(stream: Stream) -> None:
        try:
            stream.write(b"x")
            await sleep(1000)
        finally:
            async with timeout(1000, shield=True):
                while not release:
                    await sleep(0.005)
            release.append("done")

    thread, server, client = serving(handler)
    with client() as one:
        one.receive_exactly(1)
        ended = stopped(thread, "abort", server)
        thread.passes(3)
        assert not ended
        thread.call(server.abort)
        wait_until(lambda: ended)
    release.append("go")
    wait_until(lambda: "done" in release)


def test_a_handler_can_stop_its_own_server(serving):
    ended = []

    async def handler(stream: Stream) -> None:
        async for line in stream.lines():
            if line == b"stop":
                server.drain(lambda: ended.append(1))
            stream.write(line + b"\n")
            await sleep(0)

    _, server, client = serving(handler)
    with client() as one, client() as other:
        other.ask(b"x\n", 2)
        one.send(b"stop\nand\n")
        other.send(b"y\n")
        assert one.receive_rest() == b"stop\nand\n"
        assert other.receive_rest() == b"y\n"
        wait_until(lambda: ended)


PROGRAM = """
import sys
from evloop import serve, sleep, timeout

async def handler(stream):
    try:
        await stream.write(b"x")
        await sleep(1000)
    finally:
        print("cancelled", flush=True)
        async with timeout(1000, shield=True):
            await sleep(1000)

serve(handler, on_listening=lambda addresses: print(addresses[0].rpartition(":")[2], flush=True))
print("ended", flush=True)
"""


def test_a_second_signal_ends_at_once():
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        with Client(("127.0.0.1", int(program.stdout.readline()))) as one:
            one.receive_exactly(1)
            program.terminate()
            wait_until(lambda: refused(one.socket.getpeername()))
            program.terminate()
            out, err = program.communicate(timeout=DEADLINE_S)
        assert set(out.split()) == {"cancelled", "ended"}  # the handlers saw it, and nobody waited for them
        assert "Traceback" not in err
        assert program.returncode == 0
    finally:
        program.kill()
        program.wait()


def refused(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, 1).close()
    except ConnectionRefusedError:
        return True
    return False


# ---------------------------------------------------------------------- errors


def test_what_a_handler_raises_is_logged_with_its_lines(serving, logged):
    logged.expect("aborted: its handler raised")

    async def handler(stream: Stream) -> None:
        await stream.read()
        raise ValueError("mine")  # the line to be seen

    _, server, client = serving(handler)
    with client() as one:
        one.send(b"x")
        assert one.receive_rest() == b""
    wait_until(lambda: server.stats.failed == 1)
    text = "".join(traceback.format_exception(logged.records[-1].exc_info[1]))
    assert "# the line to be seen" in text
    assert "evloop/protocols" not in text


def test_a_reset_is_quiet(serving):
    _, server, client = serving(upper)
    one = client()
    one.ask(b"x\n", 2)
    one.reset()
    wait_until(lambda: server.stats.closed == 1)


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

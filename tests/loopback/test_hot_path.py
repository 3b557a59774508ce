"""The hot path does not grow unnoticed: what one more message costs is counted, not timed.

Two passes of the loop are compared, of which one serves one more connection. The difference is what a message costs:
calls of Python functions, calls of C functions, and bytecode instructions. They are the same on every run and every
machine. A change that makes them fewer should lower the numbers here; one that makes them more should have a reason.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from clients import Client
from coroutines import handled
from counting import Exchange, calls, instructions, instructions_of
from evloop import Connection, EventLoop, Limits, LineProtocol, MessageProtocol, Protocol, Stream
from evloop.charcount.server import CharCountServer, ServiceSettings
from waiting import run_pass, run_until


@pytest.fixture
def exchange() -> Iterator[Exchange]:
    """Sends a message on so many connections, serves them in one pass (or more), and takes the replies."""
    # All that is on in a service is on here.
    limits = Limits(max_connections=100, idle_timeout_s=600, message_timeout_s=60)
    with EventLoop() as loop:
        server = CharCountServer(loop, ServiceSettings(limits=limits))
        server.listen()
        host, port = server.listeners[0].socket.getsockname()[:2]
        clients = [Client((host, port)) for _ in range(2)]
        run_until(loop, lambda: len(server.connections) == 2)

        def run(connections: int, message: bytes, reply_size: int, passes: int = 1) -> None:
            for client in clients[:connections]:
                client.send(message)
            for _ in range(passes):
                run_pass(loop)
            for client in clients[:connections]:
                client.receive_exactly(reply_size)

        yield run
        server.abort()
        for client in clients:
            client.close()


ONE = (b"x" * 31 + b"\n", 3)
SIXTEEN = (ONE[0] * 16, 48)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        pytest.param(
            ONE,
            {
                "_handle_readable": 1,
                "c:recv": 1,
                "c:len": 4,
                "feed": 1,
                "c:partition": 1,
                "c:isascii": 1,
                "c:send": 1,
            },
            id="one message",
        ),
        pytest.param(
            SIXTEEN,
            {
                "_handle_readable": 1,
                "c:recv": 1,
                "c:len": 4 + 16,
                "feed": 1,
                "_feed_batch": 1,
                "_answer_batch": 1,
                "<listcomp>": 1,
                "c:partition": 1,
                "c:rpartition": 1,
                "c:split": 1,
                "c:isascii": 1,
                "c:join": 1,
                "c:send": 1,
            },
            id="sixteen in one chunk",
        ),
    ],
)
def test_calls_of_one_more_message(exchange: Exchange, message: tuple[bytes, int], expected: dict[str, int]) -> None:
    more = calls(exchange, 2, *message)
    more.subtract(calls(exchange, 1, *message))
    if sys.version_info >= (3, 12):
        expected.pop("<listcomp>", None)  # inlined since
    assert {name: count for name, count in more.items() if count} == expected


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="bytecode differs from version to version")
@pytest.mark.parametrize(
    ("message", "most"), [pytest.param(ONE, 134, id="one"), pytest.param(SIXTEEN, 351, id="sixteen")]
)
def test_instructions_of_one_more_message(exchange: Exchange, message: tuple[bytes, int], most: int) -> None:
    cost = instructions(exchange, 2, *message) - instructions(exchange, 1, *message)
    assert 0 < cost <= most


# ---------------------------------------------------------------------- coroutines


async def upper(stream: Stream) -> None:
    async for line in stream.lines():
        stream.write(line)


async def upper_in_batches(stream: Stream) -> None:
    async for lines in stream.batches():
        await stream.write(b"".join(lines))


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="bytecode differs from version to version")
@pytest.mark.parametrize(
    ("handler", "each_chunk", "each_line"),
    [pytest.param(upper, 215, 43, id="lines"), pytest.param(upper_in_batches, 262, 0, id="batches")],
)
def test_instructions_of_what_a_coroutine_reads_and_writes(handler: Any, each_chunk: int, each_line: int) -> None:
    peer = handled(handler)
    peer.feed(b"x\n" * 16)

    def cost(lines: int) -> int:
        return instructions_of(lambda: peer.feed(b"x\n" * lines), within="/evloop/protocols/")

    one, two, sixteen = cost(1), cost(2), cost(16)
    assert sixteen - one == 15 * (two - one)
    assert two - one <= each_line
    assert one - (two - one) <= each_chunk
    peer.eof()


@pytest.mark.parametrize("kind", [Protocol, LineProtocol, MessageProtocol, Stream, Connection])
def test_attributes_are_found_the_fast_way(kind: type) -> None:
    """With a `__getattr__` in a class, CPython looks up each attribute of its objects by a slow path."""
    assert not hasattr(kind, "__getattr__")

"""What one more message by TLS costs does not grow unnoticed: see test_hot_path.py."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from statistics import median

import pytest

from counting import Exchange, calls, instructions
from evloop import EventLoop, Limits
from evloop.charcount.server import CharCountServer, ServiceSettings
from tlsworld import RecordClient, world
from waiting import run_pass, run_until

LINE = b"x" * 31 + b"\n"
ONE, SIXTEEN_IN_ONE, SIXTEEN = [LINE], [LINE * 16], [LINE] * 16


@pytest.fixture
def exchange() -> Iterator[Exchange]:
    """Sends records on so many connections, serves them in one pass (or more), and takes the replies."""
    limits = Limits(max_connections=100, idle_timeout_s=600, message_timeout_s=60)
    with EventLoop() as loop:
        server = CharCountServer(loop, ServiceSettings(limits=limits))
        server.listen(tls=world().settings())
        host, port = server.listeners[0].socket.getsockname()[:2]
        clients = [RecordClient((host, port)) for _ in range(2)]
        for client in clients:
            thread = threading.Thread(target=client.shake_hands)
            thread.start()
            run_until(loop, lambda thread=thread: not thread.is_alive())
        run_until(loop, lambda: [found.tls is not None for found in server.connections] == [True, True])

        def run(connections: int, records: list[bytes], reply_size: int, passes: int = 1) -> None:
            for client in clients[:connections]:
                client.send(*records)
            for _ in range(passes):
                run_pass(loop)
            for client in clients[:connections]:
                client.receive_exactly(reply_size)

        yield run
        server.abort()
        for client in clients:
            client.close()


FEED = {"feed": 1, "c:partition": 1, "c:isascii": 1}
FEED_BATCH = {
    **dict.fromkeys(("feed", "_feed_batch", "_answer_batch", "<listcomp>"), 1),
    **{f"c:{name}": 1 for name in ("partition", "rpartition", "split", "isascii")},
}
# Received, put into one buffer of OpenSSL's, read; handed over; written, taken from the other one (a read, too), sent.
SEALED = {"_handle_readable": 1, "_hand_over": 1, "c:recv": 1, "c:send": 1}


@pytest.mark.parametrize(
    ("records", "reply_size", "expected"),
    [
        pytest.param(ONE, 3, {**SEALED, **FEED, "c:len": 6}, id="one"),
        pytest.param(SIXTEEN_IN_ONE, 48, {**SEALED, **FEED_BATCH, "c:len": 6 + 16, "c:join": 1}, id="sixteen in one"),
        pytest.param(
            SIXTEEN,
            48,
            {
                **SEALED,
                **FEED_BATCH,
                **dict.fromkeys(("_read_more", "_read_records", "_deliver", "_push"), 1),
                "c:append": 15,
                "c:len": 8 + 16,
                "c:join": 2,
            },
            id="a record each",
        ),
    ],
)
def test_calls_of_one_more_message(
    exchange: Exchange, records: list[bytes], reply_size: int, expected: dict[str, int]
) -> None:
    more = calls(exchange, 2, records, reply_size)
    more.subtract(calls(exchange, 1, records, reply_size))
    if sys.version_info >= (3, 12):
        expected.pop("<listcomp>", None)  # inlined since
    found = {name: count for name, count in more.items() if count}
    # How many of these are seen depends on the version: of the buffers' methods they are, of the TLS object's that are
    # written in Python some are.
    for name in ("c:write", "c:read", "write", "read"):
        found.pop(name, None)
    assert found == expected


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="bytecode differs from version to version")
@pytest.mark.parametrize(
    ("records", "reply_size", "most"),
    [
        pytest.param(ONE, 3, 207, id="one"),
        pytest.param(SIXTEEN_IN_ONE, 48, 415, id="sixteen in one"),
        pytest.param(SIXTEEN, 48, 822, id="a record each"),
    ],
)
def test_instructions_of_one_more_message(exchange: Exchange, records: list[bytes], reply_size: int, most: int) -> None:
    # A timer may fire in one of the passes, so the median of three. Sixteen records cost 819 or 822.
    costs = [
        instructions(exchange, 2, records, reply_size) - instructions(exchange, 1, records, reply_size)
        for _ in range(3)
    ]
    assert 0 < median(costs) <= most

"""A server stopped amid 200 busy clients answers each request that had reached its kernel: behaviours 31 and 32."""

from __future__ import annotations

import random
import selectors
import signal
import socket
import time
from collections import deque
from collections.abc import Callable

import pytest

from interpreters import loads_logging_fast
from processes import Process
from waiting import DEADLINE_S

CLIENTS = 200


class BusyClient:
    """Keeps some requests in flight, and remembers when each was handed to the kernel.

    On loopback, a send that has returned has put its bytes into the receive buffer of the other end.
    """

    def __init__(self, address: tuple[str, int], pipeline: int, chance: random.Random) -> None:
        self.socket = socket.create_connection(address, DEADLINE_S)
        self.socket.setblocking(False)
        self.waiting: deque[tuple[float, bytes]] = deque()  # when it was sent, and what its reply must be
        self.answered = 0
        self.over = False
        self._chance = chance
        self._pipeline = pipeline
        self._input = b""

    def send_some(self) -> None:
        """Fill up what is in flight."""
        missing = self._pipeline - len(self.waiting)
        if missing <= 0 or self.over:
            return
        sizes = [self._chance.randrange(40) for _ in range(missing)]
        request = b"".join(b"x" * size + b"\n" for size in sizes)
        try:
            sent = self.socket.send(request)
        except ConnectionError:
            self.over = True
            return
        assert sent == len(request)
        now = time.monotonic()
        self.waiting.extend((now, b"%d" % size) for size in sizes)

    def receive(self) -> None:
        """Take replies; each must be the next right one."""
        try:
            data = self.socket.recv(65536)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            self.over = True
            return
        *lines, self._input = (self._input + data).split(b"\n")
        for line in lines:
            _, expected = self.waiting.popleft()
            assert line == expected
            self.answered += 1


def stop_amid_load(spawn: Callable[..., Process], seed: int) -> None:
    """One run. Fails when a request that had reached the server's kernel before the signal was not answered."""
    chance = random.Random(seed)
    server = spawn("--log-level", "warning", "--drain-timeout", "30")
    clients = [BusyClient(server.address, chance.choice([1, 1, 2, 8]), chance) for _ in range(CLIENTS)]
    enough = chance.randrange(500, 4000)
    deadline = time.monotonic() + 30
    stopped_at = 0.0
    try:
        with selectors.DefaultSelector() as selector:
            for client in clients:
                selector.register(client.socket, selectors.EVENT_READ, client)
                client.send_some()
            while selector.get_map():
                assert time.monotonic() < deadline, "not over in time"
                for key, _ in selector.select(1):
                    key.data.receive()
                    if key.data.over:
                        selector.unregister(key.data.socket)
                        key.data.socket.close()
                    else:
                        key.data.send_some()
                if not stopped_at and sum(client.answered for client in clients) > enough:
                    late = [BusyClient(server.address, 3, chance) for _ in range(20)]  # perhaps not yet accepted
                    for client in late:
                        selector.register(client.socket, selectors.EVENT_READ, client)
                        client.send_some()
                    clients += late
                    stopped_at = time.monotonic()
                    server.signal(signal.SIGTERM)
        lost = sum(1 for client in clients for sent_at, _ in client.waiting if sent_at <= stopped_at)
        assert lost == 0, f"{lost} requests sent before the signal were not answered (seed {seed})"
        assert server.wait() == 0, server.log
        said = [line for line in server.log.splitlines() if "the loop was blocked" not in line]  # a busy machine's word
        assert len(said) == 1, server.log  # nothing but where it listens
    finally:
        for client in clients:
            client.socket.close()


@pytest.mark.parametrize("seed", range(4))
@loads_logging_fast
def test_drain_under_load(spawn, seed):
    stop_amid_load(spawn, seed)


@pytest.mark.slow
@loads_logging_fast
def test_drain_under_load_100_times(spawn):
    for seed in range(100, 200):
        stop_amid_load(spawn, seed)

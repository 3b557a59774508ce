"""Clients that send without waiting, and look at each reply: for what must not be noticed by anybody."""

from __future__ import annotations

import random
import select
import socket
import time
from collections import deque
from collections.abc import Callable

from waiting import DEADLINE_S

# Messages that one client has sent and that are not answered, at most; and in one send.
_MOST_OWED = 64
_DEPTH = 16


class Pipeliner:
    """One of them."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.socket = sock
        self.owed: deque[int] = deque()
        self.unsent = b""
        self.got = b""


class Crowd:
    """Clients of the counting service.

    Args:
        count: how many.
        connect: makes the socket of one.

    Attributes:
        answered: messages that were answered right.
        wrong: replies that were not what was owed.
        ended: how connections have ended that should not have.
    """

    def __init__(self, count: int, connect: Callable[[], socket.socket]) -> None:
        self._random = random.Random(count)
        self._clients = {sock.fileno(): Pipeliner(sock) for sock in (connect() for _ in range(count))}
        self.answered = 0
        self.wrong: list[bytes] = []
        self.ended: list[str] = []

    @property
    def owed(self) -> int:
        """Messages that are sent, or to be sent, and not answered."""
        return sum(len(client.owed) for client in self._clients.values())

    def run_until(self, condition: Callable[[], object], what: str) -> None:
        """All send and receive, until it is so; it is looked at now and then."""
        deadline = time.monotonic() + 3 * DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, what
            for _ in range(5):
                self._turn()

    def finish(self) -> None:
        """Take what is owed. All are closed then."""
        deadline = time.monotonic() + DEADLINE_S
        while self.owed and time.monotonic() < deadline:
            self._turn(talk=False)
        for client in self._clients.values():
            client.socket.close()

    def _turn(self, talk: bool = True) -> None:
        if talk:
            for client in list(self._clients.values()):
                self._talk(client)
        ready = select.poll()
        for number, client in self._clients.items():
            ready.register(number, select.POLLIN | (select.POLLOUT if client.unsent else 0))
        for number, events in ready.poll(2):
            client = self._clients[number]
            if events & select.POLLOUT:
                self._send(client)
            if events & ~select.POLLOUT and number in self._clients:
                self._receive(client)

    def _talk(self, client: Pipeliner) -> None:
        if len(client.owed) < _MOST_OWED and self._random.random() < 0.5:
            sizes = [self._random.randrange(60) for _ in range(_DEPTH)]
            client.owed.extend(sizes)
            client.unsent += b"".join(b"x" * size + b"\n" for size in sizes)
            self._send(client)

    def _send(self, client: Pipeliner) -> None:
        cut = self._random.randrange(1, len(client.unsent) + 1)  # anywhere in a message
        try:
            client.unsent = client.unsent[client.socket.send(client.unsent[:cut]) :]
        except BlockingIOError:
            pass
        except OSError as error:
            self._end(client, repr(error))

    def _receive(self, client: Pipeliner) -> None:
        try:
            data = client.socket.recv(65536)
        except OSError as error:
            self._end(client, repr(error))
            return
        if not data:
            self._end(client, "end of stream")
            return
        *replies, client.got = (client.got + data).split(b"\n")
        for reply in replies:
            if client.owed and reply == b"%d" % client.owed.popleft():
                self.answered += 1
            else:
                self.wrong.append(reply)

    def _end(self, client: Pipeliner, how: str) -> None:
        self.ended.append(f"{how}, with {len(client.owed)} messages not answered")
        del self._clients[client.socket.fileno()]
        client.socket.close()

"""Servers whose connections move: each generation hands them over to the next, as processes do, over a socket pair.

All of it runs in the test's thread, pass by pass, so a test knows what has happened and what has not.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from clients import Client
from evloop import EventLoop, Limits, LineProtocol, Protocol, Server
from evloop.charcount.server import CharCountServer, ServiceSettings
from evloop.core.poller import READ
from evloop.server.handover import HandOver, adopt
from waiting import DEADLINE_S, run_pass, wait_until

MakeServer = Callable[[EventLoop], Server]
Worlds = Callable[..., "World"]
# More than any state in these tests.
_STATE_BYTES = 200_000


class Generation:
    """A server with a loop of its own, which listens on a socket that it shares with the other generations."""

    def __init__(self, loop: EventLoop, server: Server, listening: socket.socket) -> None:
        self.loop = loop
        self.server = server
        self.takes = False  # something may still arrive
        sock = listening.dup()
        sock.setblocking(False)
        server.add_listener(sock)

    def stop_accepting(self) -> None:
        """Leave what waits in the queue to others."""
        for listener in self.server.listeners:
            listener.close()
        self.server.listeners.clear()

    def take_over(self, arrivals: socket.socket) -> None:
        """Adopt what comes, until the end of it."""
        arrivals.setblocking(False)
        self.takes = True

        def arrived() -> None:
            try:
                state, numbers, _, _ = socket.recv_fds(arrivals, _STATE_BYTES, 1)
            except BlockingIOError:
                return
            if not state:
                self.loop.poller.watch(arrivals.fileno(), 0, arrived)
                arrivals.close()
                self.takes = False
                return
            adopt([self.server], socket.socket(fileno=numbers[0]), state)

        self.loop.poller.register(arrivals.fileno(), READ, arrived)


class World:
    """Generations of a server. The last one accepts.

    Args:
        make_server: makes the server of each generation. It does not listen.
        clock: of all loops; None for the real one.
    """

    def __init__(self, make_server: MakeServer, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._clients: list[Client] = []
        self._channels: list[socket.socket] = []
        self.all: list[Generation] = []
        self.hand_overs: list[HandOver] = []
        self.done = self.rounds = 0
        self.is_full = False
        self.begin(make_server)

    def begin(self, make_server: MakeServer) -> Generation:
        """One more generation, which accepts from now on, too."""
        loop = EventLoop() if self._clock is None else EventLoop(clock=self._clock)
        generation = Generation(loop, make_server(loop), self._listening)
        self.all.append(generation)
        return generation

    def connect(self, *, receive_buffer: int | None = None) -> Client:
        """A client that was accepted, by the generation that accepts."""
        before = [generation.server.stats.accepted for generation in self.all]
        client = self.connect_unaccepted(receive_buffer)
        self.until(lambda: [generation.server.stats.accepted for generation in self.all] != before)
        return client

    def connect_unaccepted(self, receive_buffer: int | None = None) -> Client:
        """A client that has connected."""
        client = Client(self._listening.getsockname()[:2], receive_buffer=receive_buffer)
        self._clients.append(client)
        return client

    def send_to_next(self, channel: socket.socket) -> Callable[[bytes, socket.socket], None]:
        """What sends a connection to the process at the other end."""
        return lambda state, sock: (socket.send_fds(channel, [state], [sock.fileno()]), None)[1]

    def _count_round(self) -> None:
        self.rounds += 1

    @property
    def is_settled(self) -> bool:
        """Whether all that was sent has arrived, and nothing more will be sent."""
        return self.done == len(self.hand_overs) and not any(generation.takes for generation in self.all)

    def move(self, make_server: MakeServer, timeout_s: float = DEADLINE_S) -> Generation:
        """Begin to move all to a new generation. Some passes later all are there that can move at once."""
        new = self.begin(make_server)
        new.take_over(self.hand_over(self.all[-2], timeout_s))
        return new

    def hand_over(self, old: Generation, timeout_s: float = DEADLINE_S) -> socket.socket:
        """Begin to hand over all connections to whoever reads what this returns."""
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        old.stop_accepting()
        self._channels += here, there

        def done() -> None:
            self.done += 1
            here.close()

        send = self.send_to_next(here)
        self.hand_overs.append(
            HandOver(old.loop, [old.server], send, done, timeout_s, lambda: self.is_full, self._count_round)
        )
        return there

    def passes(self, count: int = 3) -> None:
        """So many of each loop."""
        for _ in range(count):
            for generation in self.all:
                run_pass(generation.loop)

    def until(self, condition: Callable[[], object], what: str = "") -> None:
        """Passes, until it is so."""

        def tried() -> object:
            self.passes(1)
            return condition()

        wait_until(tried, what)

    def until_moved(self) -> None:
        """Until no generation has anything to send to the next one."""
        self.until(lambda: self.done == len(self.hand_overs), "all that can move has moved")
        self.passes()

    def ask(self, client: Client, data: bytes, size: int) -> bytes:
        """Send, and have it answered."""
        client.send(data)
        got = bytearray()
        client.socket.setblocking(False)

        def answered() -> bool:
            try:
                piece = client.socket.recv(size - len(got))
            except BlockingIOError:
                return False
            got.extend(piece)
            return not piece or len(got) == size

        try:
            self.until(answered, f"{size} bytes")
        finally:
            client.socket.settimeout(DEADLINE_S)
        return bytes(got)

    def close(self) -> None:
        """End all of it."""
        for client in self._clients:
            client.close()
        for channel in self._channels:
            channel.close()
        for generation in self.all:
            generation.server.abort()
            run_pass(generation.loop)
            run_pass(generation.loop)
            generation.loop.close()
        self._listening.close()


@contextmanager
def world(make_server: MakeServer, clock: Callable[[], float] | None = None) -> Iterator[World]:
    """A `World` that is closed in the end."""
    made = World(make_server, clock)
    try:
        yield made
    finally:
        made.close()


def service(**settings: Any) -> MakeServer:
    """The counting service."""
    limits = Limits(max_connections=100, **settings.pop("limits", {}))
    return lambda loop: CharCountServer(loop, ServiceSettings(limits=limits, **settings))


def serving(protocol: Callable[[], Protocol], **limits: Any) -> MakeServer:
    """A server of one protocol."""
    return lambda loop: Server(loop, protocol, Limits(max_connections=100, **limits))


class Upper(LineProtocol):
    """Answers each line in capitals."""

    def on_line(self, line: bytes) -> bytes:
        return line.upper() + b"\n"


class Later(Protocol):
    """Answers when it is told to."""

    asked: ClassVar[list[Later]]

    def on_data(self, data: bytes) -> None:
        self.connection.hold()
        self.asked.append(self)

    def answer(self) -> None:
        self.connection.write(b"later\n")
        self.connection.release()

"""The loop: behaviours 25 to 30 of docs/reliability.md."""

from __future__ import annotations

import errno
import socket

import pytest

from clients import Client
from evloop import Connection, Protocol, Server
from evloop.server.listener import Listener
from faults.endings import read_to_the_end
from faults.faultysocket import FaultyListener
from processes import SPINNING
from servers import small_limits
from waiting import run_pass, run_until, wait_until


class Echo(Protocol):
    def on_data(self, data: bytes) -> bytes | None:
        return data


# ---------------------------------------------------------------------- 25

HOOKS = ["on_connect", "on_data", "on_eof", "on_high_water", "on_low_water", "on_close", "message_in_progress"]


@pytest.mark.parametrize("hook", HOOKS)
def test_25_handler_exception_costs_one_connection(start, logged, hook):
    logged.expect("raised")
    closed: list[Exception | None] = []

    class Shaky(Protocol):
        victim = False

        def on_data(self, data: bytes) -> bytes | None:
            if data == b"victim":
                self.arm()
                # Above the high-water mark, and later below the low one.
                return b"x" * 200_000
            return data

        def arm(self) -> None:
            self.victim = True
            if hook in ("on_connect", "on_data"):
                self.fail()

        def fail(self) -> None:
            raise RuntimeError("on purpose")

        def on_close(self, error: Exception | None) -> None:
            closed.append(error)
            if self.victim and hook == "on_close":
                self.fail()

    def failing(self: Shaky, *args: object) -> None:
        if self.victim:
            self.fail()

    if hook not in ("on_connect", "on_data", "on_close"):
        setattr(Shaky, hook, failing)
    if hook == "on_connect":
        Shaky.on_connect = lambda self: self.fail() if self.connection.loop.shaky_connects else None  # type: ignore

    # Small buffers, so that the reply can't leave at once; time-outs, so that message_in_progress is asked.
    server = start(Shaky, small_limits(message_timeout_s=0.05, write_timeout_s=60))
    server.server.listeners[0].socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    server.loop.shaky_connects = False
    bystander = server.connect()
    assert bystander.ask(b"x", 1) == b"x"
    server.loop.shaky_connects = True
    victim = server.connect(receive_buffer=4096)
    victim.send(b"victim")
    if hook in ("on_eof", "on_close"):
        assert victim.receive_exactly(200_000)
        victim.half_close()
        assert read_to_the_end(victim) == (b"", False)
    elif hook == "on_connect":
        assert read_to_the_end(victim)[0] == b""  # a reset or not: perhaps its bytes were there already, unread
    elif hook == "on_data":
        assert read_to_the_end(victim) == (b"", False)
    else:
        received, was_reset = read_to_the_end(victim)
        # What was cut off ends in a reset, what was not in order. The first to come is above the mark, ...
        assert was_reset == (len(received) < 200_000)
        if hook == "on_high_water":
            assert was_reset
        elif hook == "on_low_water":
            assert len(received) > 100_000  # ... the second when most has left,
        else:
            assert not was_reset  # and who is not read is not asked for a message.
    wait_until(lambda: len(closed) == 1, "the one connection is closed")
    assert bystander.ask(b"y", 1) == b"y"
    assert len(server.connections()) == 1
    server.loop.shaky_connects = False
    assert server.connect().ask(b"z", 1) == b"z"
    assert sum(line.count("raised") for line in logged.lines) == 1, logged.lines
    assert len(closed) == 1


def test_25_handler_exception_in_the_factory_and_the_constructor(start, logged):
    logged.expect("its protocol could not be made")
    made = []

    class Fails(Protocol):
        def __init__(self) -> None:
            made.append(self)
            if len(made) == 1:
                raise RuntimeError("on purpose")

        def data_handler(self):
            if len(made) == 2:
                raise RuntimeError("on purpose")
            return lambda data: data

    server = start(Fails)
    for _ in range(2):
        assert server.connect().receive_rest() == b""
    assert server.connect().ask(b"x", 1) == b"x"
    assert (server.server.stats.failed, server.server.stats.accepted, server.server.stats.closed) == (2, 3, 2)


def test_25_handler_exceptions_by_the_thousand_are_not_a_log_flood(start, logged):
    logged.expect("its protocol raised")
    logged.allow("left out")

    class Fails(Protocol):
        def on_data(self, data: bytes) -> None:
            raise RuntimeError("on purpose")

    server = start(Fails)
    for _ in range(200):
        client = server.connect()
        client.send(b"x")
        client.was_reset()
        client.close()
    assert server.server.stats.failed == 200
    assert len(logged.records) < 200


def test_25_handler_exceptions_and_exhaustion_are_logged_beside_a_crowd_of_refusals(start, logged):
    """A client that can provoke one kind of line can't hide another kind behind it."""
    logged.expect("refused: too-many-connections limit 1")
    logged.allow("left out")
    logged.expect(r"ERROR evloop: connection 127\.0\.0\.1:\d+ aborted: its protocol raised")
    logged.expect("WARNING evloop: cannot accept on")

    class Fails(Protocol):
        def on_data(self, data: bytes) -> None:
            raise RuntimeError("on purpose")

    server = start(Fails, small_limits(max_connections=1))
    victim = server.connect()
    wait_until(server.connections, "the one that fits")
    for _ in range(60):
        assert server.connect().receive_line() == b"ERR too-many-connections limit 1\n"
    victim.send(b"x")
    assert not victim.was_reset()
    faulty = FaultyListener(errno.EMFILE, times=1)
    listener = server.call(Listener, server.loop, faulty, 10, lambda sock, address: sock.close())
    with Client(faulty.getsockname()):
        wait_until(lambda: listener.exhausted, "an accept failed")
    server.call(listener.close)
    (raised,) = [record for record in logged.records if record.levelname == "ERROR"]
    assert raised.exc_info is not None
    assert isinstance(raised.exc_info[1], RuntimeError)


# ---------------------------------------------------------------------- 26


def test_26_stale_event_never_reaches_a_new_connection_with_the_same_descriptor(loop):
    """Both are ready in one pass; the first to be handled ends the other and opens new descriptors at once."""
    received: dict[str, bytes] = {}
    opened: list[tuple[socket.socket, int]] = []
    ended: list[int] = []
    protocols: list[Protocol] = []

    class EndsOthers(Protocol):
        def on_connect(self) -> None:
            protocols.append(self)

        def on_data(self, data: bytes) -> None:
            received[self.connection.peer] = received.get(self.connection.peer, b"") + data
            if data != b"first":
                return
            for other in protocols:
                if other is not self and not other.connection.closing:
                    ended.append(other.connection.socket.fileno())
                    other.connection.abort()
            for _ in range(5):  # would get the numbers of those just ended, if they were free
                near, far = socket.socketpair()
                near.setblocking(False)
                opened.append((far, near.fileno()))
                adopt(near)

    def adopt(sock: socket.socket) -> None:
        server._accepted(Connection, socket.AF_UNIX, sock, (f"adopted-{sock.fileno()}", 0))

    server = Server(loop, EndsOthers, small_limits())
    server.listen()
    host, port = server.listeners[0].socket.getsockname()
    clients = [Client((host, port)) for _ in range(4)]
    again = [socket.socket() for _ in range(3)]  # so that these don't take the numbers that become free
    run_until(loop, lambda: len(server.connections) == 4, "all connected")
    for client in clients:
        client.send(b"first")
    run_until(loop, lambda: opened, "the first was handled")
    assert len(ended) == 3
    assert not {number for _, number in opened} & set(ended)
    # Only the first was ever handled; nobody got what was meant for another.
    assert list(received.values()) == [b"first"]

    # In later passes the numbers are used again; each then gets its own bytes only.
    run_pass(loop)
    for client in again:
        client.connect((host, port))
    run_until(loop, lambda: len(server.connections) == 1 + 5 + 3, "connected again")
    numbers = {connection.socket.fileno() for connection in server.connections}
    assert set(ended) <= numbers
    for number, client in enumerate(again):
        client.send(b"again %d" % number)
    run_until(loop, lambda: len(received) == 4, "all received")
    names = {"{}:{}".format(*client.getsockname()): number for number, client in enumerate(again)}
    assert {name: received[name] for name in names} == {name: b"again %d" % number for name, number in names.items()}
    server.abort()
    run_pass(loop)
    for client in [*clients, *again]:
        client.close()
    for far, _ in opened:
        far.close()


# ---------------------------------------------------------------------- 27


@pytest.mark.parametrize("how", ["reset", "close"])
def test_27_hang_up_on_a_paused_socket_does_not_spin(start, loop_cpu_share, how):
    class Pauses(Protocol):
        def on_connect(self) -> None:
            self.connection.pause_reading()

    server = start(Pauses)
    for _ in range(3):
        client = server.connect()
        client.send(b"unread")
        getattr(client, how)()
    wait_until(lambda: len(server.connections()) == 3, "three")
    assert loop_cpu_share(server) < SPINNING
    # It is noticed as soon as it matters.
    for connection in server.connections():
        server.call(connection.resume_reading)
    server.wait_empty()


def test_27_hang_up_on_a_stalled_socket_does_not_spin(start, loop_cpu_share):
    server = start(Echo, small_limits())
    server.server.listeners[0].socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    client = server.connect(receive_buffer=4096)
    client.socket.setblocking(False)
    connection = server.connection()
    while not server.call(lambda: connection.stalled):
        try:
            client.socket.send(b"x" * 4096)
        except BlockingIOError:
            pass
    assert loop_cpu_share(server) < SPINNING
    client.reset()
    server.wait_empty()


def test_27_hang_up_half_open_with_nothing_to_send_does_not_spin(start, loop_cpu_share):
    class KeepsOpen(Protocol):
        keep_half_open = True

    server = start(KeepsOpen)
    client = server.connect()
    client.half_close()
    connection = server.connection()
    wait_until(lambda: connection.state.value == "half-open", "half-open")
    client.reset()
    assert loop_cpu_share(server) < SPINNING

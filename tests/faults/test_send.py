"""What leaves, and what is left when the peer is gone: behaviours 17 to 21."""

from __future__ import annotations

import errno
import random
import socket
import threading
import time

import pytest

from evloop import Connection, EventLoop, Limits, Protocol
from evloop.charcount.session import LineSession, Replies
from evloop.net.buffers import SendQueue
from faults.endings import assert_no_reset_follows
from faults.faultysocket import FaultySocket
from servers import Echo, recorder, small_limits
from waiting import DEADLINE_S, run_pass, run_until


def faulty_connection(
    loop: EventLoop, protocol: Protocol, limits: Limits | None = None, **plans: object
) -> tuple[Connection, FaultySocket, socket.socket]:
    """A connection on a faulty socket, and the peer's end."""
    near, peer = socket.socketpair()
    near.setblocking(False)
    peer.settimeout(DEADLINE_S)
    faulty = FaultySocket(near, **plans)  # type: ignore[arg-type]
    connection = Connection(loop, faulty, "peer", protocol, Limits() if limits is None else limits)
    connection.open()
    return connection, faulty, peer


# ---------------------------------------------------------------------- 17


def test_17_send_queue_costs_the_same_per_byte_however_long_it_is():
    def send_all(size: int) -> None:
        queue = SendQueue()
        queue.append(b"x" * size)
        while queue:
            queue.peek()
            queue.advance(50)

    def cpu_s(size: int) -> float:
        costs = []
        for _ in range(3):
            began = time.thread_time()
            send_all(size)
            costs.append(time.thread_time() - began)
        return min(costs)

    # Four times the bytes: four times the work. A copy of the rest for each piece would make it sixteen.
    assert cpu_s(4_000_000) < 8 * cpu_s(1_000_000)


def test_17_send_queue_of_many_small_replies_takes_few_sends(loop):
    stalled = [True]
    connection, faulty, peer = faulty_connection(
        loop, Protocol(), send_plan=lambda size: -errno.EAGAIN if stalled[0] else size
    )
    for _ in range(10_000):
        connection.write(b"3\n")
    run_pass(loop)
    tried = faulty.sends
    stalled[0] = False
    run_until(loop, lambda: not connection.unsent_bytes)
    assert faulty.sends - tried <= 10
    received = b""
    while len(received) < 20_000:
        received += peer.recv(65536)
    assert received == b"3\n" * 10_000
    connection.abort()
    run_pass(loop)
    peer.close()


# ---------------------------------------------------------------------- 18


@pytest.mark.parametrize("seed", range(5))
def test_18_eagain_and_short_sends_neither_lose_nor_repeat_a_byte(loop, seed):
    chance = random.Random(seed)

    def plan(size: int) -> int:
        return chance.choice([-errno.EAGAIN, -errno.EINTR, 1, 7, 1000, size, size])

    session = LineSession(Replies())

    class Counts(Protocol):
        def on_data(self, data: bytes) -> bytes:
            return session.feed(data)

        def on_eof(self) -> bytes:
            return session.finish()

    connection, faulty, peer = faulty_connection(loop, Counts(), small_limits(), send_plan=plan, receive_plan=plan)
    sizes = [chance.randrange(3000) for _ in range(500)]
    received = []

    def client() -> None:
        for size in sizes:
            peer.sendall(b"x" * size + b"\n")
        peer.shutdown(socket.SHUT_WR)

    def reader() -> None:
        while data := peer.recv(65536):
            received.append(data)

    threads = [threading.Thread(target=client), threading.Thread(target=reader)]
    for thread in threads:
        thread.start()
    run_until(loop, lambda: connection.state.value == "closed")
    run_pass(loop)
    for thread in threads:
        thread.join(DEADLINE_S)
    peer.close()
    assert b"".join(received) == b"".join(b"%d\n" % size for size in sizes)
    assert faulty.closes == 1


# ---------------------------------------------------------------------- 19


class Refuses(Protocol):
    """Answers the first bytes with an error, and closes with the rest unread."""

    def on_data(self, data: bytes) -> bytes:
        self.connection.close()
        return b"ERR go away\n"


def test_19_error_reply_survives_close_with_unread_input(start):
    server = start(Refuses, small_limits(linger_timeout_s=60))
    for _ in range(10):
        client = server.connect()
        client.send(b"x" * 300_000)
        assert client.receive_rest() == b"ERR go away\n"
        assert_no_reset_follows(client)
        client.close()
    server.wait_empty()
    assert server.call(lambda: server.server.stats.limits) == {}


def test_19_error_reply_linger_is_bounded_in_bytes(start):
    server = start(Refuses, small_limits(linger_bytes=200_000, linger_timeout_s=60))
    client = server.connect()

    def send_for_ever() -> None:
        while True:
            client.send(b"x" * 65536)

    with pytest.raises(ConnectionError):
        send_for_ever()
    server.wait_empty()
    assert server.limit_hits("linger-bytes") == 1


def test_19_error_reply_linger_is_bounded_in_time(start):
    server = start(Refuses, small_limits(linger_timeout_s=0.1))
    client = server.connect()
    client.send(b"x")
    assert client.receive_rest() == b"ERR go away\n"
    server.wait_empty()  # though the client keeps its end open
    assert server.limit_hits("linger-timeout") == 1


# ---------------------------------------------------------------------- 20


def test_20_writes_after_the_peer_is_gone_one_event_and_no_log(start, caplog):
    caplog.set_level("DEBUG")
    kind = recorder()
    server = start(kind)
    client = server.connect()
    connection = server.connection()
    client.reset()

    def write_on() -> None:
        for _ in range(100):
            connection.write(b"x" * 100)

    for _ in range(20):
        server.call(write_on)
    server.wait_empty()
    server.call(write_on)
    server.passes()
    assert [event for event in kind.events if event != "connect"] in (
        [("close", "ConnectionResetError")],
        [("close", "BrokenPipeError")],
    )
    assert [record for record in caplog.records if record.name.startswith("evloop")] == []


def test_20_writes_after_abort_never_reach_the_peer(loop):
    class Aborts(Protocol):
        def on_data(self, data: bytes) -> bytes:
            self.connection.abort()
            self.connection.write(b"written after abort")
            return b"returned after abort"

        def on_high_water(self) -> None:
            raise AssertionError("called after on_close")

    connection, faulty, peer = faulty_connection(loop, Aborts(), small_limits(high_water_bytes=5, low_water_bytes=1))
    peer.sendall(b"x")
    run_until(loop, lambda: connection.state.value == "closed")
    run_pass(loop)
    assert peer.recv(100) == b""
    assert (faulty.sends, faulty.closes, connection.unsent_bytes) == (0, 1, 0)
    peer.close()


# ---------------------------------------------------------------------- 21


def test_21_nodelay_and_keepalive_are_on(start):
    server = start(Echo)
    client = server.connect()
    assert client.ask(b"x", 1) == b"x"
    sock = server.connection().socket
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_21_replies_of_a_chunk_leave_in_one_send(loop):
    class Counts(Protocol):
        def __init__(self) -> None:
            self.session = LineSession(Replies())

        def on_data(self, data: bytes) -> bytes:
            return self.session.feed(data)

    connection, faulty, peer = faulty_connection(loop, Counts())
    peer.sendall(b"a\nab\n\nabc\n" * 40)  # less than the first receive takes
    run_until(loop, lambda: faulty.sends)
    assert peer.recv(65536) == b"1\n2\n0\n3\n" * 40
    assert faulty.sends == 1
    assert faulty.receives == 1
    connection.abort()
    run_pass(loop)
    peer.close()

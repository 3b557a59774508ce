"""Writing: behaviours 14 to 21 of docs/reliability.md."""

from __future__ import annotations

import errno
import random
import selectors
import socket
import threading
import time

import pytest

from clients import Client
from evloop import Connection, EventLoop, LimitError, Limits, Protocol
from evloop.charcount.session import LineSession, Replies
from evloop.net.buffers import SendQueue
from faults.chunks import MOST_REPLIES_OF_A_TURN, record_chunks
from faults.endings import assert_no_reset_follows
from faults.faultysocket import FaultySocket
from processes import SPINNING
from servers import recorder, small_limits
from waiting import DEADLINE_S, run_pass, run_until, wait_until


class Echo(Protocol):
    def on_data(self, data: bytes) -> bytes:
        return data


def small_send_buffers(server) -> None:
    """Connections accepted from now on have a small SO_SNDBUF: they inherit it from the listener."""
    for listener in server.server.listeners:
        listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)


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


# ---------------------------------------------------------------------- 14

# What makes the service say more than it is told: empty messages, and the shortest invalid ones.
AMPLIFIERS = [
    pytest.param(b"\n", b"0\n", id="empty messages"),
    pytest.param(b"\xff\n", b"ERR invalid-utf8 at byte 0\n", id="invalid messages"),
]


def send_until_full(client: Client, message: bytes, sent: int = 0) -> int:
    """Send the message again and again until the server takes no more of it; go on after ``sent`` bytes.

    Returns:
        how many bytes have been sent in all.
    """
    batch = message * 32768
    client.socket.settimeout(0.1)
    try:
        while sent < 64_000_000:
            sent += client.socket.send(batch[sent % len(message) :])
    except TimeoutError:
        return sent
    finally:
        client.socket.settimeout(DEADLINE_S)
    raise AssertionError("the server never stopped reading")


@pytest.mark.parametrize(("message", "reply"), AMPLIFIERS)
def test_14_pipelining_client_that_never_reads_is_not_read(spawn, message, reply):
    server = spawn()
    other = server.connect()
    assert other.ask(b"abc\n", 2) == b"3\n"
    before = server.memory()
    client = server.connect(receive_buffer=4096)
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    sent = send_until_full(client, message)
    assert server.memory() - before < 8_000_000
    assert server.cpu_share() < SPINNING
    assert other.ask(b"abcd\n", 2) == b"4\n"
    # Nothing was lost on the way: once it reads, it gets every answer.
    client.half_close()
    whole, begun = divmod(sent, len(message))
    answers = client.receive_rest()
    assert len(answers) == (whole + bool(begun)) * len(reply)
    assert answers.startswith(reply * min(whole, 1000))


@pytest.mark.parametrize(("message", "reply"), AMPLIFIERS)
@pytest.mark.parametrize("trusted", [False, True], ids=["from the start", "after big messages"])
@pytest.mark.parametrize("selector", [selectors.DefaultSelector])
def test_14_pipelining_client_unsent_bytes_are_bounded(counting, message, reply, trusted):
    """The bound: the high-water mark, and the replies of one turn, whatever the peer has sent before."""
    limits = Limits(max_connections=100)
    server = counting(limits)
    small_send_buffers(server)
    server.server.listeners[0].socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 100_000)
    client = server.connect(receive_buffer=4096)
    connection = server.connection()
    chunks = record_chunks(server, connection)
    if trusted:
        for _ in range(3):
            assert client.ask(b"x" * 299_999 + b"\n", 7) == b"299999\n"
        assert max(chunk.received for chunk in chunks) > 32768
        chunks.clear()
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    release = server.hold()  # so that a receive finds all that it may take
    sent = send_until_full(client, message)
    release.set()

    def more_until_paused() -> bool:
        nonlocal sent
        sent = send_until_full(client, message, sent)
        return server.call(lambda: connection.paused)

    wait_until(more_until_paused, "the high-water mark")
    assert server.limit_hits("high-water") == 1
    unsent = [server.call(lambda: connection.unsent_bytes), *(chunk.unsent_before + chunk.replied for chunk in chunks)]
    assert max(unsent) <= limits.high_water_bytes + MOST_REPLIES_OF_A_TURN
    # Now it reads, and asks on.
    client.half_close()
    assert len(client.receive_rest()) == -(-sent // len(message)) * len(reply)
    assert max(chunk.replied for chunk in chunks) <= MOST_REPLIES_OF_A_TURN


def test_14_pipelining_client_that_never_reads_is_counted(start):
    server = start(Echo, small_limits())
    small_send_buffers(server)
    client = server.connect(receive_buffer=4096)
    connection = server.connection()
    client.socket.setblocking(False)

    def fill() -> bool:
        try:
            while True:
                client.socket.send(b"x" * 4096)
        except BlockingIOError:
            return server.limit_hits("high-water") == 1

    wait_until(fill, "the high-water mark")
    received = connection.bytes_received
    # Bounded by the mark and one read; and nothing more is read while it stands.
    assert 4096 < server.call(lambda: connection.unsent_bytes) <= 4096 + 65536
    server.passes(5)
    assert connection.bytes_received == received
    assert server.call(lambda: server.server.stats.limits) == {"high-water": 1}


# ---------------------------------------------------------------------- 15


def test_15_hard_cap_on_unsent_bytes_is_checked_on_append(start):
    closed: list[Exception | None] = []
    most = []

    class Broadcasts(Protocol):
        def on_data(self, data: bytes) -> None:
            # Writes without being asked, and without looking at the water marks.
            while not self.connection.closing:
                self.connection.write(b"x" * 1000)
                most.append(self.connection.unsent_bytes)

        def on_close(self, error: Exception | None) -> None:
            closed.append(error)

    server = start(Broadcasts, small_limits(max_unsent_bytes=50_000))
    client = server.connect()
    client.send(b"go")
    assert client.was_reset()  # all was dropped in the pass that wrote it
    assert max(most) <= 50_000
    (error,) = closed
    assert isinstance(error, LimitError)
    assert str(error) == "more than 50000 bytes unsent: the peer does not read"
    assert server.limit_hits("unsent") == 1


def test_15_hard_cap_does_not_count_what_the_kernel_took(start):
    server = start(Echo, small_limits(max_unsent_bytes=50_000))
    client = server.connect()
    for _ in range(20):
        assert client.ask(b"x" * 20_000, 20_000) == b"x" * 20_000
    assert server.limit_hits("unsent") == 0


# ---------------------------------------------------------------------- 16


def talks(size: int, closed: list[Exception | None]) -> type[Protocol]:
    """A protocol that says so many bytes, unasked, and tells how its connection ended."""

    class Talks(Protocol):
        def on_connect(self) -> bytes:
            return b"x" * size

        def on_close(self, error: Exception | None) -> None:
            closed.append(error)

    return Talks


def test_16_stalled_writer_is_aborted(start):
    closed: list[Exception | None] = []
    server = start(talks(1_000_000, closed), small_limits(write_timeout_s=0.2))
    small_send_buffers(server)
    client = server.connect(receive_buffer=4096)
    server.connection()
    wait_until(lambda: closed, "aborted")
    assert str(closed[0]) == "not one byte read by the peer in 0.2 s"
    assert server.limit_hits("write-timeout") == 1
    client.close()


@pytest.mark.parametrize("selector", [selectors.DefaultSelector])
def test_16_stalled_writer_that_moves_lives(start):
    total = 2_000_000
    server = start(talks(total, []), small_limits(write_timeout_s=0.3))
    small_send_buffers(server)
    client = server.connect(receive_buffer=4096)
    began, left = time.monotonic(), total
    # Some kilobytes every now and then: each time, bytes leave the server before its patience ends.
    while time.monotonic() - began < 0.8:
        left -= len(client.receive_exactly(8192))
        time.sleep(0.02)
    assert left > 0
    assert server.connection().stalled
    assert client.receive_exactly(left) == b"x" * left
    assert server.limit_hits("write-timeout") == 0


def test_16_stalled_writer_is_aborted_though_its_peer_goes_on_sending(start):
    """Bytes that come in are no sign that any go out: below the high-water mark the peer is still read."""
    closed: list[Exception | None] = []
    server = start(
        talks(1_000_000, closed), small_limits(high_water_bytes=1 << 22, write_timeout_s=0.2, idle_timeout_s=60)
    )
    small_send_buffers(server)
    client = server.connect(receive_buffer=4096)
    connection = server.connection()

    def dribble_until_closed() -> bool:
        try:
            client.send(b"y")  # several in each interval of the sweep
        except ConnectionError:
            wait_until(lambda: closed, "aborted between the look and the send")
        return bool(closed)

    wait_until(dribble_until_closed, "aborted while it sends")
    assert str(closed[0]) == "not one byte read by the peer in 0.2 s"
    assert connection.bytes_received  # it was read, as the limits that were hit say, too
    assert server.call(lambda: server.server.stats.limits) == {"write-timeout": 1}


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

"""Writing: behaviours 14 to 21 of docs/reliability.md."""

from __future__ import annotations

import socket
import time

import pytest

from clients import Client
from evloop import LimitError, Limits, Protocol
from faults.chunks import MOST_REPLIES_OF_A_TURN, record_chunks
from processes import SPINNING
from servers import Echo, small_limits
from waiting import DEADLINE_S, wait_until


def small_send_buffers(server) -> None:
    """Connections accepted from now on have a small SO_SNDBUF: they inherit it from the listener."""
    for listener in server.server.listeners:
        listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)


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
@pytest.mark.one_selector
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


@pytest.mark.one_selector
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

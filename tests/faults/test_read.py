"""Reading: behaviours 8 to 13 of docs/reliability.md."""

from __future__ import annotations

import signal
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable

import pytest

from evloop import Protocol
from evloop.charcount.session import LineSession, Replies
from evloop.limits import Limits
from evloop.net.receiving import RECV_BYTES
from evloop.protocols.lineframer import LineFramer
from faults.chunks import MOST_REPLIES_OF_A_TURN, record_chunks
from interpreters import gives_memory_back, measures_objects
from processes import SPINNING
from servers import RunningServer
from waiting import DEADLINE_S, wait_until

TEXT = "aé字𝄞 naïve\tčau 😀!"


# ---------------------------------------------------------------------- 8


def test_08_half_close_all_received_is_answered_the_unterminated_last_one_too(counting):
    server = counting()
    client = server.connect()
    client.send(b"a\nab\nabc\nlast")
    client.half_close()
    assert client.receive_rest() == b"1\n2\n3\n4\n"  # and then a FIN, not a reset
    server.wait_empty()
    assert server.server.stats.failed == 0


def test_08_half_close_with_more_replies_than_the_buffers_hold(counting):
    server = counting()
    server.server.listeners[0].socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)  # connections inherit it
    client = server.connect(receive_buffer=4096)
    count = 50_000
    sender = threading.Thread(target=lambda: (client.send(b"abc\n" * count), client.half_close()))
    sender.start()
    # Not one reply is taken before the server has stopped reading: the FIN waits behind what it hasn't read.
    wait_until(lambda: server.limit_hits("high-water"), "the high-water mark")
    assert client.receive_rest() == b"3\n" * count
    sender.join(DEADLINE_S)
    server.wait_empty()
    assert server.server.stats.failed == 0


def test_08_half_close_at_once(counting):
    server = counting()
    client = server.connect()
    client.half_close()
    assert client.receive_rest() == b""


# ---------------------------------------------------------------------- 9


def test_09_flood_does_not_starve_others(spawn):
    server = spawn()
    over = threading.Event()
    flooded = [0, 0]

    def flood(number: int, sock: socket.socket) -> None:
        sock.settimeout(DEADLINE_S)
        while not over.is_set():
            flooded[number] += sock.send(b"x" * 65536)  # one message without an end
        sock.close()

    threads = [threading.Thread(target=flood, args=(number, server.connect().socket)) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: min(flooded) > 1_000_000, "a flood")
        client = server.connect()
        before = list(flooded)
        for _ in range(100):
            assert client.ask(b"abc\n", 2) == b"3\n"
        # The flood was there all the time, and goes on.
        wait_until(lambda: all(now > then for now, then in zip(flooded, before, strict=True)), "still flooding")
    finally:
        over.set()
        for thread in threads:
            thread.join(DEADLINE_S)


def test_09_flood_gets_one_read_in_a_pass(start):
    moments: dict[str, list[float]] = {}

    class Notes(Protocol):
        wants_whole_chunks = True  # one call for each receive

        def on_data(self, data: bytes) -> None:
            moments.setdefault(self.connection.peer, []).append(self.connection.loop.now)

    server = start(Notes)
    flooder, other = server.connect(), server.connect()
    connections = wait_until(lambda: (found := server.connections()) and len(found) == 2 and found, "two")
    blocked, go_on = threading.Event(), threading.Event()
    server.loop.call_soon_threadsafe(lambda: (blocked.set(), go_on.wait(DEADLINE_S)))
    assert blocked.wait(DEADLINE_S)
    flooder.socket.setblocking(False)
    sent = 0
    try:
        while True:
            sent += flooder.socket.send(b"x" * 65536)
    except BlockingIOError:
        pass
    other.send(b"y")
    assert sent > 3 * 65536
    go_on.set()
    wait_until(lambda: sum(connection.bytes_received for connection in connections) == sent + 1, "all read")
    for seen in moments.values():
        assert len(set(seen)) == len(seen), "read twice in one pass"
    assert sorted(map(len, moments.values()))[0] == 1


class Flooder:
    """A client that sends short messages as fast as it can, and reads every answer. Two threads until it is told."""

    def __init__(self, server: RunningServer, messages: bytes) -> None:
        self.client = server.connect()
        self.client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        self.answered_bytes = 0
        self._messages = messages
        self._over = threading.Event()
        self._threads = [threading.Thread(target=work) for work in (self._send, self._read)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        while not self._over.is_set():
            self.client.send(self._messages)
        self.client.half_close()

    def _read(self) -> None:
        while part := self.client.socket.recv(1 << 18):
            self.answered_bytes += len(part)

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(DEADLINE_S)
            assert not thread.is_alive()


@pytest.mark.parametrize(
    ("message", "reply_bytes"), [pytest.param(b"\n", 2, id="empty"), pytest.param(b"\xff\n", 27, id="invalid")]
)
@pytest.mark.one_selector
def test_09_flood_of_tiny_messages_gets_small_turns(counting, message, reply_bytes):
    """A receive of 64 KiB can be tens of thousands of messages: much work while the others wait. So it is not so many.

    No time is measured: what an ordinary client may have to wait for is counted in passes of the loop, and in messages.
    """
    server = counting(Limits(max_connections=100))
    # More than a full receive, and not the megabytes of tiny messages by which the end would be late.
    server.server.listeners[0].socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 100_000)
    ordinary = server.connect()
    own_chunks = record_chunks(server, server.connection())
    flooders = [Flooder(server, message * 20_000) for _ in range(2)]
    connections = wait_until(lambda: (found := server.connections()) and len(found) == 3 and found, "all connected")
    floods = [record_chunks(server, connection) for connection in connections[1:]]
    release = server.hold()  # so that the first receives find as much as they may take
    for flooder in flooders:
        flooder.start()
    release.set()
    try:
        wait_until(lambda: min(flooder.answered_bytes for flooder in flooders) > 100_000, "a flood")
        waited = []
        for number in range(15):
            ordinary.send(b"abc\n")
            passes = server.loop.passes
            assert ordinary.receive_exactly(2) == b"3\n"
            waited.append(own_chunks[number].in_pass - passes)
        before = [flooder.answered_bytes for flooder in flooders]
        wait_until(lambda: all(f.answered_bytes > b for f, b in zip(flooders, before, strict=True)), "still flooding")
    finally:
        for flooder in flooders:
            flooder.stop()
    # Served in the pass that was just beginning, or in the one after it; the kernel may deliver a few of them later.
    assert statistics.median(waited) <= 2
    for chunks in floods:
        # In each pass a flooder is answered at most so much: no more messages than a few thousand.
        assert max(chunk.replied for chunk in chunks) <= MOST_REPLIES_OF_A_TURN
        assert max(chunk.received for chunk in chunks) <= RECV_BYTES, "two receives in one pass"
        assert sum(chunk.replied for chunk in chunks) // reply_bytes > 3000


# ---------------------------------------------------------------------- 10


def test_10_utf8_split_at_any_byte_counts_right(counting):
    server = counting()
    client = server.connect()
    connection = server.connection()
    line = (TEXT + "\r\n").encode()
    for split in range(1, len(line)):
        before = connection.bytes_received
        client.send(line[:split])
        wait_until(lambda before=before, split=split: connection.bytes_received == before + split, "the first part")
        client.send(line[split:])
        assert client.receive_line() == b"%d\n" % len(TEXT)


def test_10_utf8_byte_by_byte_counts_right_in_raw_framing(counting):
    server = counting(framing="raw")
    client = server.connect()
    connection = server.connection()
    for character in TEXT:
        for byte in character.encode():
            before = connection.bytes_received
            client.send(bytes([byte]))
            wait_until(lambda before=before: connection.bytes_received == before + 1, "a byte")
        assert client.receive_exactly(1) == b"1"


def test_10_utf8_invalid_bytes_get_an_error_and_the_next_message_is_in_sync(counting):
    server = counting()
    client = server.connect()
    bad = {
        b"\xff": 0,
        b"abc\xc3(": 3,
        b"\xe5\xad": 0,  # ends inside of a code point
        b"\xc0\xaf": 0,  # overlong
        b"\xed\xa0\x80": 0,  # a surrogate
        b"\xf4\x90\x80\x80": 0,  # beyond Unicode
        "é".encode() + b"\x80": 2,
    }
    for message, offset in bad.items():
        client.send(message + b"\nnext\n")
        assert client.receive_line() == b"ERR invalid-utf8 at byte %d\n" % offset
        assert client.receive_line() == b"4\n"


# ---------------------------------------------------------------------- 11


@gives_memory_back
def test_11_message_over_the_limit_bounded_memory_and_next_in_sync(spawn):
    server = spawn("--max-message", "1000")
    client = server.connect()
    assert client.ask(b"x" * 1000 + b"\n", 5) == b"1000\n"
    before = server.memory()
    for _ in range(64):
        client.send(b"x" * 1_000_000)
    assert server.memory() - before < 4_000_000
    client.send(b"\nabc\n" + b"y" * 1001 + b"\nabcd\n")
    assert client.receive_line() == b"ERR too-long limit 1000\n"
    assert client.receive_line() == b"3\n"
    assert client.receive_line() == b"ERR too-long limit 1000\n"
    assert client.receive_line() == b"4\n"
    client.close()
    server.wait_for_log("messages=5 errors=2 received=64002013 sent=")
    server.signal(signal.SIGUSR1)
    server.wait_for_log("max-message 2")


@gives_memory_back
def test_11_message_of_any_length_takes_no_memory(spawn):
    server = spawn()
    client = server.connect()
    assert client.ask(b"abc\n", 2) == b"3\n"
    before = server.memory()
    for _ in range(64):
        client.send("字".encode() * 333_333)
    assert server.memory() - before < 4_000_000
    client.send(b"\n")
    assert client.receive_line() == b"%d\n" % (64 * 333_333)


# ---------------------------------------------------------------------- 12


def _cpu_s(work: Callable[[], object]) -> float:
    """CPU seconds of this thread for some work: the least of three runs."""
    costs = []
    for _ in range(3):
        began = time.thread_time()
        work()
        costs.append(time.thread_time() - began)
    return min(costs)


@pytest.mark.parametrize(
    "make",
    [
        lambda: LineSession(Replies()),
        lambda: LineSession(Replies(), 1_000_000_000),
        lambda: LineFramer(1_000_000_000),
    ],
    ids=["LineSession", "LineSession with a limit", "LineFramer"],
)
def test_12_dribbled_message_costs_linear_time(make):
    def dribble(size: int) -> None:
        feed = make().feed
        for _ in range(size):
            feed(b"x")

    # Four times the bytes: four times the work, sixteen times if each byte looked at all before it.
    assert _cpu_s(lambda: dribble(120_000)) < 8 * _cpu_s(lambda: dribble(30_000))


def test_12_dribbled_message_over_a_socket(counting):
    server = counting()
    client = server.connect()
    for _ in range(2000):
        client.send(b"x")
    client.send(b"\n")
    assert client.receive_line() == b"2000\n"


# ---------------------------------------------------------------------- 13


@gives_memory_back
def test_13_idle_connection_holds_no_large_buffer(spawn):
    server = spawn()
    first = server.connect()
    first.send(b"warm\n" * 10_000)
    assert first.receive_exactly(20_000) == b"4\n" * 10_000
    server.wait_for_log("connect ")  # it has loaded what it logs with, which is a megabyte and no connection's
    before = server.memory()
    clients = [server.connect() for _ in range(400)]
    for client in clients:
        client.send(b"x" * 60_000 + b"\n" + b"y\n" * 5_000)
        assert client.receive_exactly(6 + 10_000) == b"60000\n" + b"1\n" * 5_000
    each = (server.memory() - before) / len(clients)
    assert each < 4096, f"{each:.0f} bytes for each idle connection that has been busy before"
    assert server.cpu_share() < SPINNING


@measures_objects
def test_13_idle_connection_what_it_holds(counting):
    server = counting()
    client = server.connect()
    client.send(b"x" * 60_000 + b"\n" + b"y\n" * 5_000)
    client.receive_exactly(6 + 10_000)
    connection = server.connection()
    slots = [name for base in type(connection).__mro__ for name in getattr(base, "__slots__", ())]
    held = [getattr(connection, name) for name in slots]
    assert max(sys.getsizeof(value) for value in held if isinstance(value, bytes | bytearray)) < 100
    assert not connection.stalled

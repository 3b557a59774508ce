"""What is known before a connection is given up: by a deadline (40 to 44), or as memory runs out (41, 42, 51)."""

from __future__ import annotations

import signal
import socket
import sys
import time

import pytest

from clients import Client
from evloop import Limits, Protocol, Server
from evloop.core.watchdog import Watchdog
from evloop.net.sockets import unacknowledged_bytes
from processes import SPINNING
from servers import recorder, small_limits
from waiting import run_pass, run_until, wait_until

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux is asked what the peer has acknowledged")


pytestmark = pytest.mark.one_selector


def talks(size: int) -> type[Protocol]:
    """A protocol that says so many bytes, unasked."""

    class Talks(Protocol):
        def on_connect(self) -> bytes:
            return b"x" * size

    return Talks


# ---------------------------------------------------------------------- 40


@pytest.mark.slow
@ON_LINUX
def test_40_slow_reader_lives_while_its_kernel_acknowledges(start):
    """The server's kernel holds 400 KB and takes nothing for much longer than the time-out, as a third must be free."""
    server = start(talks(2_000_000), small_limits(write_timeout_s=1.0, kernel_unsent_bytes=None))
    server.server.listeners[0].socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 212_992)
    client = server.connect(receive_buffer=32768)
    connection = server.connection()
    wait_until(lambda: server.call(lambda: connection.stalled), "the kernel is full")
    began = time.monotonic()
    took, longest_s, took_at = connection.bytes_sent, 0.0, began
    left = 2_000_000
    while time.monotonic() - began < 2.5:
        left -= len(client.receive_exactly(4096))
        time.sleep(0.04)  # that is how slow it is
        if connection.bytes_sent != took:
            took, took_at = connection.bytes_sent, time.monotonic()
        longest_s = max(longest_s, time.monotonic() - took_at)
    assert longest_s > 1.1, "the kernel took something all the time: nothing is tested"
    assert client.receive_exactly(left) == b"x" * left
    assert server.limit_hits("write-timeout") == 0


@pytest.mark.slow
@ON_LINUX
def test_40_slow_reader_is_not_idle_while_the_kernel_holds_all_of_it(start):
    server = start(talks(200_000), small_limits(idle_timeout_s=1.0, kernel_unsent_bytes=None))
    server.server.listeners[0].socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 212_992)
    client = server.connect(receive_buffer=32768)
    connection = server.connection()
    wait_until(lambda: connection.bytes_sent == 200_000, "the kernel has all of it")
    left = 200_000
    for _ in range(24):
        left -= len(client.receive_exactly(8192))
        time.sleep(0.05)
    assert server.limit_hits("idle-timeout") == 0
    assert client.receive_exactly(left) == b"x" * left
    assert client.receive_rest() == b""  # and then it is
    assert server.limit_hits("idle-timeout") == 1


# ---------------------------------------------------------------------- 41


@ON_LINUX
@pytest.mark.parametrize("bounded", [True, False])
def test_41_kernel_holds_little_for_a_client_that_never_reads(start, bounded):
    limits = Limits(max_connections=100) if bounded else Limits(max_connections=100, kernel_unsent_bytes=None)
    server = start(talks(12_000_000), limits)
    server.connect()
    connection = server.connection()
    seen = [-1]

    def no_more() -> bool:
        seen.append(connection.bytes_sent)
        time.sleep(0.05)
        return seen[-1] == connection.bytes_sent == seen[-2] > 0

    wait_until(no_more, "the kernel takes no more")
    held = unacknowledged_bytes(connection.socket)
    assert held is not None
    if bounded:
        assert held <= 131_072 + 4 * 65_536
    else:
        assert held > 1_000_000, "it holds little anyway here: nothing is tested"


# ---------------------------------------------------------------------- 42

# A server in little memory. What it holds is what clients have not finished: the library can't do without.
HOLDS_LINES = """
from evloop import Limits, LineProtocol, serve

class Holds(LineProtocol):
    def on_line(self, line):
        return b"%d\\n" % len(line)

serve(Holds, limits=Limits(max_connections=2000))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit that is set for a running process")
def test_42_memory_that_runs_out_costs_connections_and_never_the_loop(spawn_program):
    import resource

    server = spawn_program(HOLDS_LINES, soft_descriptors=2100)
    honest = server.connect()
    assert honest.ask(b"abc\n", 2) == b"3\n"
    most = server.psutil.memory_info().vms + 30_000_000
    server.psutil.rlimit(resource.RLIMIT_AS, (most, most))
    held = b"x" * 60_000
    for _ in range(1000):
        try:
            server.connect().send(held)
        except ConnectionError:  # one of those that were ended
            pass
        assert server.popen.poll() is None, server.log[-2000:]
    assert honest.ask(b"abcd\n", 2) == b"4\n"
    assert server.connect().ask(b"abcde\n", 2) == b"5\n"
    assert "out of memory" in server.log, server.log[-2000:]
    assert server.cpu_share() < SPINNING
    server.signal(signal.SIGTERM)
    for client in server._clients:
        client.close()
    assert server.wait() == 0, server.log[-2000:]


class FailsOnce:
    """Something to flush for which there is no memory at first."""

    def __init__(self) -> None:
        self.tries = 0

    def flush(self) -> None:
        self.tries += 1
        if self.tries == 1:
            raise MemoryError


@pytest.mark.parametrize("where", ["in the loop", "in a callback"])
def test_42_memory_that_runs_out_ends_who_holds_most_and_the_rest_of_the_pass_is_done(loop, logged, monkeypatch, where):
    monkeypatch.setattr("evloop.core.memory.is_short", lambda: True)
    logged.expect("out of memory: 1 connections ended, which held 300000 bytes")
    server = Server(loop, recorder(), small_limits())
    server.listen()
    address = server.listeners[0].socket.getsockname()
    fails_once = FailsOnce()
    with Client(address) as big, Client(address) as small:
        run_until(loop, lambda: len(server.connections) == 2)
        holder, other = server.connections
        holder.protocol.held_bytes = lambda: 300_000
        if where == "in the loop":
            loop.pending_writes.append(fails_once)
        else:
            logged.expect(r"call of FailsOnce\.flush raised")
            loop.call_soon(fails_once.flush)
        other.write(b"written before memory ran out")
        run_until(loop, lambda: holder.closing)
        assert small.receive_exactly(29) == b"written before memory ran out"
        assert big.receive_rest() == b""
        assert not other.closing
        assert server.stats.limits["memory"] == 1
    server.abort()
    run_pass(loop)


def test_42_memory_that_runs_out_for_something_absurdly_large_costs_nobody_else(start, logged):
    logged.expect("its protocol raised")

    class Absurd(Protocol):
        def on_data(self, data: bytes) -> bytes:
            return bytes(1 << 62) if data == b"absurd" else data

    server = start(Absurd)
    other = server.connect()
    assert other.ask(b"x", 1) == b"x"
    client = server.connect()
    client.send(b"absurd")
    assert client.receive_rest() == b""
    server.passes()
    assert other.ask(b"y", 1) == b"y"
    assert server.limit_hits("memory") == 0


def test_42_memory_that_runs_out_with_nobody_to_give_some_up_is_told_to_the_owner_of_the_loop(loop, monkeypatch):
    monkeypatch.setattr("evloop.core.memory.is_short", lambda: True)

    class Fails:
        def flush(self) -> None:
            raise MemoryError

    loop.pending_writes.append(Fails())
    with pytest.raises(MemoryError):
        loop.run()
    loop.pending_writes.clear()


# ---------------------------------------------------------------------- 43


def test_43_suspended_process_ends_nobody_who_sent_meanwhile(spawn):
    server = spawn("--idle-timeout", "0.4", "--message-timeout", "0.4", "--log-level", "error")
    clients = [server.connect() for _ in range(20)]
    for client in clients[:10]:
        client.send(b"begun before it was stopped, ")
    for client in clients[10:]:
        assert client.ask(b"abc\n", 2) == b"3\n"
    server.stop()
    for client in clients:
        client.send(b"x" * 5000 + b"\n")  # more than the first receives take
    time.sleep(0.8)  # the time for which nothing ran is what is tested
    server.resume()
    assert [client.receive_line() for client in clients] == [b"5029\n"] * 10 + [b"5000\n"] * 10
    # And then they are idle like anybody else.
    assert [client.receive_rest() for client in clients] == [b""] * 20


ANSWERS_LONG = """
from evloop import Limits, LineProtocol, serve

class AnswersLong(LineProtocol):
    def on_line(self, line):
        return b"x" * 9_000_000 + b"\\n"

serve(AnswersLong, limits=Limits(max_connections=10, drain_timeout_s=1.2))
"""


def test_43_suspended_process_drains_in_the_time_in_which_it_runs(spawn_program):
    server = spawn_program(ANSWERS_LONG)
    client = server.connect(receive_buffer=65536)
    client.send(b"go\n")
    client.receive_exactly(1)
    server.signal(signal.SIGTERM)
    server.wait_for_log("listening on")
    with pytest.raises(OSError):  # noqa: PT012 - until it has closed its listener: it drains
        while True:
            server.connect().close()
    server.stop()
    time.sleep(1.4)
    server.resume()
    assert len(client.receive_rest()) == 9_000_000
    client.close()
    assert server.wait() == 0


def test_43_suspended_process_reads_what_came_before_it_ends_a_linger(loop):
    """The peer has sent much, and its end, while nothing ran: that is read, and the close is in order."""

    class Refuses(Protocol):
        def on_data(self, data: bytes) -> bytes:
            self.connection.close()
            return b"no\n"

    server = Server(loop, Refuses, small_limits(linger_timeout_s=0.1))
    server.listen()
    with Client(server.listeners[0].socket.getsockname()) as client:
        client.send(b"x")
        run_until(loop, lambda: any(c.state.value == "lingering" for c in server.connections))
        client.send(b"y" * 200_000)
        client.half_close()
        time.sleep(0.15)  # nothing runs meanwhile
        run_until(loop, lambda: not server.connections)
        run_pass(loop)
        assert server.stats.limits["linger-timeout"] == 0
        assert client.receive_rest() == b"no\n"
    server.abort()


# ---------------------------------------------------------------------- 44


@pytest.mark.parametrize("timeouts", [{}, {"write_timeout_s": None}], ids=["usual", "no time-out"])
def test_44_paused_connection_whose_peer_resets_is_found_by_the_sweep(start, timeouts):
    kind = recorder()
    server = start(kind, small_limits(**timeouts))
    client = server.connect()
    connection = server.connection()
    server.call(connection.pause_reading)
    client.reset()
    server.wait_empty()
    assert kind.events == ["connect", ("close", "ConnectionResetError")]


@pytest.mark.slow
def test_44_paused_connection_whose_peer_resets_does_not_hold_up_a_drain(spawn_program):
    server = spawn_program(
        "from evloop import Limits, Protocol, serve\n"
        "class Pauses(Protocol):\n"
        "    def on_data(self, data):\n"
        "        self.connection.pause_reading()\n"
        "        return b'paused'\n"
        "serve(Pauses, limits=Limits(max_connections=10, drain_timeout_s=600))"
    )
    client = server.connect()
    assert client.ask(b"x", 6) == b"paused"
    server.signal(signal.SIGTERM)
    client.reset()
    assert server.wait() == 0


# ---------------------------------------------------------------------- 51


class Quiet:
    """What a watchdog looks at."""

    passes = 0
    waiting = False
    unwatched = False


@pytest.mark.parametrize("when", ["start", "stop"])
def test_51_alarm_is_never_left_armed_when_memory_runs_out(monkeypatch, when):
    setitimer, failing = signal.setitimer, [when == "start"]

    def has_no_memory_for_its_result(*args: float) -> None:
        setitimer(*args)  # type: ignore[arg-type]
        if failing[0]:
            failing[0] = False
            raise MemoryError

    monkeypatch.setattr(signal, "setitimer", has_no_memory_for_its_result)
    with pytest.raises(MemoryError):  # noqa: PT012
        watchdog = Watchdog(Quiet(), 5)
        failing[0] = True
        watchdog.stop()
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL


def test_51_alarm_that_finds_no_memory_raises_nothing_where_the_program_is(monkeypatch):
    looked = []

    def no_memory(frame: object) -> None:
        looked.append(frame)
        raise MemoryError

    monkeypatch.setattr("evloop.core.watchdog.describe", no_memory)
    watchdog = Watchdog(Quiet(), 0.005)
    wait_until(lambda: len(looked) > 2, "looked")
    watchdog.stop()

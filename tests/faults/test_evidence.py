"""Deadlines, memory, addresses, signals: what is known before a connection, or the loop, is given up. 40 to 51."""

from __future__ import annotations

import json
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from evloop import Connection, EventLoop, Limits, Protocol, Server
from evloop.core.watchdog import Watchdog
from evloop.net.sockets import origin, peer_text, unacknowledged_bytes
from evloop.server.listener import Listener
from faults.processes import ROOT, SPINNING, listening_socket
from harness import DEADLINE_S, Client, recorder, run_pass, run_until, small_limits, wait_until

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux is asked what the peer has acknowledged")


@pytest.fixture
def selector() -> type[selectors.BaseSelector]:
    """The platform's own choice: what is tested here does not depend on it."""
    return selectors.DefaultSelector


class Echo(Protocol):
    def on_data(self, data: bytes) -> bytes:
        return data


def talks(size: int) -> type[Protocol]:
    """A protocol that says so many bytes, unasked."""

    class Talks(Protocol):
        def on_connect(self) -> bytes:
            return b"x" * size

    return Talks


# ---------------------------------------------------------------------- 40


@ON_LINUX
def test_40_slow_reader_lives_while_its_kernel_acknowledges(start):
    """The server's kernel holds 400 KB and takes nothing for much longer than the time-out, as a third must be free."""
    server = start(talks(2_000_000), small_limits(write_timeout_s=0.6, kernel_unsent_bytes=None))
    server.server.listeners[0].socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 212_992)
    client = server.connect(receive_buffer=32768)
    connection = server.connection()
    wait_until(lambda: server.call(lambda: connection.stalled), "the kernel is full")
    began = time.monotonic()
    took, longest_s, took_at = connection.bytes_sent, 0.0, began
    left = 2_000_000
    while time.monotonic() - began < 1.8:
        left -= len(client.receive_exactly(4096))
        time.sleep(0.03)  # that is how slow it is
        if connection.bytes_sent != took:
            took, took_at = connection.bytes_sent, time.monotonic()
        longest_s = max(longest_s, time.monotonic() - took_at)
    assert longest_s > 0.65, "the kernel took something all the time: nothing is tested"
    assert client.receive_exactly(left) == b"x" * left
    assert server.limit_hits("write-timeout") == 0


@ON_LINUX
def test_40_slow_reader_is_not_idle_while_the_kernel_holds_all_of_it(start):
    server = start(talks(200_000), small_limits(idle_timeout_s=0.5, kernel_unsent_bytes=None))
    server.server.listeners[0].socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 212_992)
    client = server.connect(receive_buffer=32768)
    connection = server.connection()
    wait_until(lambda: connection.bytes_sent == 200_000, "the kernel has all of it")
    began = time.monotonic()
    left = 200_000
    while time.monotonic() - began < 1.2:
        left -= len(client.receive_exactly(4096))
        time.sleep(0.04)
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
def test_42_memory_that_runs_out_ends_who_holds_most_and_the_rest_of_the_pass_is_done(loop, logged, where):
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


def test_42_memory_that_runs_out_with_nobody_to_give_some_up_is_told_to_the_owner_of_the_loop(loop):
    class Fails:
        def flush(self) -> None:
            raise MemoryError

    loop.pending_writes.append(Fails())
    with pytest.raises(MemoryError, match="nobody is there to give some up"):
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

serve(AnswersLong, limits=Limits(max_connections=10, drain_timeout_s=0.5, write_timeout_s=0.5))
"""


def test_43_suspended_process_drains_in_the_time_in_which_it_runs(spawn_program):
    server = spawn_program(ANSWERS_LONG)
    client = server.connect(receive_buffer=8192)
    client.send(b"go\n")
    client.receive_exactly(1)
    server.signal(signal.SIGTERM)
    server.wait_for_log("listening on")
    with pytest.raises(OSError):  # noqa: PT012 - until it has closed its listener: it drains
        while True:
            server.connect().close()
    server.stop()
    time.sleep(0.8)
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


# ---------------------------------------------------------------------- 45


def adopt(server: Server, family: int, address: object) -> socket.socket:
    """Have a server serve one end of a pair as if it came from that address; the other end."""
    near, far = socket.socketpair()
    near.setblocking(False)
    far.settimeout(DEADLINE_S)
    server._accepted(Connection, family, near, address)
    return far


@pytest.mark.parametrize(("bits", "served"), [(64, 2), (48, 1), (128, 3)])
def test_45_ipv6_prefix_is_what_is_counted(loop, logged, bits, served):
    logged.allow("refused: too-many-connections-from-address limit 1")
    server = Server(loop, Echo, small_limits(max_connections_per_address=1, ipv6_prefix_bits=bits))
    ends = [
        adopt(server, socket.AF_INET6, (host, 1000, 0, 0))
        for host in ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", "2001:db8:0:2::1", "2001:db8:0:1::1")
    ]
    assert len(server.connections) == served
    server.abort()
    run_pass(loop)
    assert not server._by_origin
    for end in ends:
        end.close()


def test_45_ipv6_prefix_does_not_make_one_of_all_ipv4_addresses():
    assert origin(socket.AF_INET6, ("::ffff:192.0.2.1", 1, 0, 0), 64) == "192.0.2.1"
    assert origin(socket.AF_INET, ("192.0.2.1", 1), 64) == "192.0.2.1"
    assert origin(socket.AF_INET6, ("fe80::1%eth0", 1, 0, 2), 64) == origin(socket.AF_INET6, ("fe80::2", 1, 0, 2), 64)
    assert origin(socket.AF_UNIX, "", 64) is None


# ---------------------------------------------------------------------- 46

BLOCKS_SIGNALS = (
    "import os, signal, sys\n"
    "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGALRM})\n"
    "os.execv(sys.argv[1], sys.argv[1:])"
)


def test_46_blocked_signal_that_was_inherited_stops_the_server(spawn):
    server = spawn("--log-level", "error", prefix=(sys.executable, "-c", BLOCKS_SIGNALS))
    server.signal(signal.SIGUSR1)
    server.wait_for_log("status:")
    server.signal(signal.SIGTERM)
    assert server.wait() == 0


def test_46_blocked_signal_is_blocked_again_when_the_loop_gives_it_back(loop):
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        loop.add_signal_handler(signal.SIGUSR2, int)
        loop.add_signal_handler(signal.SIGUSR2, int)
        assert signal.SIGUSR2 not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
        loop.remove_signal_handler(signal.SIGUSR2)
        assert signal.SIGUSR2 in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})


# ---------------------------------------------------------------------- 47


def test_47_serve_on_a_taken_port_is_one_line_and_a_status(tmp_path):
    with listening_socket() as taken:
        port = taken.getsockname()[1]
        script = tmp_path / "script.py"
        script.write_text(f"from evloop import Protocol, serve\nserve(Protocol, port={port})\nprint('not reached')\n")
        done = subprocess.run(
            [sys.executable, str(script)],
            env={"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
    assert (done.returncode, done.stdout) == (3, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"cannot listen on 127.0.0.1:{port}: the port is taken")


SERVES_TWO = """
import sys
from evloop import LineProtocol, Server, serve

class Upper(LineProtocol):
    def on_line(self, line):
        return line.upper() + b"\\n"

class Length(LineProtocol):
    def on_line(self, line):
        return b"%d\\n" % len(line)

def start(loop, server):
    other = Server(loop, Length)
    print("the other is at", *other.listen(), file=sys.stderr, flush=True)
    loop.call_later(0, lambda: print("a timer has fired", file=sys.stderr, flush=True))
    return [other]

serve(Upper, on_start=start)
"""


def test_47_serve_gives_loop_and_server_and_stops_all_servers_in_order(spawn_program):
    server = spawn_program(SERVES_TWO)
    server.wait_for_log("a timer has fired")
    host, _, port = server.log.partition("the other is at ")[2].split()[0].rpartition(":")
    with Client((host, int(port))) as other:
        assert other.ask(b"abc\n", 2) == b"3\n"
        assert server.connect().ask(b"abc\n", 4) == b"ABC\n"
        server.stop()
        other.send(b"in the kernel when the signal comes\n")
        server.signal(signal.SIGTERM)
        server.resume()
        assert other.receive_rest() == b"35\n"
    for client in server._clients:
        client.close()
    assert server.wait() == 0


# ---------------------------------------------------------------------- 48


def test_48_listener_that_cannot_be_watched_again_tries_on(loop, monkeypatch, logged):
    logged.expect("cannot accept on")
    monkeypatch.setattr("evloop.server.listener.EXHAUSTED_PAUSE_S", 0.02)
    accepted: list[socket.socket] = []
    sock = listening_socket()
    sock.setblocking(False)
    listener = Listener(loop, sock, 10, lambda sock, address: accepted.append(sock))
    listener._rest("tested")
    watch, failures = loop.poller.watch, [1, 2, 3]

    def fails_at_first(fd: int, events: int, handler: Callable[[], None]) -> None:
        if events and failures:
            failures.pop()
            raise OSError(12, "Cannot allocate memory")
        watch(fd, events, handler)

    monkeypatch.setattr(loop.poller, "watch", fails_at_first)
    with Client(sock.getsockname()):
        run_until(loop, lambda: accepted)
    assert not failures
    assert not listener.resting
    listener.close()
    accepted[0].close()


# ---------------------------------------------------------------------- 49


@pytest.fixture
def unix_listener(tmp_path: Path) -> Iterator[socket.socket]:
    if not hasattr(socket, "AF_UNIX"):
        pytest.skip("no Unix sockets here")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "socket"))
        sock.listen()
        sock.setblocking(False)
        yield sock


def test_49_unix_peer_without_an_address_is_served_like_others(start, unix_listener, logged):
    logged.expect(r"connection unix:unnamed refused: too-many-connections limit 3")
    server = start(Echo, small_limits(max_connections=3, max_connections_per_address=2))
    server.call(server.server.add_listener, unix_listener)
    clients = [socket.socket(socket.AF_UNIX) for _ in range(4)]
    for client in clients:
        client.settimeout(DEADLINE_S)
        client.connect(unix_listener.getsockname())
    for client in clients[:3]:  # more than are allowed from one address, which they don't have
        client.sendall(b"x")
        assert client.recv(10) == b"x"
    assert server.connections()[0].peer == "unix:unnamed"
    assert clients[3].recv(100) == b"ERR too-many-connections limit 3\n"
    for client in clients:
        client.close()
    server.wait_empty()


def test_49_unix_and_other_addresses_as_people_write_them():
    assert peer_text(("192.0.2.1", 80)) == "192.0.2.1:80"
    assert peer_text(("2001:db8::1", 80, 0, 0)) == "[2001:db8::1]:80"
    assert peer_text("/run/app\n.sock") == "unix:/run/app?.sock"
    assert peer_text(b"\0name") == "unix:@name"
    assert peer_text("") == peer_text(b"").replace("@", "unnamed")


def test_49_unix_or_not_the_listener_chooses_the_kind_of_connection(start):
    made = []

    class Special(Connection):
        __slots__ = ()

        def open(self) -> None:
            made.append(self)
            super().open()

    server = start(Echo)
    server.call(lambda: server.server.listen(connection_factory=Special))
    plain, special = (listener.socket.getsockname() for listener in server.server.listeners)
    with Client(plain) as client:
        assert client.ask(b"x", 1) == b"x"
        assert not made
    with Client(special) as client:
        assert client.ask(b"y", 1) == b"y"
    assert len(made) == 1


# ---------------------------------------------------------------------- 50


def test_50_status_is_numbers_and_two_readers_do_not_spoil_each_other(start):
    class Slow(Protocol):
        def on_data(self, data: bytes) -> bytes:
            threading.Event().wait(0.05)
            return data

    server = start(Slow)
    assert server.connect().ask(b"x", 1) == b"x"
    server.passes()  # the reply left before the pass ended
    first = server.call(server.server.status)
    second = server.call(server.server.status)
    assert first["worst_lag_s"] == second["worst_lag_s"] >= 0.05
    assert (first["connections"], first["accepted"], first["received_bytes"]) == (1, 1, 1)
    assert json.loads(json.dumps(first)) == first
    from evloop.server.stats import STATUS

    assert list(first) == list(STATUS)  # each is described


def test_50_status_forgets_a_lag_after_two_minutes_at_most():
    now = [1000.0]
    with EventLoop(clock=lambda: now[0]) as loop:

        def pass_time(seconds: float) -> None:
            loop.call_later(seconds, loop.stop)
            now[0] += seconds
            loop.run()

        def block() -> None:
            now[0] += 3

        loop.call_soon(block)
        pass_time(1)
        assert loop.worst_lag_s == 3
        pass_time(59)
        pass_time(50)
        assert loop.worst_lag_s == 3
        pass_time(60)
        pass_time(60)
        assert loop.worst_lag_s == 0


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

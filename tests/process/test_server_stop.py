"""``charcount-server`` is stopped by a signal: what has reached the machine is answered, or it is aborted."""

from __future__ import annotations

import signal
import subprocess

import pytest

from clients import Client
from paths import SERVER
from process.commands import PYTHON
from waiting import DEADLINE_S, wait_until

BOTH = pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])


@BOTH
def test_a_signal_stops_it_with_nothing_to_do(spawn, signum):
    server = spawn()
    server.signal(signum)
    assert server.wait() == 0
    assert server.log.splitlines()[-1].endswith("stopped: connections=0 received=0 sent=0")


@BOTH
def test_drain_answers_what_reached_the_kernel(spawn, signum):
    """Bytes nobody has read, and connections nobody has accepted, when the signal arrives."""
    server = spawn()
    served = [server.connect() for _ in range(5)]
    for client in served:
        assert client.ask(b"a\n", 2) == b"1\n"
    server.stop()
    waiting = [server.connect() for _ in range(200)]
    for client in [*served, *waiting]:
        client.send(b"ab\nabc\nunfinished")
    server.signal(signum)
    server.resume()
    for client in [*served, *waiting]:
        assert client.receive_exactly(4) == b"2\n3\n"
        client.half_close()
        assert client.receive_rest() in (b"", b"10\n")  # the end of the message may have come in time, or not
        client.close()
    assert server.wait() == 0
    assert "stopped: connections=205 " in server.log


def test_drain_answers_a_long_pipeline(spawn):
    server = spawn()
    client = server.connect()
    server.stop()
    client.send(b"12345\n" * 10_000)  # many reads' worth, all in the kernel
    client.half_close()
    server.signal(signal.SIGTERM)
    server.resume()
    assert client.receive_rest() == b"5\n" * 10_000
    assert server.wait() == 0


def test_drain_ends_idle_connections_in_order(spawn):
    server = spawn()
    clients = [server.connect() for _ in range(20)]
    for client in clients:
        assert client.ask(b"a\n", 2) == b"1\n"
    server.signal(signal.SIGTERM)
    for client in clients:
        assert not client.was_reset()
        client.close()
    assert server.wait() == 0


def test_drain_flushes_to_a_slow_reader(spawn):
    server = spawn("--reply", "{count:>999}")
    client = server.connect(receive_buffer=4096)
    client.send(b"\n" * 8_000)
    client.half_close()
    server.signal(signal.SIGTERM)
    server.wait_for_log("stopping: ")
    assert client.receive_rest() == (b" " * 998 + b"0\n") * 8_000
    client.close()
    assert server.wait() == 0


def test_nobody_is_accepted_while_it_drains(spawn):
    server = spawn("--reply", "{count:>999}")
    client = server.connect(receive_buffer=4096)
    client.send(b"\n" * 8_000)
    client.receive_exactly(1000)
    server.signal(signal.SIGTERM)
    server.wait_for_log("stopping: 1 connections to finish; signal again to abort")

    def refused() -> bool:
        try:
            server.connect().close()
        except ConnectionRefusedError:
            return True
        return False

    wait_until(refused, "nobody listens any more")
    client.half_close()
    client.receive_rest()
    client.close()
    assert server.wait() == 0


def unread_replies(server):
    """A client that holds up a drain: it reads nothing of the megabytes that wait for it."""
    client = server.connect(receive_buffer=4096)
    client.send(b"\n" * 8_000)
    client.receive_exactly(1)
    return client


def test_drain_timeout_aborts(spawn):
    server = spawn("--reply", "{count:>999}", "--drain-timeout", "0.3")
    client = unread_replies(server)
    server.signal(signal.SIGTERM)
    assert server.wait() == 1
    assert "1 connections not done after 0.3 s: aborted" in server.log
    assert client.was_reset()  # what it got is not all there was


def test_drain_timeout_of_zero_aborts_at_once(spawn):
    server = spawn("--reply", "{count:>999}", "--drain-timeout", "0")
    unread_replies(server)
    server.signal(signal.SIGTERM)
    assert server.wait() == 1
    assert "1 connections not done after 0 s: aborted" in server.log


@BOTH
def test_second_signal_aborts_at_once(spawn, signum):
    server = spawn("--reply", "{count:>999}", "--drain-timeout", "1000")
    unread_replies(server)
    server.signal(signal.SIGTERM)
    server.wait_for_log("stopping: ")
    server.signal(signum)
    assert server.wait() == 1


def test_two_signals_without_a_connection_are_a_normal_stop(spawn):
    server = spawn()
    server.stop()
    server.signal(signal.SIGINT)
    server.signal(signal.SIGTERM)
    server.resume()
    assert server.wait() == 0


def test_a_log_nobody_reads_any_more_does_not_stop_it():
    """As by ``charcount-server 2>&1 | head -1``."""
    server = subprocess.Popen([*PYTHON, SERVER, "--port", "0"], stderr=subprocess.PIPE)
    try:
        port = int(server.stderr.readline().rpartition(b":")[2])
        server.stderr.close()
        for size in range(3):
            with Client(("127.0.0.1", port)) as client:
                assert client.ask(b"x" * size + b"\n", 2) == b"%d\n" % size
        server.send_signal(signal.SIGTERM)
        assert server.wait(DEADLINE_S) == 0
    finally:
        server.kill()
        server.wait()

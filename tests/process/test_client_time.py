"""How long the client waits for a server, and for what."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator

import psutil
import pytest

from evloop.charcount.client import (
    CharCountClient,
    ClientTimeoutError,
    ConnectionLostError,
)
from process.commands import UNASKED, one_line, run_client, serving, until_closed
from variants import first_of
from waiting import DEADLINE_S, wait_until

# ---------------------------------------------------------------------- time


@contextlib.contextmanager
def dribbling(first: bytes, pause_s: float = 0.05) -> Iterator[int]:
    """The port of a server that answers a byte at a time, and never a whole line."""
    done = threading.Event()

    def behave(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(first)
        while not done.wait(pause_s):
            connection.sendall(b"1")

    with serving(behave) as port:
        try:
            yield port
        finally:
            done.set()


@pytest.mark.parametrize("how", ["pipe", "arguments"])
def test_the_timeout_is_for_a_whole_answer(how):
    with dribbling(b"1\n") as port:
        arguments = ("a", "b") if how == "arguments" else ()
        done = run_client(port, "--timeout", "0.5", *arguments, input=b"" if arguments else b"a\nb\n")
    assert (done.returncode, done.stdout) == (4, b"1\n")
    assert one_line(done.stderr) == "charcount-client: no answer from the server in 0.5 s; see --timeout"


def test_the_timeout_of_the_api_is_for_a_whole_answer():
    with (
        dribbling(b"") as port,
        CharCountClient("127.0.0.1", port, timeout_s=0.3) as client,
        pytest.raises(ClientTimeoutError),
    ):
        client.count("a")


@pytest.mark.slow
def test_a_server_that_answers_one_by_one_has_the_time_for_each():
    """Three answers, each after most of the time-out: all together take longer than that."""

    def behave(connection: socket.socket) -> None:
        connection.recv(65536)
        for _ in range(3):
            pause.wait(0.6)
            connection.sendall(b"1\n")
        until_closed(connection)

    pause = threading.Event()
    with serving(behave) as port, CharCountClient("127.0.0.1", port, timeout_s=1.5) as client:
        assert list(client.count_many("abc")) == [1, 1, 1]


def test_a_caller_that_takes_its_time():
    """Between two counts passes more than the time-out: that is not the server's."""

    def behave(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(b"1\n")
        assert waiting.wait(DEADLINE_S)
        waiting.clear()
        waiting.wait(0.2)  # the answer takes a while
        connection.sendall(b"1\n")
        until_closed(connection)

    waiting = threading.Event()
    with serving(behave) as port, CharCountClient("127.0.0.1", port, timeout_s=0.8) as client:
        counts = client.count_many(["a", "b"])
        assert next(counts) == 1
        threading.Event().wait(1)  # it is this time that has to pass
        waiting.set()
        assert next(counts) == 1


@pytest.mark.parametrize("how", first_of("pipe", "arguments", "classic"))
def test_a_client_that_was_stopped_looks_before_it_judges(how, start):
    """Stopped for longer than its time-out, with the answer there when it goes on."""

    def behave(connection: socket.socket) -> None:
        assert connection.recv(100).startswith(b"a")
        asked.set()
        assert stopped.wait(DEADLINE_S)
        connection.sendall(b"1\n" if how != "classic" else b"1")
        answered.set()
        until_closed(connection)

    asked, stopped, answered = threading.Event(), threading.Event(), threading.Event()
    arguments = {"pipe": (), "arguments": ("a",), "classic": ("--classic", "a")}[how]
    with serving(behave) as port:
        client = start(port, "--timeout", "1", *arguments, bufsize=0)
        if how == "pipe":
            client.stdin.write(b"a\n")
        assert asked.wait(DEADLINE_S)
        os.kill(client.pid, signal.SIGSTOP)
        process = psutil.Process(client.pid)
        wait_until(lambda: process.status() == psutil.STATUS_STOPPED, "stopped")
        stopped.set()
        assert answered.wait(DEADLINE_S)
        threading.Event().wait(1.2)  # it is this time that has to pass
        os.kill(client.pid, signal.SIGCONT)
        assert client.stdout.readline() == b"1\n"
        client.stdin.close()
        assert client.wait(DEADLINE_S) == 0


def test_a_client_that_was_stopped_with_its_server(spawn, start):
    """As both are in a container that is paused: the server gets a moment to answer."""
    server = spawn()
    client = start(server.address[1], "--timeout", "1", bufsize=0)
    client.stdin.write(b"abc\n")
    assert client.stdout.readline() == b"3\n"
    server.stop()
    client.stdin.write(b"abcd\n")
    process = psutil.Process(client.pid)
    wait_until(lambda: unread(server) > 0, "the message has arrived")
    os.kill(client.pid, signal.SIGSTOP)
    wait_until(lambda: process.status() == psutil.STATUS_STOPPED, "stopped")
    threading.Event().wait(1.2)  # it is this time that has to pass
    os.kill(client.pid, signal.SIGCONT)
    server.resume()
    assert client.stdout.readline() == b"4\n"


def unread(server) -> int:
    """Bytes in the kernel that the server has not read."""
    table = subprocess.run(
        ["cat", f"/proc/{server.popen.pid}/net/tcp"], capture_output=True, check=True
    ).stdout.decode()
    port = f":{server.address[1]:04X}"
    rows = [row.split() for row in table.splitlines()[1:]]
    return sum(int(row[4].partition(":")[2], 16) for row in rows if row[1].endswith(port) and row[3] == "01")


def test_replies_that_nobody_wants_are_awaited_for_one_timeout():
    """The server answers, but so slowly that all that is due would take 1,000 times as long."""

    def behave(connection: socket.socket) -> None:
        while not ended.wait(0.1):
            connection.sendall(b"1\n")

    ended = threading.Event()
    with serving(behave) as port, CharCountClient("127.0.0.1", port, timeout_s=1) as client:
        try:
            counts = client.count_many(["a"] * 5_000)
            assert next(counts) == 1
            counts.close()
            with pytest.raises(ConnectionLostError, match="the connection is closed"):
                client.count("a")
        finally:
            ended.set()


def test_classic_says_so_if_a_message_is_answered_before_its_end():
    """As a server does that takes less than the message at once: none of its numbers is that of the message."""

    ended = threading.Event()

    def behave(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"Jumlah karakter: 65536")
        ended.wait(DEADLINE_S)  # it reads no more, so that the message can't have left whole before its answer is seen

    with serving(behave) as port:
        try:
            done = run_client(port, "--classic", input=b"x" * 50_000_000)
        finally:
            ended.set()
    assert (done.returncode, done.stdout) == (6, b"")
    assert one_line(done.stderr) == (
        UNASKED + "'Jumlah karakter: 65536'; in raw framing a long message may be answered in pieces"
    )

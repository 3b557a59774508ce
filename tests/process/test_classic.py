"""The programs of the lab exercise and these: each works with the other, and not a byte of the exchange differs."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from process.commands import PYTHON, one_line, run_client
from processes import Process
from waiting import DEADLINE_S

LAB = Path(__file__).parents[2] / "docs" / "lab"  # the programs of the exercise

TEXTS = ["hello", "x", "selamat pagi, dunia", "é", "日本語 👍", " ", "x" * 1000]


class Recorder:
    """Stands between one client and a server, passes every byte on, and keeps it."""

    def __init__(self, server_port: int) -> None:
        self.sent: list[bytes] = []
        self.received: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(DEADLINE_S)
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, args=(server_port,))
        self._thread.start()

    def _run(self, server_port: int) -> None:
        """Strictly in turns, as the exchange is."""
        client, _ = self._listener.accept()
        with client, socket.create_connection(("127.0.0.1", server_port), DEADLINE_S) as server:
            client.settimeout(DEADLINE_S)
            while data := client.recv(4096):
                self.sent.append(data)
                server.sendall(data)
                reply = server.recv(4096)
                self.received.append(reply)
                client.sendall(reply)

    def exchange(self) -> tuple[list[bytes], list[bytes]]:
        """What the client sent and what it got, once it is over."""
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()
        self._listener.close()
        return self.sent, self.received


@pytest.fixture
def old_server() -> Iterator[int]:
    """The lab exercise's server; its port."""
    process = subprocess.Popen([*PYTHON, str(LAB / "blocking_server.py"), "0"], stdout=subprocess.PIPE)
    try:
        yield int(process.stdout.readline().rpartition(b":")[2])
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def new_server(spawn: Callable[..., Process]) -> int:
    """``charcount-server --classic``; its port."""
    return spawn("--classic").address[1]


def old_client(port: int, text: str) -> str:
    """What the lab exercise's client prints."""
    done = subprocess.run(
        [sys.executable, "-X", "utf8", str(LAB / "blocking_client.py"), str(port)],
        input=text.encode() + b"\n",
        capture_output=True,
        timeout=DEADLINE_S,
        check=True,
    )
    return done.stdout.decode()


def new_client(port: int, text: str) -> str:
    """What ``charcount-client --classic`` prints."""
    done = run_client(port, "--classic", "--", text)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode()


@pytest.mark.parametrize("client", [old_client, new_client])
@pytest.mark.parametrize("server", ["old_server", "new_server"])
def test_exchange_is_the_same_byte_for_byte(server, client, request):
    port = request.getfixturevalue(server)
    for text in TEXTS:
        recorder = Recorder(port)
        shown = client(recorder.port, text)
        assert recorder.exchange() == ([text.encode()], [f"Jumlah karakter: {len(text)}".encode()])
        assert shown == f"Jumlah karakter: {len(text)}\n"


@pytest.mark.parametrize("server", ["old_server", "new_server"])
def test_several_messages_on_one_connection(server, request):
    recorder = Recorder(request.getfixturevalue(server))
    done = run_client(recorder.port, "--classic", "a", "bc", "déf")
    assert done.stdout == b"Jumlah karakter: 1\nJumlah karakter: 2\nJumlah karakter: 3\n"
    assert recorder.exchange()[0] == [b"a", b"bc", "déf".encode()]


@pytest.mark.parametrize("server", ["old_server", "new_server"])
def test_lines_of_a_pipe(server, request):
    recorder = Recorder(request.getfixturevalue(server))
    done = run_client(recorder.port, "--classic", input=b"a\r\nbc\nlast")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"Jumlah karakter: 1\nJumlah karakter: 2\nJumlah karakter: 4\n"
    assert recorder.exchange()[0] == [b"a", b"bc", b"last"]


def test_an_empty_line_cannot_be_sent(new_server):
    done = run_client(new_server, "--classic", input=b"a\n\nbc\n")
    assert (done.returncode, done.stdout) == (2, b"Jumlah karakter: 1\nJumlah karakter: 2\n")
    assert one_line(done.stderr) == ("charcount-client: message 2 is empty, which raw framing cannot carry: skipped")


def test_a_line_break_in_an_argument_is_a_character(new_server):
    assert new_client(new_server, "two\nlines\n") == "Jumlah karakter: 10\n"


def test_error_of_the_server(new_server):
    done = run_client(new_server, "--classic", b"\xff", "a")
    assert (done.returncode, done.stdout) == (1, b"Jumlah karakter: 1\n")
    assert one_line(done.stderr) == "charcount-client: message 1: the server answered 'ERR invalid-utf8 at byte 0'"


def test_old_server_that_dies_of_bad_text(old_server):
    """The old one has no errors: it raises, and is gone."""
    done = run_client(old_server, "--classic", b"\xff")
    assert (done.returncode, done.stdout) == (3, b"")
    assert "the server closed the connection instead of answering" in one_line(done.stderr)


def test_timeout(spawn):
    server = spawn("--classic")
    server.stop()
    done = run_client(server.address[1], "--classic", "--timeout", "0.2", "a")
    assert (done.returncode, done.stdout) == (4, b"")
    assert one_line(done.stderr) == "charcount-client: no answer from the server in 0.2 s; see --timeout"

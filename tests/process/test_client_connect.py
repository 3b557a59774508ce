"""The client's way to a server: every address of its name in one time-out, and never to itself."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator

import psutil
import pytest

from evloop.charcount import connecting
from evloop.charcount.client import CharCountClient, ClientTimeoutError
from evloop.errors import ConnectError
from paths import ROOT
from process.commands import PYTHON, one_line
from processes import listening_socket
from waiting import DEADLINE_S, wait_until


@contextlib.contextmanager
def deaf_listener() -> Iterator[socket.socket]:
    """It answers no SYN: its queue of connections is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        listener.settimeout(DEADLINE_S)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener


@contextlib.contextmanager
def deaf() -> Iterator[tuple[str, int]]:
    """The address of such a listener."""
    with deaf_listener() as listener:
        yield listener.getsockname()


@pytest.fixture
def names(monkeypatch) -> dict[str, list[tuple[str, int]]]:
    """What names resolve to, beside those that really exist."""
    known: dict[str, list[tuple[str, int]]] = {}
    real = socket.getaddrinfo

    def getaddrinfo(host, port, *arguments, flags=0, **options):
        name = host.decode() if isinstance(host, bytes) else host
        if name not in known or flags & socket.AI_NUMERICHOST:
            return real(host, port, *arguments, flags=flags, **options)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in known[name]]

    monkeypatch.setattr(connecting.socket, "getaddrinfo", getaddrinfo)
    return known


@pytest.fixture
def tried(monkeypatch) -> list[tuple[float, tuple[str, int]]]:
    """When each address is tried, in seconds since the start, and which."""
    attempts: list[tuple[float, tuple[str, int]]] = []
    began = time.monotonic()

    class Recorder(socket.socket):
        def connect_ex(self, address):
            attempts.append((time.monotonic() - began, address))
            return super().connect_ex(address)

    monkeypatch.setattr(connecting.socket, "socket", Recorder)
    return attempts


# ---------------------------------------------------------------------- time


def test_one_timeout_for_all_addresses(names, tried):
    with deaf() as first, deaf() as second, deaf() as third:
        names["three.example"] = [first, second, third]
        tried.clear()
        with pytest.raises(ClientTimeoutError, match=r"cannot connect to three\.example:1: no answer in 0\.3 s"):
            CharCountClient("three.example", 1, timeout_s=0.3)
    assert [address for _, address in tried][:2] == [first, second]


def test_an_address_that_does_not_answer_is_raced_by_the_next(names, service, tried):
    with deaf() as address:
        names["two.example"] = [address, service.address]
        tried.clear()
        with CharCountClient("two.example", 1) as client:
            assert client.count("abc") == 3
    assert [tried_one for _, tried_one in tried] == names["two.example"]
    assert tried[1][0] - tried[0][0] >= 0.25  # and not the share of a time-out of 10 s: the test would be over


def test_an_address_that_fails_lets_the_next_one_begin_at_once(names, service, tried):
    with listening_socket() as sock:
        refused = sock.getsockname()
    names["two.example"] = [refused, service.address]
    with CharCountClient("two.example", 1, timeout_s=0.2) as client:  # before the other one would join in
        assert client.count("abc") == 3
    assert len(tried) == 2


def test_an_address_that_fails_beside_another_lets_the_next_one_begin_at_once(names, service):
    with listening_socket() as sock:
        refused = sock.getsockname()
    with deaf() as address:
        names["three.example"] = [address, refused, service.address]  # after 0, 0.25 and not 0.5 s
        with CharCountClient("three.example", 1, timeout_s=0.49) as client:
            assert client.count("abc") == 3


def test_the_families_take_turns(monkeypatch, service, tried):
    """The resolver's order is kept within a family; the second address to be tried is of the other one."""
    inet, inet6 = socket.AF_INET, socket.AF_INET6
    with listening_socket() as sock:
        port = sock.getsockname()[1]
    found = [(inet6, ("::1", port, 0, 0)), (inet6, ("::1", port, 1, 0)), (inet, service.address)]
    real = socket.getaddrinfo

    def getaddrinfo(host, *arguments, flags=0, **options):
        if flags & socket.AI_NUMERICHOST:
            return real(host, *arguments, flags=flags, **options)
        return [(family, socket.SOCK_STREAM, 6, "", address) for family, address in found]

    monkeypatch.setattr(connecting.socket, "getaddrinfo", getaddrinfo)
    with CharCountClient("three.example", 1) as client:
        assert client.count("abc") == 3
    assert [address for _, address in tried] == [found[0][1], service.address]


def test_who_loses_the_race_is_closed(names, service):
    with deaf() as address:
        names["two.example"] = [address, service.address]
        before = psutil.Process().num_fds()
        with CharCountClient("two.example", 1) as client:
            client.count("abc")
            assert psutil.Process().num_fds() == before + 2  # its socket and its selector
    assert psutil.Process().num_fds() <= before


def test_all_that_was_wrong_is_said(names, monkeypatch):
    with listening_socket() as sock:
        refused = sock.getsockname()
    names["two.example"] = [refused, ("255.255.255.255", 9)]
    with pytest.raises(ConnectError) as caught:
        CharCountClient("two.example", 1, timeout_s=1)
    assert str(caught.value) == (
        "cannot connect to two.example:1: nothing listens there; start charcount-server (127.0.0.1); "
        f"{os.strerror(errno.ENETUNREACH)} (255.255.255.255)"
    )


def test_a_name_that_nobody_resolves_in_time(monkeypatch):
    """The system's resolver may take minutes, and can't be told to hurry."""
    real, found = socket.getaddrinfo, threading.Event()

    def getaddrinfo(*arguments, flags=0, **options):
        if not flags & socket.AI_NUMERICHOST:
            found.wait(DEADLINE_S)
        return real(*arguments, flags=flags, **options)

    monkeypatch.setattr(connecting.socket, "getaddrinfo", getaddrinfo)
    try:
        with pytest.raises(ClientTimeoutError, match=r"cannot resolve 'localhost': no answer in 0\.1 s"):
            CharCountClient("localhost", 1, timeout_s=0.1)
    finally:
        found.set()


def test_a_name_that_nobody_resolves_does_not_keep_the_process():
    program = (
        "import socket, threading; real = socket.getaddrinfo\n"
        "def slow(*arguments, flags=0, **options):\n"
        "    if not flags & socket.AI_NUMERICHOST: threading.Event().wait(1000)\n"
        "    return real(*arguments, flags=flags, **options)\n"
        "socket.getaddrinfo = slow; from evloop.charcount.cli import client\n"
        "raise SystemExit(client.main(['--host', 'localhost', '--timeout', '0.1', 'a']))"
    )
    done = subprocess.run([*PYTHON, "-c", program], capture_output=True, timeout=DEADLINE_S, cwd=ROOT, check=False)
    assert done.returncode == 4
    assert one_line(done.stderr) == "charcount-client: cannot resolve 'localhost': no answer in 0.1 s"


def test_a_client_that_was_stopped_while_it_connected():
    """It is connected when it goes on, though its time is over.

    With a handler for a signal that comes then: else the kernel goes on waiting, and looks, while Python just looks at
    the clock.
    """
    program = (
        "import signal, sys; signal.signal(signal.SIGCONT, lambda *_: None)\n"
        "from evloop.charcount.cli import client; sys.exit(client.main())"
    )
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(deaf_listener())
        port = str(listener.getsockname()[1])
        command = [*PYTHON, "-c", program, "--port", port, "--timeout", "0.8", "abc"]
        client = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT))
        stack.callback(client.kill)
        process = psutil.Process(client.pid)

        def state() -> str:
            return next((connection.status for connection in process.net_connections("tcp")), "none yet")

        wait_until(lambda: state() == psutil.CONN_SYN_SENT, "it connects")
        os.kill(client.pid, signal.SIGSTOP)
        # Room for it, so that its second SYN, after a second, is answered.
        while True:
            connection, address = listener.accept()
            if address[1] == process.net_connections("tcp")[0].laddr.port:
                break
            connection.close()
        os.kill(client.pid, signal.SIGCONT)
        with connection:
            assert connection.recv(100) == b"abc\n"
            connection.sendall(b"3\n")
            assert client.wait(DEADLINE_S) == 0
        assert client.stdout.read() == b"3\n"


def test_no_thread_to_look_up_a_name_with(monkeypatch, spawn):
    def refuse(*arguments: object) -> int:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(connecting._thread, "start_new_thread", refuse)
    with CharCountClient("localhost", spawn("--host", "localhost").address[1]) as client:
        assert client.count("abc") == 3


# ---------------------------------------------------------------------- to itself

# What the kernel does now and then, when the port is in the range that it takes ports for clients from: it gives the
# client the port that it connects to. Asking for that port is the same, every time.
SELFISH = (
    "class Selfish(socket.socket):\n"
    "    def connect_ex(self, address):\n"
    "        self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n"
    "        self.bind(address)\n"
    "        return super().connect_ex(address)\n"
    "socket.socket = Selfish\n"
)


@pytest.mark.parametrize("arguments", [("7",), ("--classic", "7"), ()], ids=["arguments", "classic", "pipe"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_client_that_reached_itself_was_refused(arguments, host):
    """Else it takes the number that it sent for the count."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        sock.bind((host, 0))
        port = str(sock.getsockname()[1])
    program = f"import socket, sys\n{SELFISH}from evloop.charcount.cli import client\nsys.exit(client.main())"
    done = subprocess.run(
        [*PYTHON, "-c", program, "--host", host, "--port", port, "--timeout", "1", *arguments],
        input=b"7\n",
        capture_output=True,
        timeout=DEADLINE_S,
        cwd=ROOT,
        check=False,
    )
    assert (done.returncode, done.stdout) == (3, b"")
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    assert one_line(done.stderr) == (
        f"charcount-client: cannot connect to {target}: nothing listens there; start charcount-server"
    )

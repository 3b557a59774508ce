"""Reloads and upgrades of real services: nobody notices, and a broken one changes nothing. Rows 110 to 116.

What happens to a connection in each state is in test_handover.py.
"""

from __future__ import annotations

import re
import shutil
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from evloop.program.workers.kept import UPGRADE
from paths import ROOT, SERVER
from pipelining import Crowd
from processes import Process
from waiting import DEADLINE_S, wait_until

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="connections are passed over Unix sockets")

UPGRADED = re.compile(r"upgraded: the new service has pid (\d+)")


class Reloaded:
    """A service that is reloaded and upgraded; in the end its latest process is told to stop."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.reloads = 0
        self.upgrades = 0

    @property
    def latest(self) -> psutil.Process:
        """The process that signals are for."""
        found = UPGRADED.findall(self.process.log)
        return psutil.Process(int(found[-1])) if found else self.process.psutil

    def begin_reload(self) -> Callable[[], bool]:
        """Tell it to. Returns what tells that it is done."""
        self.latest.send_signal(signal.SIGHUP)
        self.reloads += 1
        return lambda: self.process.log.count("reloaded:") == self.reloads

    def begin_upgrade(self) -> Callable[[], bool]:
        """Tell it to. Returns what tells that it is done: the old one is gone."""
        old = self.latest
        old.send_signal(signal.SIGUSR2)
        self.upgrades += 1

        def done() -> bool:
            return len(UPGRADED.findall(self.process.log)) == self.upgrades and gone(old)

        return done

    def close(self) -> None:
        """End it, in order."""
        for client in self.process._clients:
            client.close()  # else the service waits a while for their FIN
        family = [self.latest, *self.latest.children(recursive=True)]
        try:
            self.latest.send_signal(signal.SIGTERM)
            wait_until(lambda: all(map(gone, family)), "its end")
            self.process.wait()
            assert "Traceback" not in self.process.log, self.process.log
            assert "Warning" not in self.process.log, self.process.log
        finally:
            for process in family:
                if not gone(process):
                    process.kill()
            self.process.close()


def gone(process: psutil.Process) -> bool:
    """Whether it has ended."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def reloaded() -> Iterator[Callable[..., Reloaded]]:
    """Starts a program, by default ``charcount-server``, which is ended with the test, whatever it has become."""
    running: list[Reloaded] = []

    def start(*arguments: str, program: str = SERVER, **options: Any) -> Reloaded:
        process = Process(["-W", "error", program, *arguments], **options)
        process.wait_for_log("listening on")
        running.append(Reloaded(process))
        return running[-1]

    yield start
    for service in running:
        service.close()


# ---------------------------------------------------------------------- 110


@pytest.mark.parametrize(
    ("workers", "where", "clients", "orders"),
    [
        ("2", "127.0.0.1:0", 20, "R"),
        ("1", "127.0.0.1:0", 20, "U"),
        pytest.param("2", "127.0.0.1:0", 200, "RURUR", marks=pytest.mark.slow),
        pytest.param("2", "unix", 200, "RURUR", marks=pytest.mark.slow),
        pytest.param("1", "127.0.0.1:0", 200, "UUU", marks=pytest.mark.slow),
        pytest.param("1", "unix", 200, "UUU", marks=pytest.mark.slow),
    ],
)
def test_110_reloads_and_upgrades_are_noticed_by_nobody(reloaded, tmp_path, workers, where, clients, orders):
    path = str(tmp_path / "socket")
    service = reloaded(
        "--listen", f"unix:{path}" if where == "unix" else where, "--workers", workers, "--log-level", "info"
    )

    def connect() -> socket.socket:
        if where != "unix":
            return socket.create_connection(service.process.address)
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        return sock

    crowd = Crowd(clients, connect)
    for order in orders:
        answered = crowd.answered
        crowd.run_until(lambda: crowd.answered > answered + 2000, "traffic")  # noqa: B023
        done = service.begin_reload() if order == "R" else service.begin_upgrade()
        crowd.run_until(done, service.process.log)
    crowd.finish()
    assert not crowd.wrong
    assert not crowd.ended
    assert not crowd.owed
    moved = sum(map(int, re.findall(r"(\d+) connections handed over", service.process.log)))
    assert moved == clients * len(orders)
    with connect() as late:
        late.sendall(b"abc\n")
        assert late.recv(10) == b"3\n"


# ---------------------------------------------------------------------- 111


@pytest.mark.slow
def test_111_message_in_a_stream_at_full_speed_goes_along(reloaded):
    service = reloaded("--listen", "127.0.0.1:0", "--workers", "2", "--log-level", "info")
    sizes = [size % 70 for size in range(5000)]
    lines = b"".join(b"x" * size + b"\n" for size in sizes)
    replies = b"".join(b"%d\n" % size for size in sizes) * 2
    sent = received = 0
    orders = [service.begin_reload, service.begin_upgrade, service.begin_reload]
    done: Callable[[], bool] = lambda: True  # noqa: E731
    with socket.create_connection(service.process.address) as sock:
        sock.setblocking(False)
        while orders or not done() or received < sent // len(lines) * (len(replies) // 2):
            if orders and done() and received > 1_000_000 * (4 - len(orders)):
                done = orders.pop(0)()
            try:
                if orders or not done() or sent % len(lines):  # to the end of a round of lines
                    sent += sock.send(lines[sent % len(lines) :][:50_001])  # cut anywhere in a line
            except BlockingIOError:
                pass
            try:
                data = sock.recv(1 << 20)
            except BlockingIOError:
                continue
            assert data
            start = received % (len(replies) // 2)
            while data:
                piece, data = data[: len(replies) // 2], data[len(replies) // 2 :]
                assert piece == replies[start : start + len(piece)]
                start = (start + len(piece)) % (len(replies) // 2)
                received += len(piece)
    moved = sum(map(int, re.findall(r"(\d+) connections handed over", service.process.log)))
    assert moved == 3
    assert "; 0 are drained" in service.process.log


# ---------------------------------------------------------------------- 112


@pytest.mark.slow
def test_112_tls_ends_in_order_in_a_reload(reloaded, tmp_path):
    from tlsworld import world

    certificate, key = world().pair
    service = reloaded(
        "--listen", "tls:127.0.0.1:0", "--workers", "2", "--tls-cert", certificate, "--tls-key", key
    )  # fmt: skip
    context = world().client_context()
    address = service.process.address

    def connect() -> ssl.SSLSocket:
        raw = socket.create_connection(address, timeout=DEADLINE_S)
        return context.wrap_socket(raw, server_hostname="localhost", suppress_ragged_eofs=False)

    clients = [connect() for _ in range(20)]
    for client in clients:
        client.sendall(b"abc\n" * 100)
    done = service.begin_reload()
    for client in clients:
        got = b""
        while data := client.recv(1000):  # an end without TLS's goodbye is an error
            got += data
        assert got == b"3\n" * 100
        client.close()
    wait_until(done, "reloaded")
    with connect() as late:
        late.sendall(b"abc\n")
        assert late.recv(10) == b"3\n"


# ---------------------------------------------------------------------- 114


@pytest.mark.slow
def test_114_connections_that_a_dead_worker_was_sent_are_not_lost(reloaded, tmp_path):
    path = str(tmp_path / "socket")  # of a Unix socket the supervisor passes each connection to a worker
    service = reloaded("--listen", f"unix:{path}", "--workers", "2", "--log-level", "info")
    for _ in range(5):  # now and then it is known to be held up before anything is passed to it
        workers = wait_until(lambda: two_of(service), "two workers that serve")
        workers[0].suspend()
        clients = [socket.socket(socket.AF_UNIX) for _ in range(8)]
        for client in clients:
            client.settimeout(DEADLINE_S)
            client.connect(path)
            client.sendall(b"abc\n")
        workers[0].kill()
        for client in clients:
            assert client.recv(10) == b"3\n"
            client.close()


def two_of(service: Reloaded) -> list[psutil.Process]:
    """Its workers, if there are two that have not ended."""
    live = [child for child in service.process.psutil.children() if not gone(child)]
    return live if len(live) == 2 else []


# ---------------------------------------------------------------------- 113, 115

PROGRAM = """
from evloop import LineProtocol, serve

class {name}(LineProtocol):
    def on_line(self, line):
        return b"{version} " + line + b"\\n"

if __name__ == "__main__":
    serve({name}, port=0, workers={workers})
"""


@pytest.fixture(params=[1, pytest.param(2, marks=pytest.mark.slow)])
def program(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Path]:
    """Writes a version of a program; of one process, and of two workers."""
    path = tmp_path / "program.py"

    def write(version: str, name: str = "Answering") -> Path:
        path.write_text(PROGRAM.format(version=version, name=name, workers=request.param))
        return path

    return write


@pytest.mark.slow
def test_115_upgrade_brings_new_code_to_connections_that_are_open(reloaded, program):
    service = reloaded(program=str(program("old")))
    client = service.process.connect()
    assert client.ask(b"a\n", 6) == b"old a\n"
    program("new")
    wait_until(service.begin_upgrade(), "upgraded")
    assert client.ask(b"a\n", 6) == b"new a\n"
    assert service.process.connect().ask(b"a\n", 6) == b"new a\n"


KEPT = """
import sys
from evloop import LineProtocol, serve

class Answering(LineProtocol):
    def on_line(self, line):
        return line + b"\\n"

def tell_when_kept(loop, server):
    from evloop.program.workers.kept import UPGRADE, Kept
    if any(len(one.code) == len(UPGRADE) for one in sys.meta_path if isinstance(one, Kept)):
        print("all is kept", file=sys.stderr, flush=True)
    else:
        loop.call_later(0.01, tell_when_kept, loop, server)

if __name__ == "__main__":
    serve(Answering, port=0, on_start=tell_when_kept)
"""


@pytest.mark.slow
def test_115_upgrade_loads_nothing_of_the_new_version_into_the_old_process(reloaded, tmp_path):
    copy = tmp_path / "evloop"
    shutil.copytree(ROOT / "evloop", copy, ignore=shutil.ignore_patterns("__pycache__"))
    path = tmp_path / "program.py"  # which finds the copy beside itself
    path.write_text(KEPT)
    service = reloaded(program=str(path), environment={"PYTHONPATH": str(tmp_path)})
    client = service.process.connect()
    assert client.ask(b"a\n", 2) == b"a\n"
    service.process.wait_for_log("all is kept")
    other = f"import os\nif os.getpid() == {service.process.popen.pid}:\n    raise ImportError('of another version')\n"
    for name in UPGRADE:
        with (tmp_path / (name.replace(".", "/") + ".py")).open("a") as source:
            source.write(other)
    wait_until(service.begin_upgrade(), "upgraded")
    assert client.ask(b"b\n", 2) == b"b\n"


def test_115_broken_upgrade_changes_nothing(reloaded, program):
    path = program("old")
    service = reloaded(program=str(path))
    client = service.process.connect()
    assert client.ask(b"a\n", 6) == b"old a\n"
    path.write_text("raise SystemExit('this version is broken')")
    service.process.signal(signal.SIGUSR2)
    service.process.wait_for_log("; this one goes on")
    assert "this version is broken" in service.process.log
    assert re.search(r"not upgraded: the new one \(pid \d+\) ended with status 1 before it served", service.process.log)
    for _ in range(2):
        assert client.ask(b"a\n", 6) == b"old a\n"
        assert service.process.connect().ask(b"a\n", 6) == b"old a\n"
    program("new")  # and it can be tried again
    wait_until(service.begin_upgrade(), "upgraded")
    assert client.ask(b"a\n", 6) == b"new a\n"


@pytest.mark.slow
def test_113_upgrade_that_changes_what_clients_see_drains_them(reloaded, program):
    service = reloaded(program=str(program("old")))
    client = service.process.connect()
    assert client.ask(b"a\n", 6) == b"old a\n"
    program("new", "Different")
    done = service.begin_upgrade()
    assert client.receive_rest() == b""
    client.close()
    wait_until(done, "upgraded")
    assert service.process.connect().ask(b"a\n", 6) == b"new a\n"

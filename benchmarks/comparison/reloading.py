"""What a reload costs the clients of a service: messages that are not answered, connections that end.

Clients ask one thing at a time, over connections that they would keep for ever, and connect again when one ends. Three
reloads come meanwhile. A message is lost if its connection ends before the reply to it is there.

HTTP servers are given the same work, a text whose characters are to be counted, as requests on connections that are
kept. What stays behind of the old version is counted as well: nginx loses nothing, but keeps its old processes for as
long as their clients stay.
"""

from __future__ import annotations

import os
import random
import re
import select
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psutil

from benchmarks.peers.registry import OURS
from evloop_bench.common.paths import ROOT
from evloop_bench.common.processes import NotStarted, started

Figures = dict[str, dict[str, float]]

RELOAD = f"{OURS}, 2 workers, SIGHUP"

_CLIENTS = 100
_RELOADS = 3
# The first reload comes after this, each of the next ones so long after the one before, and the end after the last.
_BETWEEN_S = 2.5
# A client thinks so long before it asks again, on average.
_THINKING_S = 0.01
_CONNECT_AGAIN_S = 0.05
_STOPPED_S = 10.0


class ReloadError(Exception):
    """A contestant could not be measured. The text says why."""


@dataclass(frozen=True, slots=True)
class Wire:
    """How one asks.

    Attributes:
        question: a text of so many characters, as it is sent.
        answer: the number in what was received, and how long that reply is; None while it is not complete.
    """

    question: Callable[[int], bytes]
    answer: Callable[[bytes], tuple[int, int] | None]


def _line_answer(received: bytes) -> tuple[int, int] | None:
    line, end, _ = received.partition(b"\n")
    return (int(line), len(line) + 1) if end else None


def _http_question(size: int) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size


_CONTENT_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


def _http_answer(received: bytes) -> tuple[int, int] | None:
    head, end, body = received.partition(b"\r\n\r\n")
    found = _CONTENT_LENGTH.search(head)
    if not end or found is None or len(body) < int(found[1]):
        return None
    if not head.startswith(b"HTTP/1.1 200"):
        raise ReloadError(f"a reply that is none: {head[:60]!r}")
    return int(body[: int(found[1])]), len(head) + 4 + int(found[1])


LINES = Wire(lambda size: b"x" * size + b"\n", _line_answer)
HTTP = Wire(_http_question, _http_answer)


class _Client:
    def __init__(self) -> None:
        self.socket: socket.socket | None = None
        self.received = b""
        self.asked = -1  # how many characters; -1: nothing is asked
        self.asked_at = 0.0
        self.next_at = 0.0


class Load:
    """The clients.

    Attributes:
        messages: those that were answered.
        lost: those that will never be.
        ended: connections that the other side has ended.
        refused: attempts to connect that failed.
        slowest_s: the longest that a reply took.
    """

    def __init__(self, port: int, wire: Wire, clients: int = _CLIENTS) -> None:
        self.messages = self.lost = self.ended = self.refused = 0
        self.slowest_s = 0.0
        self._address = ("127.0.0.1", port)
        self._wire = wire
        self._clients = [_Client() for _ in range(clients)]
        self._random = random.Random(1)

    def run(self, seconds: float) -> None:
        """All ask for so long."""
        until = time.monotonic() + seconds
        while (now := time.monotonic()) < until:
            self._turn(now, ask=True)

    def finish(self) -> None:
        """Wait for the replies to what is asked, and close all."""
        until = time.monotonic() + _STOPPED_S
        while any(client.asked >= 0 for client in self._clients) and time.monotonic() < until:
            self._turn(time.monotonic(), ask=False)
        for client in self._clients:
            if client.asked >= 0:
                self.lost += 1
            if client.socket is not None:
                client.socket.close()

    def _turn(self, now: float, ask: bool) -> None:
        poll = select.poll()
        by_number: dict[int, _Client] = {}
        for client in self._clients:
            if ask and client.asked < 0 and now >= client.next_at:
                self._ask(client, now)
            if client.socket is not None:
                by_number[client.socket.fileno()] = client
                poll.register(client.socket, select.POLLIN)
        for number, _ in poll.poll(2):
            self._receive(by_number[number])

    def _ask(self, client: _Client, now: float) -> None:
        if client.socket is None:
            try:
                client.socket = socket.create_connection(self._address, timeout=_STOPPED_S)
            except OSError:
                self.refused += 1
                client.next_at = now + _CONNECT_AGAIN_S
                return
            client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.asked = self._random.randrange(1, 60)
        client.asked_at = now
        try:
            client.socket.sendall(self._wire.question(client.asked))
        except OSError:
            self._end(client)

    def _receive(self, client: _Client) -> None:
        assert client.socket is not None
        try:
            data = client.socket.recv(65536)
        except OSError:
            data = b""
        if not data:
            self._end(client)
            return
        client.received += data
        found = self._wire.answer(client.received)
        if found is None:
            return
        count, size = found
        if count != client.asked:
            raise ReloadError(f"a wrong reply: {count} instead of {client.asked}")
        now = time.monotonic()
        client.received = client.received[size:]
        client.asked = -1
        client.next_at = now + self._random.uniform(0, 2 * _THINKING_S)
        self.messages += 1
        self.slowest_s = max(self.slowest_s, now - client.asked_at)

    def _end(self, client: _Client) -> None:
        assert client.socket is not None
        client.socket.close()
        client.socket, client.received = None, b""
        self.ended += 1
        if client.asked >= 0:
            self.lost += 1
            client.asked = -1


# What is to be signalled, and where it listens.
Started = tuple[Callable[[], int], int]


@dataclass(frozen=True, slots=True)
class Service:
    """One that can be reloaded.

    Attributes:
        start: starts it, with a directory for its files.
        reload: the signal.
        wire: how one asks.
        missing: why it can't run here; empty if it can.
    """

    start: Callable[[Path], Iterator[Started]]
    reload: signal.Signals
    wire: Wire = LINES
    missing: str = ""


def _listening(said: bytes) -> int | None:
    found = re.search(rb"istening (?:on|at:) \S*:(\d+)", said)
    return None if found is None else int(found[1])


def _ours(workers: int) -> Callable[[Path], Iterator[Started]]:
    server = str(ROOT / "bin" / "charcount-server")
    options = ["--workers", str(workers), "--log-level", "error", "--port", "0"]

    def start(directory: Path) -> Iterator[Started]:
        path = directory / "log"
        with path.open("w+b") as log, started([sys.executable, server, *options], _listening, log=log) as (pid, port):

            def latest() -> int:
                upgraded = re.findall(rb"the new service has pid (\d+)", path.read_bytes())
                return int(upgraded[-1]) if upgraded else pid

            yield latest, port

    return start


def _gunicorn(directory: Path) -> Iterator[Started]:
    command = [sys.executable, "-m", "gunicorn", "--workers", "2", "--worker-class", "gthread", "--threads", "64"]
    options = ["--keep-alive", "75", "--bind", "127.0.0.1:0", "--chdir", str(ROOT), "benchmarks.peers.wsgi_count:count"]
    with started([*command, *options], _listening) as (pid, port):
        time.sleep(1)  # it says so before its workers serve
        yield lambda: pid, port


_NGINX_CONF = """
daemon off; worker_processes 2; error_log {directory}/error.log; pid {directory}/nginx.pid; {load}
events {{ worker_connections 1024; }}
stream {{ server {{ listen 127.0.0.1:{port}; proxy_pass 127.0.0.1:{behind}; }} }}
"""
_NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin") or ""
_STREAM_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")  # where it is not built in


def _nginx(directory: Path) -> Iterator[Started]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    load = f"load_module {_STREAM_MODULE};" if _STREAM_MODULE.exists() else ""

    def accepts(_said: bytes) -> bool | None:
        with socket.socket() as sock:
            return True if sock.connect_ex(("127.0.0.1", port)) == 0 else None

    for _, behind in _ours(1)(directory):
        config = directory / "nginx.conf"
        config.write_text(_NGINX_CONF.format(directory=directory, load=load, port=port, behind=behind))
        with started([_NGINX, "-p", str(directory), "-c", str(config)], accepts) as (pid, _):
            yield lambda: pid, port


def services() -> dict[str, Service]:
    """Those that are compared, by name."""
    gunicorn = "" if find_spec("gunicorn") else "gunicorn is not installed"
    return {
        RELOAD: Service(_ours(2), signal.SIGHUP),
        f"{OURS}, 2 workers, SIGUSR2": Service(_ours(2), signal.SIGUSR2),
        f"{OURS}, 1 process, SIGUSR2": Service(_ours(1), signal.SIGUSR2),
        "gunicorn, 2 gthread workers, SIGHUP": Service(_gunicorn, signal.SIGHUP, HTTP, gunicorn),
        "nginx in front of ours, SIGHUP": Service(
            _nginx, signal.SIGHUP, LINES, "" if _NGINX else "nginx is not installed"
        ),
    }


def reload(directory: Path, chosen: Sequence[str] | None = None) -> Figures:
    """Each service in turn, with three reloads under load."""
    found: Figures = {}
    for name, service in services().items():
        if not service.missing and (chosen is None or name in chosen):
            found[name] = _measured(service, directory)
    return found


def _measured(service: Service, directory: Path) -> dict[str, float]:
    try:
        with contextmanager(service.start)(directory) as (process, port):
            load = Load(port, service.wire)
            load.run(_BETWEEN_S)
            for _ in range(_RELOADS):
                os.kill(process(), service.reload)
                load.run(_BETWEEN_S)
            processes = 1 + len(psutil.Process(process()).children(recursive=True))
            load.finish()
    except NotStarted as error:
        raise ReloadError(str(error)) from None
    return {
        "messages": load.messages,
        "lost": load.lost,
        "ended": load.ended,
        "refused": load.refused,
        "processes": processes,
        "slowest_ms": load.slowest_s * 1000,
    }

"""Services of several processes: the tests' own, which tells who answers, and what can be seen of any from outside."""

from __future__ import annotations

import json
import os
from typing import Any

import psutil

from clients import Client
from paths import ROOT
from processes import Process
from waiting import DEADLINE_S, wait_until

TELLING_SERVER = str(ROOT / "tests" / "process" / "telling_server.py")


class Service(Process):
    """The program `process.telling_server` with so many workers, ready to serve.

    Args:
        settings: where, limits: as there.
        program: another program that is started in the same way.
    """

    def __init__(self, workers: int, *, program: str = TELLING_SERVER, **settings: Any) -> None:
        super().__init__(["-W", "error", program, json.dumps({"workers": workers, **settings})])
        try:
            # Several processes start, each of them a Python.
            wait_until(lambda: "listening on" in self.log or self.popen.poll() is not None, "ready", 3 * DEADLINE_S)
            self.wait_for_log("listening on")
        except BaseException:
            self.close()
            raise

    def ask(self, line: bytes = b"who") -> int:
        """Which worker answers a new client."""
        with Client(self.address) as client:
            return answered_by(client, line)


def answered_by(client: Client, line: bytes = b"who") -> int:
    """Which worker answers on this connection. The answer must be right."""
    client.send(line + b"\n")
    said, _, pid = client.receive_line().rpartition(b" ")
    assert said == line
    return int(pid)


def connections_by_worker(service: Service, count: int) -> dict[int, list[Client]]:
    """So many new connections, by who serves them. They are closed with the service."""
    found: dict[int, list[Client]] = {}
    for _ in range(count):
        client = service.connect()
        found.setdefault(answered_by(client), []).append(client)
    return found


def workers_of(service: Process) -> set[int]:
    """The processes that a supervisor has started, those that end just now included."""
    try:
        return {child.pid for child in service.psutil.children()}
    except psutil.NoSuchProcess:
        return set()


def wait_for_workers(service: Process, count: int, without: set[int] = frozenset()) -> set[int]:  # type: ignore[assignment]
    """Wait until there are so many, and none of these."""

    def found() -> set[int]:
        pids = workers_of(service)
        return pids if len(pids) == count and not pids & without else set()

    return wait_until(found, f"{count} workers, none of {without}", 3 * DEADLINE_S)


def alive(pid: int) -> bool:
    """Whether there is such a process, and it has not ended."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class Fifo:
    """What a handler of the telling server can be made to wait for."""

    def __init__(self, path: os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        os.mkfifo(self.path)

    def order(self) -> bytes:
        """The line that makes a worker wait."""
        return b"block " + os.fsencode(self.path)

    def wait_until_blocked(self) -> int:
        """Wait until it does. Returns the descriptor whose closing releases it."""

        def opened() -> int:
            try:
                return os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:  # nobody reads it yet
                return 0

        return wait_until(opened, "a worker waits")

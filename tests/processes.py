"""Real servers in processes of their own, and what can be seen of them from outside: CPU, memory, descriptors, log."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import psutil

from clients import Client
from paths import ROOT, SERVER
from waiting import DEADLINE_S, wait_until

# A loop that has nothing to do uses well below 1 % of a core, one that spins all of it.
SPINNING = 0.2


def cpu_share(cpu_seconds: Callable[[], float], for_s: float = 0.2) -> float:
    """The share of one core that something uses while this waits, by its own account of CPU seconds."""
    before_s, began = cpu_seconds(), time.monotonic()
    time.sleep(for_s)  # it is this time that is measured
    return (cpu_seconds() - before_s) / (time.monotonic() - began)


class Process:
    """A Python program that serves on a port and says so on stderr. Killed at the end of the ``with`` block.

    Its stderr goes to a file, so that a test that doesn't read it can't block it.

    Args:
        command: what to run with this Python.
        soft_descriptors, hard_descriptors: RLIMIT_NOFILE to start with.
        environment: variables to add.
        prefix: a command that runs this one.
    """

    def __init__(
        self,
        command: list[str],
        *,
        soft_descriptors: int | None = None,
        hard_descriptors: int | None = None,
        environment: dict[str, str] | None = None,
        prefix: Sequence[str] = (),
        **options: Any,
    ) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close

        def lower_limits() -> None:
            import resource

            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            hard = hard if hard_descriptors is None else hard_descriptors
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft_descriptors or soft, hard), hard))

        limited = soft_descriptors is not None or hard_descriptors is not None
        self.popen = subprocess.Popen(
            [*prefix, sys.executable, *command],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
            preexec_fn=lower_limits if limited else None,
            **options,
        )
        self.psutil = psutil.Process(self.popen.pid)
        self._clients: list[Client] = []

    # ------------------------------------------------------------------ talking to it

    @property
    def log(self) -> str:
        """All it has said so far."""
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode()

    def wait_for_log(self, text: str, times: int = 1) -> None:
        """Wait until it has said something."""
        wait_until(lambda: self.log.count(text) >= times or self.popen.poll() is not None, f"{text!r} in the log")
        assert self.log.count(text) >= times, f"{text!r} is not in the log:\n{self.log}"

    def connect(self, *, receive_buffer: int | None = None) -> Client:
        """A new client, closed with the process."""
        client = Client(self.address, receive_buffer=receive_buffer)
        self._clients.append(client)
        return client

    def connect_when_ready(self, port: int) -> Client:
        """A new client at a port of a program that may still be starting. The caller closes it."""

        def attempt() -> Client | None:
            assert self.popen.poll() is None, self.log
            try:
                return Client(("127.0.0.1", port))
            except ConnectionRefusedError:
                return None

        client = wait_until(attempt, f"port {port}")
        assert client is not None
        return client

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens first, from its log."""
        found = wait_until(
            lambda: re.search(r"listening on (?:tls:)?(\S+):(\d+)\s", self.log) or self.popen.poll() is not None,
            "its address",
        )
        assert isinstance(found, re.Match), f"it did not start:\n{self.log}"
        return found[1].strip("[]"), int(found[2])

    # ------------------------------------------------------------------ looking at it

    def cpu_s(self) -> float:
        """CPU seconds used so far."""
        times = self.psutil.cpu_times()
        return float(times.user + times.system)

    def cpu_share(self, for_s: float = 0.2) -> float:
        """The share of one core it uses from now on for a while."""
        return cpu_share(self.cpu_s, for_s)

    def memory(self) -> int:
        """Resident memory in bytes."""
        return int(self.psutil.memory_info().rss)

    def descriptors(self) -> int:
        """How many descriptors it has open."""
        return int(self.psutil.num_fds())

    # ------------------------------------------------------------------ ending it

    def signal(self, signum: int) -> None:
        """Send it a signal."""
        os.kill(self.popen.pid, signum)

    def stop(self) -> None:
        """SIGSTOP, and wait until it has stopped: the kernel goes on taking connections and bytes for it."""
        self.signal(signal.SIGSTOP)
        wait_until(lambda: self.psutil.status() == psutil.STATUS_STOPPED, "stopped")

    def resume(self) -> None:
        """SIGCONT."""
        self.signal(signal.SIGCONT)

    def wait(self, timeout_s: float = DEADLINE_S) -> int:
        """Its exit status. Negative: the signal that killed it."""
        return self.popen.wait(timeout_s)

    def close(self) -> None:
        """Kill it and close all clients."""
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait(DEADLINE_S)
        for client in self._clients:
            client.close()
        self._log.close()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def start_server(*arguments: str, python_options: tuple[str, ...] = (), **options: Any) -> Process:
    """``charcount-server`` on a free port, ready to serve."""
    process = Process([*python_options, SERVER, "--port", "0", *arguments], **options)
    try:
        process.address  # noqa: B018 - waits
    except BaseException:
        process.close()
        raise
    return process


def listening_socket() -> socket.socket:
    """A socket that listens on a free port of 127.0.0.1."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    return sock

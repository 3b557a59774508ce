"""The server under load: started by us, or found running."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from benchmarks.loadgen.patience import Patience

ROOT = Path(__file__).resolve().parents[2]

_START_TIMEOUT_S = 15.0
_STOP_TIMEOUT_S = 15.0


class CannotRun(Exception):
    """The run can't take place. The text is one line that says why and what to do."""


@dataclass(frozen=True)
class Target:
    """A server that accepts connections.

    Attributes:
        pids: its process, or processes; empty if it runs elsewhere, or belongs to somebody else.
        spawned: it was started for this run, and is stopped after it.
        command: how it was started.
    """

    host: str
    port: int
    pids: tuple[int, ...]
    spawned: bool
    command: str | None = None


def default_command(sockets: int) -> str:
    """The project's own server, with the Python that runs this."""
    server = ROOT / "bin" / "charcount-server"
    return shlex.join(
        [
            sys.executable,
            str(server),
            "--port",
            "{port}",
            "--log-level",
            "error",
            "--max-connections",
            str(sockets + 64),
        ]
    ).replace("'{port}'", "{port}")


def null_server_command() -> str:
    """The server of `--calibrate`: replies without looking."""
    script = Path(__file__).with_name("nullserver.py")
    return shlex.join([sys.executable, str(script)]) + " {port}"


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on at the moment."""
    with socket.create_server((host, 0)) as probe:
        return int(probe.getsockname()[1])


def accepts(host: str, port: int) -> bool:
    """Whether somebody accepts connections there."""
    try:
        with socket.create_connection((host, port), timeout=1) as probe:
            # Where nobody listens on a port of the range that the kernel takes ours from, it may take that very port:
            # then the socket is connected to itself.
            return bool(probe.getsockname() != probe.getpeername())
    except OSError:
        return False


@contextmanager
def pinned_to(cores: list[int] | None) -> Iterator[None]:
    """What is started inside runs on these cores. None: wherever it likes."""
    if cores is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def spawned_server(command: str, cores: list[int] | None, log_path: str | None = None) -> Iterator[Target]:
    """Start ``command`` with a free port in the place of ``{port}``, and stop it in the end.

    It is stopped also if this process is killed (see `benchmarks.loadgen.keeper`).

    Args:
        cores: where it may run.
        log_path: a file for what it prints. Default: shown only if it fails.

    Raises:
        CannotRun: it can't be started, ends at once, or doesn't listen in time; or the log can't be written.
    """
    port = free_port()
    try:
        argv = [word.replace("{port}", str(port)) for word in shlex.split(command)]
    except ValueError as error:
        raise CannotRun(f"cannot understand the command of --spawn: {error}") from None
    with _open_log(log_path) as log, Keeper() as keeper:
        try:
            with pinned_to(cores):
                # A session of its own: an interrupt from the terminal is for us, who will stop it in order.
                process = subprocess.Popen(
                    argv, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
                )
        except (OSError, ValueError) as error:  # ValueError: a NUL in the command
            raise CannotRun(f"cannot start {argv[0]}: {getattr(error, 'strerror', None) or error}") from None
        try:
            keeper.watch(process.pid)
            _wait_until_listening(process, port, log)
            yield Target("127.0.0.1", port, (process.pid,), True, shlex.join(argv))
        finally:
            _stop(process)


def _open_log(path: str | None) -> IO[bytes]:
    if path is None:
        return tempfile.TemporaryFile()
    try:
        return open(path, "w+b")
    except OSError as error:
        raise CannotRun(f"cannot write {path}: {error.strerror}") from None


class Keeper:
    """The process that ends the server if we can't. Use it as a context manager; start it before the server."""

    def __init__(self) -> None:
        # -I -S: it needs nothing but os and signal, and is to be there quickly.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(__file__).with_name("keeper.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # it must outlive what ends us
            bufsize=0,
        )

    def watch(self, group: int) -> None:
        """This is the process group to end."""
        self._tell(f"{group}\n")

    def _tell(self, order: str) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):  # somebody has ended it: we can still do it ourselves
            self._process.stdin.write(order.encode())

    def __enter__(self) -> Keeper:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._tell("done\n")
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def _wait_until_listening(process: subprocess.Popen[bytes], port: int, log: IO[bytes]) -> None:
    patience = Patience(_START_TIMEOUT_S)
    while not accepts("127.0.0.1", port):
        ended = process.poll() is not None
        if ended or patience.over():
            log.seek(0)
            said = log.read().decode(errors="replace").strip().splitlines()
            what = f"ended with status {process.returncode}" if ended else f"does not listen on port {port}"
            raise CannotRun(f"the server {what}" + (f"; it said: {said[-1]}" if said else ""))
        time.sleep(0.02)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End it and everything that it started. An interrupt meanwhile ends it at once."""
    try:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGCONT)  # it may have been stopped
        process.terminate()
        patience = Patience(_STOP_TIMEOUT_S)
        while process.poll() is None and not patience.over():
            time.sleep(0.005)
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def running_server(host: str, port: int) -> Target:
    """A server that runs already.

    Raises:
        CannotRun: nothing accepts connections there.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # UnicodeError: a name with an empty or overlong label
        raise CannotRun(f"cannot resolve {host!r}: {getattr(error, 'strerror', None) or error}") from None
    # A name may have addresses at which nobody listens; all connections go to the first at which somebody does.
    for numeric in (str(address[0]) for *_, address in found):
        if accepts(numeric, port):
            return Target(numeric, port, tuple(sorted(_listening_pids(numeric, port))), False)
    raise CannotRun(f"nothing accepts connections at {host}:{port}: start the server, or leave out --server")


def _listening_pids(host: str, port: int) -> set[int]:
    """Who listens there, as far as we may know."""
    local = {address.address for addresses in psutil.net_if_addrs().values() for address in addresses}
    if host not in local and not host.startswith("127."):
        return set()
    try:
        connections = psutil.net_connections("tcp")
    except psutil.AccessDenied:
        return set()
    return {
        connection.pid
        for connection in connections
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid
    }

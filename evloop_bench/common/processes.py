"""Servers as processes: on which core, started and waited for, stopped whatever happens to us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TypeVar

from evloop_bench.common.patience import Patience

T = TypeVar("T")

START_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 15.0


class NotStarted(Exception):
    """A server does not run. The text is one line that says why, with the last that it said."""


def usable_cores() -> list[int]:
    """The cores that this process may use; empty where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


@contextmanager
def pinned_to(cores: Collection[int] | None) -> Iterator[None]:
    """What this thread does and starts inside runs on these cores. None: wherever it likes."""
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
def started(
    command: Sequence[str],
    ready: Callable[[bytes], T | None],
    *,
    cores: Collection[int] | None = None,
    log: IO[bytes] | None = None,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> Iterator[tuple[int, T]]:
    """Start a server, wait until it is ready, and stop it in the end; also if this process is killed.

    Args:
        ready: looks at what it has printed so far (stdout and stderr, up to 64 KiB), and returns None until the server
            is ready.
        cores: where it may run.
        log: a file for what it prints, readable, its position at the end of what is in it. Default: a temporary one.
        environment: its variables. Default: ours.
        directory: where it is started. Default: here.

    Yields:
        its process id, and what ``ready`` returned.

    Raises:
        NotStarted: it can't be started, ends at once, or isn't ready in time.
    """
    # A file and not a pipe: nobody reads along, and a full pipe would stop the server.
    with log or tempfile.TemporaryFile() as output, Keeper() as keeper:
        try:
            with pinned_to(cores):
                # A session of its own: an interrupt from the terminal is for us, who will stop it in order.
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=directory,
                    env=environment,
                    start_new_session=True,
                )
        except (OSError, ValueError) as error:  # ValueError: a NUL in the command
            raise NotStarted(f"cannot start {command[0]}: {getattr(error, 'strerror', None) or error}") from None
        try:
            keeper.watch(process.pid)
            yield process.pid, _wait_until_ready(process, ready, output)
        finally:
            stop(process)


def _wait_until_ready(process: subprocess.Popen[bytes], ready: Callable[[bytes], T | None], output: IO[bytes]) -> T:
    patience = Patience(START_TIMEOUT_S)
    while True:
        said = os.pread(output.fileno(), 65536, 0)
        found = ready(said)
        if found is not None:
            return found
        ended = process.poll() is not None
        if ended or patience.over():
            end = os.fstat(output.fileno()).st_size  # it may have said something since we looked
            last = os.pread(output.fileno(), 65536, max(end - 65536, 0))
            lines = last.decode(errors="replace").strip().splitlines()
            what = (
                f"ended with status {process.returncode}" if ended else f"does not listen after {START_TIMEOUT_S:g} s"
            )
            raise NotStarted(f"the server {what}" + (f"; it said: {lines[-1]}" if lines else ""))
        time.sleep(0.005)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End it and everything that it started, its process group. An interrupt meanwhile ends it at once."""
    try:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGCONT)  # it may have been stopped
        process.terminate()
        patience = Patience(STOP_TIMEOUT_S)
        while process.poll() is None and not patience.over():
            time.sleep(0.005)
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


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

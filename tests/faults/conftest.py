"""Fixtures of the fault tests: servers in processes, and sockets that misbehave."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from evloop import Limits
from evloop.charcount.server import CharCountServer, ServiceSettings
from faults.processes import Process, cpu_share, start_server
from harness import RunningServer, small_limits


@pytest.fixture
def spawn() -> Iterator[Callable[..., Process]]:
    """Starts ``charcount-server`` on a free port; see `processes.start_server`. Killed with the test."""
    running: list[Process] = []

    def spawn_one(*arguments: str, **options: Any) -> Process:
        process = start_server(*arguments, **options)
        running.append(process)
        return process

    yield spawn_one
    for process in running:
        process.close()


@pytest.fixture
def spawn_program() -> Iterator[Callable[..., Process]]:
    """Starts a program given as text; it is to say ``listening on HOST:PORT``. Killed with the test."""
    running: list[Process] = []

    def spawn_one(text: str, *arguments: str, **options: Any) -> Process:
        process = Process(["-W", "error", "-c", text, *arguments], **options)
        running.append(process)
        return process

    yield spawn_one
    for process in running:
        process.close()


@pytest.fixture
def loop_cpu_share() -> Callable[[RunningServer], float]:
    """The share of one core that a server's loop thread uses from now on for a while."""
    if not hasattr(time, "pthread_getcpuclockid"):
        pytest.skip("this Python cannot tell the CPU time of another thread")

    def share(server: RunningServer) -> float:
        ident = server.thread._thread.ident
        assert ident is not None
        clock = time.pthread_getcpuclockid(ident)
        return cpu_share(lambda: time.clock_gettime(clock))

    return share


@pytest.fixture
def counting(start: Callable[..., Any]) -> Callable[..., Any]:
    """Starts a character-count server in a thread."""

    def start_counting(limits: Limits | None = None, **settings: Any) -> Any:
        chosen = ServiceSettings(limits=small_limits() if limits is None else limits, **settings)
        return start(make_server=lambda loop: CharCountServer(loop, chosen))

    return start_counting

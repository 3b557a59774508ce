"""Fixtures of the fault tests: servers in processes, and sockets that misbehave."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from paths import SERVER
from processes import Process, cpu_share, start_server
from servers import RunningServer, small_limits


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
def behind(counting: Callable[..., RunningServer]) -> Callable[..., RunningServer]:
    """Starts a character-count server that trusts proxies on 127.0.0.1."""

    def start_one(proxy_from: str = "127.0.0.1", **limits: Any) -> RunningServer:
        return counting(small_limits(**limits), proxy_from=proxy_from)

    return start_one


@pytest.fixture
def serve() -> Iterator[Callable[..., Process]]:
    """Starts ``charcount-server`` and waits until it listens. Ended with the test."""
    with contextlib.ExitStack() as stack:

        def serve_one(*arguments: str, listening: int = 1, **options: Any) -> Process:
            process = stack.enter_context(Process([SERVER, *arguments], **options))
            process.wait_for_log("listening on", listening)
            return process

        yield serve_one

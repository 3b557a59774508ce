"""Fixtures of the process tests: servers that must not leave a traceback behind."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from exampleprograms import example, web  # noqa: F401  (fixtures)
from process.commands import start_client
from processes import Process, start_server


def _end(server: Process) -> None:
    """Stop it if it still runs; it must go in peace."""
    for client in server._clients:
        client.close()  # else the server waits a while for their FIN
    try:
        if server.popen.poll() is None:
            server.resume()
            server.signal(signal.SIGTERM)
            server.wait()
        assert "Traceback" not in server.log, server.log
        assert "Warning" not in server.log, server.log
    finally:
        server.close()


@pytest.fixture(scope="session")
def service() -> Iterator[Process]:
    """A server with default settings that many tests share."""
    server = start_server("--log-level", "warning", python_options=("-W", "error"))
    yield server
    _end(server)
    assert server.popen.returncode == 0


@pytest.fixture
def spawn() -> Iterator[Callable[..., Process]]:
    """Starts ``charcount-server`` on a free port, with the arguments given. Ended with the test."""
    running: list[Process] = []

    def spawn_one(*arguments: str, **options: Any) -> Process:
        server = start_server(*arguments, **{"python_options": ("-W", "error"), **options})
        running.append(server)
        return server

    yield spawn_one
    for server in running:
        _end(server)


@pytest.fixture
def start() -> Iterator[Callable[..., Any]]:
    """Starts ``charcount-client``; see `commands.start_client`. Killed with the test."""
    running = []

    def start_one(*arguments: Any, **options: Any) -> Any:
        client = start_client(*arguments, **options)
        running.append(client)
        return client

    yield start_one
    for client in running:
        if client.poll() is None:
            client.kill()
        client.wait()
        for stream in (client.stdin, client.stdout, client.stderr):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()

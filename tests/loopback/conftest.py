"""Fixtures of the tests over loopback."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from clients import Client
from evloop import Limits, Server
from waiting import DEADLINE_S, LoopThread


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A socket that listens on a port of 127.0.0.1, for what connects."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.settimeout(DEADLINE_S)
        yield sock


@pytest.fixture
def serving() -> Iterator[Callable[..., Any]]:
    """Serves a handler in a loop of its own thread: called with it, returns server and a function for a client."""
    threads: list[tuple[LoopThread, Server]] = []

    def serve(handler: Any, **limits: Any) -> tuple[LoopThread, Server, Callable[[], Client]]:
        thread = LoopThread()
        server = thread.call(lambda: Server(thread.loop, handler, Limits(**limits)))
        threads.append((thread, server))
        thread.call(server.listen)
        address = server.listeners[0].socket.getsockname()
        return thread, server, lambda: Client(address)

    yield serve
    for thread, server in threads:
        thread.call(server.abort)
        thread.passes(3)
        thread.close()

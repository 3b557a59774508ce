"""What the tests of proxies share: clients that come through one, and what a server says of it."""

from __future__ import annotations

from typing import Any

from clients import Client
from proxyheaders import v2
from servers import RunningServer

FOUR = ("192.0.2.1", 56324), ("198.51.100.1", 443)
SIX = ("2001:db8::1", 1), ("2001:db8::2", 65535)


def client_of(server: RunningServer, host: str, port: int = 4711) -> Client:
    """A client that has come through the proxy, from that address."""
    client = server.connect()
    client.send(v2((host, port), ("::1" if ":" in host else "127.0.0.1", 80)))
    return client


def served(client: Client) -> bool:
    return client.ask(b"hello\n", 2) == b"5\n"


def waiting(server: RunningServer) -> int:
    gate = server.server._gate
    assert gate is not None
    return server.call(lambda: len(gate.waiting))


def counts(server: RunningServer) -> dict[str, Any]:
    status = server.call(server.server.status)
    return {name: status[name] for name in ("accepted", "closed", "probes", "failed", "bad_proxy_headers")}
